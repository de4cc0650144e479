"""wire.md's table of endings, row by row: as a function, and as a hub sees it in either mode."""

from __future__ import annotations

import logging

import pytest

from agent.connections import ConnectionLimits
from agent.connections.endings import Ending, choose_ending
from agent.outcome import Kind, Stage

from .conftest import CLOSE, DATA, ERROR, OpenHouse, Peer, WordyPeer, turns, until

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
    open_house: OpenHouse,
    features: frozenset[str],
    kind: Kind,
    stage: Stage,
    base: Ending,
    with_close: Ending,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = with_close if features else base
    async with open_house(features=features) as house:
        peer = await house.opened(1)
        house.data(1, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        body = bytes(300_000)
        peer.write(body)
        peer.end(kind, stage)
        peer.outcome(1, Kind.FAILED, Stage.HEAD)  # a second word counts for nothing
        await house.ended(1)
        await turns()
        assert house.tunnel.sent(1) == body
        assert house.tunnel.codes(1) == ([] if expected.code is None else [expected.code])
        assert house.tunnel.packets[-1][1] == (DATA if expected.code is None else expected.code)
        assert house.manager.counters.truncated == int(expected.truncated)
        assert peer.lost
        house.data(1, b"more")
        told = [] if expected.code is None else [expected.code]
        assert house.tunnel.codes(1) == told + ([ERROR] if expected == NOTHING else [])
        house.data(1)  # a hub that asks whether the connection still lives
        assert house.tunnel.codes(1) == told + ([ERROR] if expected in (NOTHING, CUT) else [])
    assert ("truncated" in caplog.text) == expected.truncated


@pytest.mark.parametrize("abort", [False, True], ids=["close", "abort"])
@pytest.mark.parametrize("written", [b"", b"some bytes"])
async def test_a_proxy_that_leaves_without_a_word_gets_the_safe_row(
    open_house: OpenHouse, written: bytes, abort: bool
) -> None:
    async with open_house(Peer) as house:
        peer = await house.opened(1)
        if written:
            peer.write(written)
            await until(lambda: house.tunnel.sent(1) == written)
        if abort:
            peer.transport.abort()
        else:
            peer.transport.close()
        await house.ended(1)
        assert house.tunnel.codes(1) == ([] if written else [ERROR])
        assert house.manager.counters.truncated == int(bool(written))


async def test_a_proxy_that_half_closes_and_then_leaves_without_a_word_is_found(open_house: OpenHouse) -> None:
    async with open_house(Peer, limits=ConnectionLimits(probe_interval_s=0.05)) as house:
        peer = await house.opened(1)
        peer.transport.write_eof()
        await turns()
        assert house.manager.open_connections == 1
        peer.transport.close()
        await house.ended(1)
        assert ERROR in house.tunnel.codes(1)


async def test_an_answer_given_before_the_upload_has_ended_arrives(open_house: OpenHouse) -> None:
    """Over a socket, the rest of an upload fails with EPIPE.

    The proxy's response must arrive in spite of that.
    """
    async with open_house() as house:
        peer = await house.opened(1)
        peer.transport.pause_reading()
        house.data(1, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n")
        house.data(1, bytes(2_000_000))
        await turns()
        house.tunnel.outbounds[1].pause()
        answer = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)
        peer.write(answer)
        peer.end()
        house.data(1, bytes(1_000_000))
        await turns()
        house.data(1, bytes(1_000_000))
        house.tunnel.outbounds[1].resume()
        await house.ended(1)
        assert house.tunnel.sent(1) == answer


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
    open_house: OpenHouse, features: frozenset[str], stage: Stage, written: bytes, base: list[int]
) -> None:
    async with open_house(features=features, limits=ConnectionLimits(inbound_bytes=1000)) as house:
        peer = await house.opened(1)
        peer.stage = stage
        peer.write(written)
        await until(lambda: house.tunnel.sent(1) == written)
        peer.transport.pause_reading()
        house.data(1, b"first")
        while house.manager.counters.failed_inbound == 0:
            house.data(1, bytes(100_000))
        await house.ended(1)
        assert house.tunnel.codes(1) == ([ERROR] if features else base)
        await until(lambda: peer.lost)


async def test_a_proxy_that_stays_silent_is_not_waited_for(open_house: OpenHouse) -> None:
    limits = ConnectionLimits(inbound_bytes=1000, outcome_timeout_s=0.05)
    async with open_house(Peer, limits=limits) as house:
        peer = await house.opened(1)
        peer.transport.pause_reading()
        house.data(1, b"first")
        while house.manager.counters.failed_inbound == 0:
            house.data(1, bytes(100_000))
        await house.ended(1)
        assert house.tunnel.codes(1) == [ERROR]


async def test_an_answer_lost_in_the_carrier_is_never_followed_by_text(open_house: OpenHouse) -> None:
    async with open_house(WordyPeer, limits=ConnectionLimits(inbound_bytes=1000)) as house:
        peer = await house.opened(1)
        peer.write(b"the beginning of")
        await until(lambda: house.tunnel.sent(1))
        house.tunnel.outbounds[1].pause()
        peer.write(b" an answer that is whole for the proxy alone")
        peer.transport.pause_reading()
        house.data(1, b"first")
        while house.manager.counters.failed_inbound == 0:
            house.data(1, bytes(100_000))
        await house.ended(1)
        assert house.tunnel.codes(1) == []
        assert house.manager.counters.truncated == 1


async def test_one_line_in_the_log_tells_how_a_connection_ended(
    open_house: OpenHouse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_house() as house:
        (await house.opened(1)).end()
        await house.ended(1)
        (await house.opened(2)).end(Kind.FAILED, Stage.CHUNKED)
        await house.ended(2)
    records = [record for record in caplog.records if record.name == "agent.connections.manager"]
    assert [(record.levelname, record.conn_id) for record in records] == [("INFO", 1), ("WARNING", 2)]  # type: ignore[attr-defined]
