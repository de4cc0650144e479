"""The first request of a base hub gets its framing, and nothing else is touched."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.connections.first_request import HEAD_WINDOW_BYTES, reframe


def joined(packet: bytes | memoryview) -> bytes:
    return b"".join(bytes(piece) for piece in reframe(packet))


GET = b"GET /c1/x HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    "packet",
    [
        GET,
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: h\r\ncOnTeNt-LeNgTh: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n",  # not a whole head: the proxy's business
        b"no head at all",
        b"\r\n\r\n",
        b"\r\n\r\n" + GET,
        b"GET / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Expect: 100-continue\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue, x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n folded\r\n\r\n",
    ],
)
def test_what_needs_nothing_goes_on_as_the_same_object(packet: bytes) -> None:
    (only,) = reframe(packet)
    assert only is packet


def test_a_body_without_framing_gets_its_length() -> None:
    packet = b"POST /up HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"
    assert joined(packet) == (
        b"POST /up HTTP/1.1\r\nHost: h\r\nX: y\r\nContent-Length: 23\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"
    )


def test_an_upgrade_with_bytes_behind_it_has_a_body() -> None:
    packet = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nx"
    assert b"\r\nContent-Length: 1\r\n\r\nx" in joined(packet)


@pytest.mark.parametrize("line", [b"Expect: 100-continue", b"expect:100-CONTINUE", b"EXPECT: \t100-Continue \t"])
@pytest.mark.parametrize("framing", [b"Content-Length: 2\r\n", b""])
def test_expect_was_answered_and_is_dropped(line: bytes, framing: bytes) -> None:
    packet = b"POST / HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n" + framing + b"A: b\r\n\r\nhi"
    expected = b"POST / HTTP/1.1\r\nHost: h\r\n" + framing + b"A: b\r\n"
    assert joined(packet) == expected + (b"" if framing else b"Content-Length: 2\r\n") + b"\r\nhi"


@pytest.mark.parametrize(
    "field",
    [
        b"Content-Length : 3",
        b" Content-Length: 3",
        b"X: a\r\n Content-Length: 3",
        b"X-Content-Length: 3",
        b"Content-Lengthy: 3",
        b"X: \nContent-Length: 3",
        b"X:\rTransfer-Encoding: chunked",
    ],
)
def test_a_spelling_that_might_not_count_hides_no_body(field: bytes) -> None:
    packet = b"POST / HTTP/1.1\r\nHost: h\r\n" + field + b"\r\n\r\nabc"
    assert joined(packet).endswith(b"\r\nContent-Length: 3\r\n\r\nabc")


def test_the_request_line_is_no_field() -> None:
    packet = b"content-length: 3 HTTP/1.1\r\nHost: h\r\n\r\nabc"
    assert b"\r\nContent-Length: 3\r\n\r\nabc" in joined(packet)


def test_a_large_body_is_never_copied() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\n\r\n"
    packet = head + bytes(1_000_000)
    new_head, body = reframe(packet)
    assert new_head == head[:-2] + b"Content-Length: 1000000\r\n\r\n"
    assert isinstance(body, memoryview)
    assert body.obj is packet
    assert len(body) == 1_000_000


def test_a_head_past_every_limit_is_left_to_the_proxy() -> None:
    packet = b"GET / HTTP/1.1\r\nA: " + b"x" * HEAD_WINDOW_BYTES + b"\r\n\r\nbody"
    assert reframe(packet) == (packet,)


NAMES = [b"Host", b"Content-Length", b"Transfer-Encoding", b"Expect", b"Upgrade", b"X", b"CONTENT-LENGTH", b"eXPECT"]
fields = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from([b":", b": ", b" :", b":\t"]),
    st.sampled_from([b"", b"5", b"chunked", b"100-continue", b"100-Continue ", b"h", b"100-continue, x", b"websocket"]),
    st.sampled_from([b"", b"", b"", b"\r\n folded", b"\r\n\t100-continue"]),
).map(b"".join)
heads = st.builds(
    lambda empty, line, lines: empty + b"\r\n".join([line, *lines]),
    st.sampled_from([b"", b"\r\n", b"\r\n\r\n"]),
    st.sampled_from([b"POST /c1/a HTTP/1.1", b"GET / HTTP/1.0", b"Content-Length: 1"]),
    st.lists(fields, max_size=6),
)
bodies = st.one_of(st.just(b""), st.binary(max_size=64), st.just(b"\r\n\r\n"), st.just(GET))


def rewritten(head: bytes, body: bytes) -> bytes:
    """The documented rewrites, line by line: the slow way to the same end."""
    empty = head[: len(head) - len(head.lstrip(b"\r\n"))]
    first, *lines = head[len(empty) :].split(b"\r\n")
    kept = []
    for at, line in enumerate(lines):
        name, _, value = line.partition(b":")
        continued = at + 1 < len(lines) and lines[at + 1][:1] in (b" ", b"\t")
        if name.lower() == b"expect" and value.strip(b" \t").lower() == b"100-continue" and not continued:
            continue
        kept.append(line)
    names = {line.partition(b":")[0].lower() for line in kept}
    if body and not names & {b"content-length", b"transfer-encoding"}:
        kept.append(b"Content-Length: %d" % len(body))
    return empty + b"\r\n".join([first, *kept]) + b"\r\n\r\n" + body


@given(heads, bodies, st.booleans())
def test_only_the_documented_rewrites_happen(head: bytes, body: bytes, as_view: bool) -> None:
    packet = head + b"\r\n\r\n" + body
    assert joined(memoryview(packet) if as_view else packet) == rewritten(head, body)


@given(st.binary(max_size=300))
def test_anything_at_all_keeps_its_bytes_in_order(packet: bytes) -> None:
    result = joined(packet)
    if result != packet:
        assert len(result) >= len(packet) - len(b"Expect:100-continue\r\n") * packet.count(b"\n")
        assert packet.lstrip(b"\r\n").find(b"\r\n\r\n") >= 0


LINES = [b"Expect: 100-continue", b"Accept: */*", b"X: y"]


@given(st.lists(st.sampled_from(LINES), unique=True), st.binary(min_size=1))
def test_another_parser_sees_one_request_with_that_body(lines: list[bytes], body: bytes) -> None:
    packet = b"\r\n".join([b"POST / HTTP/1.1", b"Host: h", *lines]) + b"\r\n\r\n" + body
    server = h11.Connection(h11.SERVER)
    server.receive_data(joined(packet))
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert not any(name == b"expect" for name, _ in request.headers)
    got = bytearray()
    while not isinstance(event := server.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        got += event.data
    assert got == body
    assert server.trailing_data == (b"", False)
