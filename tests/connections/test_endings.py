"""wire.md's table of endings, row by row: as a function, and as a hub sees it in either mode."""

from __future__ import annotations

import logging

import pytest

from agent.connections import ConnectionLimits
from agent.connections.endings import Ending, choose_ending
from agent.outcome import Kind, Stage

from .conftest import CLOSE, DATA, ERROR, Peer, StackFactory, WordyPeer, turns, until

NOTHING = Ending(None)
CUT = Ending(None, truncated=True)
BASE, WITH_CLOSE = frozenset[str](), frozenset({"close"})

ROWS = [
    # kind, stage, base hub, hub with `close`
    (Kind.COMPLETE, Stage.IDLE, NOTHING, Ending(CLOSE)),
    (Kind.COMPLETE, Stage.UPGRADED, NOTHING, Ending(CLOSE)),
    (Kind.FAILED, Stage.IDLE, NOTHING, Ending(CLOSE)),
    (Kind.FAILED, Stage.HEAD, Ending(ERROR), Ending(ERROR)),
    (Kind.FAILED, Stage.CHUNKED, Ending(ERROR), Ending(ERROR)),
    (Kind.FAILED, Stage.SIZED, CUT, Ending(ERROR)),
    (Kind.FAILED, Stage.UPGRADED, CUT, Ending(ERROR)),
]
IDS = [f"{kind.name}-{stage.name}" for kind, stage, _, _ in ROWS]


@pytest.mark.parametrize(("kind", "stage", "base", "with_close"), ROWS, ids=IDS)
def test_the_table(kind: Kind, stage: Stage, base: Ending, with_close: Ending) -> None:
    assert choose_ending((kind, stage), response_bytes=1, hub_closes=False) == base
    assert choose_ending((kind, stage), response_bytes=1, hub_closes=True) == with_close


@pytest.mark.parametrize("hub_closes", [False, True])
@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("kind", Kind)
def test_every_combination_has_a_row_and_odd_ones_are_failures(kind: Kind, stage: Stage, hub_closes: bool) -> None:
    ending = choose_ending((kind, stage), response_bytes=1, hub_closes=hub_closes)
    if (kind, stage) not in {(row[0], row[1]) for row in ROWS}:
        assert ending == choose_ending((Kind.FAILED, stage), response_bytes=1, hub_closes=hub_closes)


def test_without_a_word_the_safe_row() -> None:
    assert choose_ending(None, response_bytes=0, hub_closes=False) == Ending(ERROR)
    assert choose_ending(None, response_bytes=1, hub_closes=False) == CUT
    assert choose_ending(None, response_bytes=0, hub_closes=True) == Ending(ERROR)
    assert choose_ending(None, response_bytes=1, hub_closes=True) == Ending(ERROR)


@pytest.mark.parametrize("features", [BASE, WITH_CLOSE], ids=["base", "close"])
@pytest.mark.parametrize(("kind", "stage", "base", "with_close"), ROWS, ids=IDS)
async def test_the_hub_is_told_by_the_table_after_the_last_byte(
    open_stack: StackFactory,
    features: frozenset[str],
    kind: Kind,
    stage: Stage,
    base: Ending,
    with_close: Ending,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = with_close if features else base
    async with open_stack(features=features) as stack:
        peer = await stack.opened(1)
        stack.data(1, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        body = bytes(300_000)
        peer.write(body)
        peer.end(kind, stage)
        peer.outcome(1, Kind.FAILED, Stage.HEAD)  # a second word counts for nothing
        await stack.ended(1)
        await turns()
        assert stack.tunnel.sent(1) == body
        assert stack.tunnel.codes(1) == ([] if expected.code is None else [expected.code])
        assert stack.tunnel.packets[-1][1] == (DATA if expected.code is None else expected.code)
        assert stack.manager.counters.truncated == int(expected.truncated)
        assert peer.lost
        stack.data(1, b"more")
        told = [] if expected.code is None else [expected.code]
        assert stack.tunnel.codes(1) == told + ([ERROR] if expected == NOTHING else [])
        stack.data(1)  # a hub that asks whether the connection still lives
        assert stack.tunnel.codes(1) == told + ([ERROR] if expected in (NOTHING, CUT) else [])
    assert ("truncated" in caplog.text) == expected.truncated


@pytest.mark.parametrize("abort", [False, True], ids=["close", "abort"])
@pytest.mark.parametrize("written", [b"", b"some bytes"])
async def test_a_proxy_that_leaves_without_a_word_gets_the_safe_row(
    open_stack: StackFactory, written: bytes, abort: bool
) -> None:
    async with open_stack(Peer) as stack:
        peer = await stack.opened(1)
        if written:
            peer.write(written)
            await until(lambda: stack.tunnel.sent(1) == written)
        if abort:
            peer.transport.abort()
        else:
            peer.transport.close()
        await stack.ended(1)
        assert stack.tunnel.codes(1) == ([] if written else [ERROR])
        assert stack.manager.counters.truncated == int(bool(written))


async def test_a_proxy_that_half_closes_and_then_leaves_without_a_word_is_found(open_stack: StackFactory) -> None:
    async with open_stack(Peer, limits=ConnectionLimits(probe_interval_s=0.05)) as stack:
        peer = await stack.opened(1)
        peer.transport.write_eof()
        await turns()
        assert stack.manager.open_connections == 1
        peer.transport.close()
        await stack.ended(1)
        assert ERROR in stack.tunnel.codes(1)


async def test_an_answer_given_before_the_upload_has_ended_arrives(open_stack: StackFactory) -> None:
    """Over a socket, the rest of an upload fails with EPIPE.

    The proxy's response must arrive in spite of that.
    """
    async with open_stack() as stack:
        peer = await stack.opened(1)
        peer.transport.pause_reading()
        stack.data(1, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n")
        stack.data(1, bytes(2_000_000))
        await turns()
        stack.tunnel.outbounds[1].pause()
        answer = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)
        peer.write(answer)
        peer.end()
        stack.data(1, bytes(1_000_000))
        await turns()
        stack.data(1, bytes(1_000_000))
        stack.tunnel.outbounds[1].resume()
        await stack.ended(1)
        assert stack.tunnel.sent(1) == answer


@pytest.mark.parametrize("features", [BASE, WITH_CLOSE], ids=["base", "close"])
@pytest.mark.parametrize(
    ("stage", "written", "base"),
    [
        (Stage.HEAD, b"", [ERROR]),
        (Stage.IDLE, b"", [ERROR]),
        (Stage.IDLE, b"an answer, and a next request that waits", [ERROR]),
        (Stage.HEAD, b"an answer", [ERROR]),
        (Stage.CHUNKED, b"a part", [ERROR]),
        (Stage.SIZED, b"a part", []),
        (Stage.UPGRADED, b"a part", []),
    ],
)
async def test_a_connection_broken_off_here_is_told_by_how_far_the_proxy_was(
    open_stack: StackFactory, features: frozenset[str], stage: Stage, written: bytes, base: list[int]
) -> None:
    async with open_stack(features=features, limits=ConnectionLimits(inbound_bytes=1000)) as stack:
        peer = await stack.opened(1)
        peer.stage = stage
        peer.write(written)
        await until(lambda: stack.tunnel.sent(1) == written)
        peer.transport.pause_reading()
        stack.data(1, b"first")
        while stack.manager.counters.failed_inbound == 0:
            stack.data(1, bytes(100_000))
        await stack.ended(1)
        assert stack.tunnel.codes(1) == ([ERROR] if features else base)
        await until(lambda: peer.lost)


async def test_a_proxy_that_stays_silent_is_not_waited_for(open_stack: StackFactory) -> None:
    limits = ConnectionLimits(inbound_bytes=1000, outcome_timeout_s=0.05)
    async with open_stack(Peer, limits=limits) as stack:
        peer = await stack.opened(1)
        peer.transport.pause_reading()
        stack.data(1, b"first")
        while stack.manager.counters.failed_inbound == 0:
            stack.data(1, bytes(100_000))
        await stack.ended(1)
        assert stack.tunnel.codes(1) == [ERROR]


async def test_an_answer_lost_in_the_carrier_is_never_followed_by_text(open_stack: StackFactory) -> None:
    async with open_stack(WordyPeer, limits=ConnectionLimits(inbound_bytes=1000)) as stack:
        peer = await stack.opened(1)
        peer.write(b"the beginning of")
        await until(lambda: stack.tunnel.sent(1))
        stack.tunnel.outbounds[1].pause()
        peer.write(b" an answer that is whole for the proxy alone")
        peer.transport.pause_reading()
        stack.data(1, b"first")
        while stack.manager.counters.failed_inbound == 0:
            stack.data(1, bytes(100_000))
        await stack.ended(1)
        assert stack.tunnel.codes(1) == []
        assert stack.manager.counters.truncated == 1


async def test_one_line_in_the_log_tells_how_a_connection_ended(
    open_stack: StackFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_stack() as stack:
        (await stack.opened(1)).end()
        await stack.ended(1)
        (await stack.opened(2)).end(Kind.FAILED, Stage.CHUNKED)
        await stack.ended(2)
    records = [record for record in caplog.records if record.name == "agent.connections.manager"]
    assert [(record.levelname, record.conn_id) for record in records] == [("INFO", 1), ("WARNING", 2)]  # type: ignore[attr-defined]
