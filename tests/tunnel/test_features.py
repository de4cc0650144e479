"""Both ends of a tunnel agree on features. Some packets are valid only with a feature."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.tunnel.features import FEATURES, read_features, write_features

DATA, ERROR, CLOSE = 0, 1, 3
NONE: frozenset[str] = frozenset()


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("value", "features"),
    [
        (b"close", {"close"}),
        (b"close, window", {"close", "window"}),
        (b",close,\t", {"close"}),
        (b"", set()),
        (b"Close", {"Close"}),
        (b"\xff,close", {"\xff", "close"}),
    ],
)
def test_names_are_separated_by_commas(value: bytes, features: set[str]) -> None:
    assert read_features([(b"other", b"x"), (b"tunnel-features", value)]) == features


def test_fields_of_one_name_are_one_list() -> None:
    assert read_features([(b"tunnel-features", b"a"), (b"tunnel-features", b"b")]) == {"a", "b"}


def test_no_features_are_no_field() -> None:
    assert write_features(NONE) == []
    assert write_features(frozenset({"window", "close"})) == [(b"tunnel-features", b"close,window")]


@pytest.mark.parametrize("theirs", [NONE, frozenset({"close"}), FEATURES])
@pytest.mark.parametrize("ours", [NONE, frozenset({"close"}), FEATURES])
async def test_both_sides_use_what_both_have_named(tunnels: Any, ours: Any, theirs: Any) -> None:
    async with tunnels(features=theirs) as ends:
        ends.start(ends.client(features=ours))
        await ends.until(lambda: ends.ready)
        assert ends.agent_sessions[0].tunnel.features == ours & theirs
        assert ends.hub_sessions[0].tunnel.features == ours & theirs


async def test_an_agent_takes_only_what_it_offered(tunnels: Any, raw_hub: Any) -> None:
    async with tunnels() as ends, raw_hub() as (port, accepted):
        ends.start(ends.client(port=port, features=frozenset({"close"})))
        peer = await accepted()
        await peer.reader.readexactly(24)
        peer.settings()
        peer.ack()
        _, _, _, payload = await peer.seen(1)
        head = dict(peer.decoder.decode(payload))
        assert head["tunnel-features"] == "close"
        peer.headers((":status", "200"), ("content-type", "application/grpc"), ("tunnel-features", "close,later"))
        peer.answer_probe()
        await ends.until(lambda: ends.ready)
        assert ends.ready[0].features == {"close"}


async def test_a_hub_answers_at_once_and_nothing_to_those_that_offer_nothing(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels() as ends:
        for offered, answer in (("later,close", "close"), ("later", None), (None, None)):
            async with raw_agent(ends.port) as peer:
                peer.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                peer.settings()
                peer.ack()
                peer.headers(
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", "/tunnel.v1.TunnelService/Tunnel"),
                    (":authority", "hub"),
                    ("content-type", "application/grpc"),
                    ("te", "trailers"),
                    ("cluster-name", "c1"),
                    *([("tunnel-features", offered)] if offered else []),
                )
                _, _, _, payload = await peer.seen(1)  # nothing was asked yet
                assert dict(peer.decoder.decode(payload)).get("tunnel-features") == answer


async def test_close_is_handed_on_only_where_it_was_negotiated(tunnels: Any) -> None:
    for features in (NONE, frozenset({"close"})):
        async with tunnels(features=features) as ends:
            ends.start(ends.client())
            await ends.until(lambda: ends.ready)
            agent, hub = ends.agent_sessions[-1], ends.hub_sessions[-1]
            out = hub.tunnel.outbound(1, nothing, nothing)
            out.write(b"last")
            out.finish(CLOSE)
            hub.tunnel.send(2, ERROR, b"", "then")
            async with asyncio.timeout(20):
                while agent.tunnel.packets_received < 4:  # noqa: ASYNC110 - what is ignored tells nobody
                    await asyncio.sleep(0.001)
            assert (1, CLOSE, b"", "") in agent.packets or not features
            assert agent.tunnel.unknown_packets == (0 if features else 1)


async def test_an_error_drops_what_is_queued_for_its_connection(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        hub.tunnel._stream.connection.sender.pause()
        hub.tunnel.outbound(1, nothing, nothing).write(b"for nobody")
        hub.tunnel.outbound(2, nothing, nothing).write(b"for somebody")
        agent.tunnel.send(1, ERROR, b"", "gone")
        await hub.until(lambda: hub.packets)
        hub.tunnel._stream.connection.sender.resume()
        await agent.until(lambda: agent.packets)
        assert agent.packets == [(2, DATA, b"for somebody", "")]
