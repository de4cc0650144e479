"""Well-formed requests reach the target in order. All else gets a response from the proxy."""

from __future__ import annotations

import asyncio

import pytest

from agent.errors import Refused
from agent.messages import Target
from agent.outcome import Kind, Stage

from ..own_responses import reason_of


async def test_a_get_goes_through_and_the_connection_stays(stack, origin):
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        for _ in range(3):
            answer = await client.get("/a?b=c")
            assert (answer.status, answer.body) == (200, b"OK")
        assert o.connections == 1, "the connection to the target is reused"
        assert [request.target for request, _ in o.requests] == [b"/a?b=c"] * 3


async def test_bodies_go_through_sized_and_chunked(stack, origin):
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 05\r\n\r\nhello")
        assert (await client.answer()).body == b"hello"
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\nhello\r\n")
        client.send(b'6;q="a b;\\"";z\r\n world\r\n0\r\nX-T: 1\r\n\r\n')
        assert (await client.answer()).body == b"hello world"
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer()).body == b""
        sized, chunked, empty = (request for request, _ in o.requests)
        assert (b"content-length", b"5") in sized.headers
        assert (b"transfer-encoding", b"chunked") in chunked.headers
        assert (b"content-length", b"0") in empty.headers


async def test_pipelined_requests_are_answered_in_order(stack, origin):
    async with origin() as o, stack(o.url, limits={"pipelined_bytes": 100}) as h:
        client = await h.open()
        count = 200
        head = b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n%04d"
        client.send(b"".join(head % (i, i) for i in range(count)))
        for i in range(count):
            assert (await client.answer()).body == b"%04d" % i
        assert [body for _, body in o.requests] == [b"%04d" % i for i in range(count)]


async def test_thousands_of_requests_answered_here_in_one_write(stack):
    def refuse(head):
        raise Refused(404, "no such route")

    async with stack(refuse) as h:
        client = await h.open()
        count = 3000
        client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n" * count)
        for _ in range(count):
            assert (await client.answer()).status == 404
            options = await client.answer()
            assert options.status == 204
            assert b"GET" in options.headers[b"allow"]


PLAIN_DOTS = [
    ("/repo/./Packages", "/repo/Packages"),
    ("/a/.", "/a/"),
    ("/.", "/"),
    ("/./", "/"),
    ("/a/./././b", "/a/b"),
    ("/./a/./b/.", "/a/b/"),
    ("/a//./b", "/a//b"),
    ("/a/./?x=/./y", "/a/?x=/./y"),
    ("/a/.?.", "/a/?."),
    ("/a/.b/./...", "/a/.b/..."),
    ("/a%20b/./%2Fc", "/a%20b/%2Fc"),
    ("/x?a=/./b/..", "/x?a=/./b/.."),
]
OTHER_DOTS = [
    "/a/../b",
    "/a/..",
    "/..",
    "/a/%2e/b",
    "/a/%2E",
    "/a/.%2e/b",
    "/a/%2e./b",
    "/a/.%2fb",
    "/a/.%5cb",
    "/a/.;x/b",
    "/a/.%3bx/b",
    "/a%2f./b",
    "/a%2f.",
    "/a%5c.",
    "/a/.%00/b",
    "/a/.%00",
    "/a/..%00/b",
    "/a/%2e%00",
    "/a/./..",
    "/./../a",
    "/a/././%2e/b",
]


async def test_a_plain_dot_segment_is_removed_before_anybody_sees_the_path(stack, origin):
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        for sent, path in PLAIN_DOTS * 2:
            assert (await client.get(sent)).status == 200, sent
            assert h.heads[-1].target == path.encode(), "what the policy sees"
            assert o.requests[-1][0].target == path.encode(), "what the target gets"


async def test_every_other_dot_segment_is_a_400(stack):
    async with stack("http://127.0.0.1:9") as h:
        for sent in OTHER_DOTS:
            client = await h.open()
            answer = await client.get(sent)
            assert (answer.status, b"dot segments" in answer.body) == (400, True), sent
        assert h.heads == []


async def test_a_tab_around_a_value_is_white_space(stack, origin):
    """RFC 9110, section 5.6.3: OWS is SP or HTAB, also behind what frames the body."""
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        for framing, body in (
            (b"Transfer-Encoding: chunked\t", b"2\r\nhi\r\n0\r\n\r\n"),
            (b"Transfer-Encoding:\tChunked \t", b"2\r\nhi\r\n0\r\n\r\n"),
            (b"Content-Length: 2\t", b"hi"),
            (b"Content-Length:\t2\t ", b"hi"),
        ):
            client.send(b"POST / HTTP/1.1\r\nHost: a\t\r\n" + framing + b"\r\nX: y\tz\t\r\n\r\n" + body)
            assert (await client.answer("POST")).body == b"hi", framing
            assert (b"x", b"y\tz") in o.requests[-1][0].headers


REFUSED = [
    (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    (b"GET /\r\nHost: a\r\n\r\n", 400),
    (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    (b"GET / RTSP/1.0\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"\r\n" * 9 + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\n\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", 400),
    (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
    (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    (b"FOOBAR / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"A" * 32 + b" / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"A" * 33 + b" / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"A" * 40, 400),
    (b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /../a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /a/.. HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /a/.;x/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /a/%2E%2e/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /a/.%2e?x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /a/..%2fb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /" + b"a" * 16384 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    (b"GET /" + b"a" * 100_000, 414),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"b" * 66_000 + b"\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: b\r\n" * 256 + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775808\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Host\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: content-length\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: AUTHORIZATION\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Impersonate-Extra-Scopes\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", 417),
    (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 65537\r\n\r\nhi", 400),
    (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n",
        400,
    ),
]


DISGUISED_FRAMING = [
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding: \x0cchunked",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding: chunked\0",
    b"X: y\rTransfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b" Transfer-Encoding: chunked",
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding: chunked\x85",
    b"Transfer-Encoding:\xa0chunked",
    b"Transfer-Encoding:\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\x7f",
    b"Transfer-Encoding: chunked;",
    b"Transfer-Encoding:: chunked",
    b"Transfer-Encoding= chunked",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer_Encoding: chunked",
    b"Content_Length: 5",
    b"content_length: 0",
    b"Content-Length: +5",
    b"Content-Length: 5 5",
    b"Content-Length: 1_0",
    b"Content-Length: -0",
    b"Content-Length: ",
    b"Content-Length: 5.0",
    b"Content-Length: 5e0",
    b"Content-Length: 5,",
    b"Content-Length: 5;",
    b"Content-Length: 5\0",
    b"Content-Length: 5\x0b",
    b"Content-Length: \xd9\xa5",
    b"Content-Length : 5",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\n 6",
    b"Host : b",
    b"HOST: b",
    b": y",
    b"X\0: y",
    b"X Y: z",
    b"X: \x01",
    b"X: \x1b[0m",
    b"X: \x7f",
]
REFUSED += [(b"POST / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n", 400) for line in DISGUISED_FRAMING]
REFUSED += [
    (b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET: / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, x\r\n\r\n", 417),
]


@pytest.mark.parametrize("split", ["whole", "bytewise"])
async def test_what_is_wrong_gets_its_answer_and_the_end(stack, eventually, split):
    async with stack("http://127.0.0.1:9") as h:
        for number, (sent, status) in enumerate(REFUSED):
            client = await h.open()
            if split == "whole":
                client.send(sent)
            else:
                step = 1 if len(sent) < 1000 else 997
                for at in range(0, len(sent), step):
                    if client.writer.transport.is_closing() or len(h.outcomes) > number:
                        break
                    client.send(sent[at : at + step])
                    await asyncio.sleep(0)
            answer = await client.answer()
            assert answer.status == status, sent[:100]
            assert answer.complete
            assert answer.headers[b"connection"] == b"close"
            assert await client.closed()
            await eventually(lambda: len(h.outcomes) > number)  # noqa: B023
            assert h.outcomes[number][1:] == (Kind.COMPLETE, Stage.IDLE)
            client.writer.transport.abort()
        assert h.heads == [], "none of them was routed"


BROKEN_CHUNKS = [
    b"5 \r\nhello\r\n",
    b"5;\r\nhello\r\n",
    b"0x5\r\nhello\r\n",
    b"-1\r\n",
    b"5\nhello\n",
    b"5\rhello",
    b"5\r\nhello!\r\n",
    b"FFFFFFFFFFFFFFFF\r\n",
    b"5;a[=b\r\nhello\r\n",
    b"5;" + b"a" * 5000 + b"\r\nhello",
    b'5;a="\x01"\r\n',
    b"0\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
    b"0\r\n" + b"X: y\r\n" * 65 + b"\r\n",
    b"0\r\nX : y\r\n\r\n",
    b"0\r\n\n",
    b"5\t\r\nhello\r\n",
    b"+5\r\nhello\r\n",
    b"0_5\r\nhello\r\n",
    b"\r\nhello\r\n",
    b"10000000000000005\r\nhello\r\n",
    b"5;a\nhello\r\n",
    b"5;a\rb\r\nhello\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"0\r\nX: y\r\n z\r\n\r\n",
    b"0\r\nX: y\n\r\n",
    b"0\r\nX y\r\n\r\n",
]


async def test_a_broken_chunk_is_a_400_and_never_completes_at_the_target(stack, origin):
    got = []

    async def target(reader, writer):
        try:
            while data := await reader.read(65536):
                got.append(data)
        except ConnectionError:
            pass

    async with origin(target) as o, stack(o.url) as h:
        for body in BROKEN_CHUNKS:
            client = await h.open()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n" + body)
            answer = await client.answer()
            assert answer.status == 400, body[:100]
            assert await client.closed()
    assert b"0\r\n\r\n" not in b"".join(got)


async def test_http_1_0_clients_are_served_and_closed(stack, origin):
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        answer = await client.answer()
        assert (answer.body, answer.headers[b"connection"]) == (b"OK", b"close")
        assert await client.closed()
        client = await h.open()
        for _ in range(2):
            client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = await client.answer()
            assert (answer.body, answer.headers[b"connection"]) == (b"OK", b"keep-alive")


async def test_hop_by_hop_fields_end_here(stack, origin):
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        more = (
            "Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n"
            "Proxy-Authorization: x\r\nTE: gzip, trailers;q=1\r\nTrailer: X\r\nUpgrade: h2c\r\nX-Kept: yes  \r\n"
            "X-Empty:\r\n"
        )
        assert (await client.get(more=more + "Connection: X-Other\r\nX-Other: 2\r\n")).status == 200
        request, _ = o.requests[0]
        assert list(request.headers)[:-1] == [(b"host", o.url[7:].encode()), (b"x-kept", b"yes"), (b"x-empty", b"")]
        assert list(request.headers)[-1][0] == b"x-request-id"
        assert (await client.get(more="TE: trailers\r\n")).status == 200
        request, _ = o.requests[1]
        assert (b"te", b"trailers") in request.headers
        assert (b"connection", b"TE") in request.headers


async def test_the_clients_host_is_kept_where_the_target_says_so(stack, origin):
    async with origin() as o, stack(lambda head: Target(o.url + "/x", preserve_host=True)) as h:
        client = await h.open()
        await client.get("/y")
        request, _ = o.requests[0]
        assert (request.target, dict(request.headers)[b"host"]) == (b"/x", b"client")


async def test_route_and_process_may_be_awaited_and_may_refuse(stack, origin):
    async def process(head, target):
        await asyncio.sleep(0)
        if b"no" in head.target:
            raise Refused(401, "who are you?")
        head.headers.append((b"X-Identity", b"agent"))
        return head

    async with origin() as o:

        async def route(head):
            await asyncio.sleep(0)
            if b"elsewhere" in head.target:
                raise Refused(421, "another cluster")
            return Target(o.url)

        async with stack(route, process=process) as h:
            client = await h.open()
            assert (await client.get()).status == 200
            assert (b"x-identity", b"agent") in o.requests[0][0].headers
            client.send(b"POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
            answer = await client.answer()
            assert (answer.status, reason_of(answer.body)) == (401, b"who are you?\n")
            assert (await client.get("/elsewhere")).status == 421
            assert await client.closed()
            assert len(o.requests) == 1


async def test_an_error_in_the_policy_is_a_503_without_its_text(stack, caplog):
    def route(head):
        raise RuntimeError("secret")

    async with stack(route) as h:
        client = await h.open()
        answer = await client.get()
        assert answer.status == 503
        assert b"secret" not in answer.body
        assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_past_max_connections_the_first_request_is_a_503(stack, origin):
    async with origin() as o, stack(o.url, max_connections=1) as h:
        first = await h.open()
        assert (await first.get()).status == 200
        second = await h.open()
        answer = await second.get()
        assert (answer.status, answer.headers[b"retry-after"]) == (503, b"1")
        assert await second.closed()
        assert (await first.get()).status == 200


async def test_draining_ends_idle_connections_and_lets_the_rest_finish(stack, origin, eventually):
    gate = asyncio.Event()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
        await reader.read()

    async with origin(target) as o, stack(o.url) as h:
        idle, busy = await h.open(), await h.open()
        busy.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: o.connections == 1 and h.proxy.open_connections == 2)
        h.proxy.start_draining()
        assert await idle.closed()
        assert not await h.proxy.wait_drained(0.01)
        if h.carrier != "pipe":
            late = await h.open()
            assert (await late.get()).status == 503
        gate.set()
        answer = await busy.answer()
        assert (answer.body, answer.headers[b"connection"]) == (b"OK", b"close")
        assert await busy.closed()
        assert await h.proxy.wait_drained(5)
        assert {outcome[1:] for outcome in h.outcomes} == {(Kind.COMPLETE, Stage.IDLE)}


async def test_a_half_closed_client_still_gets_its_answers(stack, origin):
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        client.writer.write_eof()
        assert (await client.answer()).body == b"OK"
        assert (await client.answer()).body == b"OK"
        assert await client.closed()
        assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HT",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
async def test_a_request_cut_short_is_a_400(stack, origin, sent):
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        client.send(sent)
        client.writer.write_eof()
        assert (await client.answer()).status == 400
        assert await client.closed()
        assert o.requests == []
