"""HTTP/2 towards real targets: nginx, nghttpd, hypercorn and grpcio, over TLS and without."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from typing import Any

import pytest
import trustme

from agent.messages import Target

from .http2_origin import Asked, http2_origin

Stacks = Callable[..., Any]
Eventually = Callable[..., Awaitable[None]]
Origins = Callable[..., contextlib.AbstractAsyncContextManager[Any]]


@pytest.fixture(params=["unix", "pipe"])
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def started(command: list[str], port: int, **named: Any) -> subprocess.Popen[bytes]:
    """A process that listens on a port."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **named)
    for _ in range(1000):
        assert process.poll() is None, command
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    raise AssertionError(command)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The files of a certificate of 127.0.0.1 and of its key."""
    issued = authority.issue_cert("127.0.0.1")
    root = tmp_path_factory.mktemp("certificate")
    for name, content in (("cert", issued.cert_chain_pems[0].bytes()), ("key", issued.private_key_pem.bytes())):
        (root / name).write_bytes(content)
    return str(root / "cert"), str(root / "key")


@pytest.fixture
def context(authority: trustme.CA) -> Callable[[Target], ssl.SSLContext]:
    made = ssl.create_default_context()
    authority.configure_trust(made)
    return lambda target: made


def server_context(authority: trustme.CA, *alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@pytest.fixture(scope="module")
def nginx_http2(certificate: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nginx with TLS and HTTP/2: `/` → OK with the protocol, `/big` 4 MiB, `/upload` takes bodies."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not pathlib.Path(program).exists():
        pytest.fail("nginx is missing: apt-get install nginx-light")
    root = tmp_path_factory.mktemp("nginx")
    (root / "big").write_bytes(bytes(range(256)) * 16384)
    (root / "put").mkdir()
    port = free_port()
    (root / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
        events {{ worker_connections 512; }}
        http {{
            access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
            uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; client_max_body_size 0; keepalive_requests 50;
            server {{
                listen 127.0.0.1:{port} ssl http2;
                ssl_certificate {certificate[0]}; ssl_certificate_key {certificate[1]};
                location = / {{ default_type text/plain; return 200 "$server_protocol $host"; }}
                location /upload {{ dav_methods PUT; root {root}/put; create_full_put_path on; }}
                location / {{ root {root}; }}
            }}
        }}""")
    process = started([program, "-c", f"{root}/nginx.conf", "-e", f"{root}/error.log"], port)
    yield f"127.0.0.1:{port}"
    process.kill()
    process.wait()


async def test_nginx_over_tls(stack: Stacks, nginx_http2: str, context: Any) -> None:
    async with stack(f"h2://{nginx_http2}", ssl_context=context) as running:
        client = await running.open()
        answer = await client.get()
        assert answer.body == b"HTTP/2.0 127.0.0.1"
        assert (await client.get("/big")).body == bytes(range(256)) * 16384
        client.send(b"PUT /upload/a HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000))
        assert (await client.answer("PUT")).status in (201, 204)  # new, or written again
        assert (await client.get("/none")).status == 404
        assert (await client.get(method="HEAD")).body == b""


async def test_a_burst_survives_nginx_that_closes_every_50_requests(
    stack: Stacks, nginx_http2: str, context: Any
) -> None:
    """nginx sends GOAWAY with its 50th response. No request is lost."""
    async with stack(f"h2://{nginx_http2}", ssl_context=context) as running:

        async def ask() -> None:
            client = await running.open()
            for _ in range(10):
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
                assert (await client.answer("POST")).status == 200

        await asyncio.gather(*[ask() for _ in range(16)])


@pytest.mark.parametrize("alpn", [("h2", "http/1.1"), ("http/1.1",), ()])
async def test_https_speaks_what_the_target_chooses(
    stack: Stacks, authority: trustme.CA, context: Any, origin: Origins, alpn: tuple[str, ...]
) -> None:
    tls = server_context(authority, *alpn)

    def route(url: str) -> Any:
        return lambda head: Target(url, http2=True)

    if "h2" in alpn:
        made = http2_origin(context=tls, scheme="https")
        async with made as target, stack(route(target.url), ssl_context=context) as running:
            client = await running.open()
            for _ in range(3):
                assert (await client.get()).body == b"ok"
            assert target.asked[0][b":scheme"] == b"https"
            assert len(target.sessions) == 1
        return
    async with origin(ssl=tls) as plain, stack(route(plain.url), ssl_context=context) as running:
        clients = [await running.open() for _ in range(3)]
        answers = await asyncio.gather(*[client.get() for client in clients for _ in range(1)])
        assert [answer.body for answer in answers] == [b"OK"] * 3
        assert (await clients[0].get()).body == b"OK"
        assert plain.connections == 3


async def test_https_stays_http1_without_the_setting(stack: Stacks, nginx_http2: str, context: Any) -> None:
    async with stack(f"https://{nginx_http2}", ssl_context=context) as running:
        assert (await (await running.open()).get()).body == b"HTTP/1.1 127.0.0.1"


async def test_h2_without_alpn_is_a_502(stack: Stacks, authority: trustme.CA, context: Any, origin: Origins) -> None:
    def route(head: Any) -> Target:
        return Target(plain.url.replace("https", "h2"))

    async with origin(ssl=server_context(authority)) as plain, stack(route, ssl_context=context) as running:
        answer = await (await running.open()).get()
        assert answer.status == 502
        assert b"did not choose HTTP/2 by ALPN" in answer.body
        assert not plain.requests


async def test_an_untrusted_certificate_is_a_502(stack: Stacks, nginx_http2: str) -> None:
    strict = ssl.create_default_context()
    async with stack(f"h2://{nginx_http2}", ssl_context=lambda target: strict) as running:
        answer = await (await running.open()).get()
        assert answer.status == 502
        assert b"certificate" in answer.body


async def test_a_closed_port_is_a_502(stack: Stacks) -> None:
    async with stack(f"h2c://127.0.0.1:{free_port()}") as running:
        clients = [await running.open() for _ in range(3)]
        answers = await asyncio.gather(*[client.get() for client in clients])
        assert [answer.status for answer in answers] == [502] * 3
        assert b"refused the connection" in answers[0].body


@pytest.mark.parametrize("tls", [False, True], ids=["h2c", "h2"])
async def test_nghttpd(
    stack: Stacks, tls: bool, certificate: tuple[str, str], context: Any, tmp_path: pathlib.Path
) -> None:
    program = shutil.which("nghttpd")
    if program is None:
        pytest.fail("nghttpd is missing: apt-get install nghttp2-server")
    (tmp_path / "big").write_bytes(bytes(range(256)) * 16384)
    port = free_port()
    more = [certificate[1], certificate[0]] if tls else []
    command = [program, "-d", str(tmp_path), "--trailer", "x-trailer: 1", "-m", "3", "--address=127.0.0.1"]
    process = started([*command, *([] if tls else ["--no-tls"]), str(port), *more], port)
    try:
        async with stack(f"{'h2' if tls else 'h2c'}://127.0.0.1:{port}", ssl_context=context) as running:
            clients = [await running.open() for _ in range(12)]  # three on each connection
            answers = await asyncio.gather(
                *[client.get("/big", more="TE: trailers\r\nConnection: TE\r\n") for client in clients]
            )
            assert all(answer.body == bytes(range(256)) * 16384 for answer in answers)
            assert answers[0].trailers == [(b"x-trailer", b"1")]
            assert running.upstreams.open_connections == 4
    finally:
        process.kill()
        process.wait()


async def test_grpcio(stack: Stacks) -> None:
    """A unary call, and one that streams both ways at once."""
    grpc = pytest.importorskip("grpc")

    def both_ways(messages: Any, context: Any) -> Any:
        for message in messages:
            yield message.upper()
        context.set_trailing_metadata((("x-end-bin", b"\0\1"),))

    def refuse(message: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "none")
        return b""

    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(lambda message, context: message[::-1]),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
        "Both": grpc.stream_stream_rpc_method_handler(both_ways),
    }
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peer.Service", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    head = (
        "POST /peer.Service/{} HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n"
        "TE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n"
    )

    def chunk(message: bytes) -> bytes:
        return b"%x\r\n\0%b%b\r\n" % (len(message) + 5, len(message).to_bytes(4, "big"), message)

    try:
        async with stack(f"h2c://127.0.0.1:{port}") as running:
            client = await running.open()
            client.send(head.format("Unary").encode() + chunk(b"abc") + b"0\r\n\r\n")
            answer = await client.answer("POST")
            assert (answer.body, dict(answer.trailers)[b"grpc-status"]) == (b"\0\0\0\0\3cba", b"0")
            client.send(head.format("Both").encode())
            for word in (b"one", b"two", b"three"):
                client.send(chunk(word))
                await client.read_until(chunk(word.upper()))
            client.send(b"0\r\n\r\n")
            assert b"grpc-status: 0\r\n" in await client.read_until(b"\r\n\r\n")
            client.send(head.format("Refuse").encode() + chunk(b"abc") + b"0\r\n\r\n")
            answer = await client.answer("POST")
            fields = {**answer.headers, **dict(answer.trailers)}
            assert (answer.status, fields[b"grpc-status"], fields[b"grpc-message"]) == (200, b"5", b"none")
            assert running.upstreams.open_connections == 1
    finally:
        await asyncio.to_thread(server.stop(None).wait)


# -- WebSockets

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "chat" if scope["subprotocols"] else None})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": scope["http_version"] + " " + message["text"]})
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    head = [(b"x-version", scope["http_version"].encode()), (b"x-path", scope["path"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    for _ in range(3):
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body"})
"""


@pytest.fixture(scope="module")
def hypercorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("hypercorn")
    (root / "peer_app.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "hypercorn", "--bind", f"127.0.0.1:{port}", "peer_app:app"]
    process = started(command, port, cwd=root)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


KEY = base64.b64encode(bytes(16)).decode()
WEBSOCKET = (
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
).encode()
ACCEPT = b"ICX+Yqv66kxgM0FcWaLWlFLwTAI="


async def test_hypercorn_and_its_websocket(stack: Stacks, hypercorn: str, eventually: Eventually) -> None:
    async with stack(f"h2c://{hypercorn}") as running:
        client = await running.open()
        client.send(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        answer = await client.answer("POST")
        assert (answer.headers[b"x-version"], answer.body) == (b"2", b"hello" * 3)
        client.send(WEBSOCKET)
        head = (await client.read_until(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 101 ")
        assert b"sec-websocket-accept: " + ACCEPT.lower() in head
        assert b"sec-websocket-protocol: chat" in head
        client.send(b"\x81\x82\0\0\0\0hi")
        assert await client.read_until(b"hi") == b"\x81\x042 hi"
        client.send(b"\x88\x82\0\0\0\0\x03\xe8")  # close, 1000
        assert await client.read_until(b"\x88\x02\x03\xe8")
        client.writer.transport.abort()  # hypercorn leaves the stream open until then, and may close the connection
        await eventually(lambda: running.upstreams.idle_connections == running.upstreams.open_connections)


async def test_a_websocket_to_a_target_without_extended_connect_is_a_502(stack: Stacks) -> None:
    async with http2_origin() as target, stack(target.url) as running:
        client = await running.open()
        client.send(WEBSOCKET)
        answer = await client.switched()
        assert answer.status == 502
        assert b"does not take WebSockets" in answer.body
        assert not target.asked


@pytest.mark.parametrize("token", ["SPDY/3.1", "custom"])
async def test_another_upgrade_is_a_502_or_a_plain_request(stack: Stacks, token: str) -> None:
    async with http2_origin() as target, stack(target.url) as running:
        client = await running.open()
        answer = await client.get(more=f"Connection: Upgrade\r\nUpgrade: {token}\r\n")
        assert answer.status == (502 if token == "SPDY/3.1" else 200)
        assert len(target.asked) == (token == "custom")


async def test_an_upgrade_to_https_takes_http1(
    stack: Stacks, authority: trustme.CA, context: Any, origin: Origins, answering: Any
) -> None:
    seen: list[bytes] = []
    handler = answering(b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi", seen=seen)

    def route(head: Any) -> Target:
        return Target(plain.url, http2=True)

    tls = server_context(authority, "h2", "http/1.1")
    async with origin(handler, ssl=tls) as plain, stack(route, ssl_context=context) as running:
        client = await running.open()
        client.send(WEBSOCKET)
        assert await client.read_until(b"hi")
        assert b"sec-websocket-key" in seen[0].lower()


def echoing(closes_at: bytes = b"") -> Callable[[Asked], Awaitable[None]]:
    async def handler(asked: Asked) -> None:
        asked.head([(b":status", b"200"), (b"x-a", b"1")])
        sent = 0
        while True:
            body = await asked.has(sent + 1)
            asked.data(body[sent:], end=body.endswith(closes_at) if closes_at else False)
            sent = len(body)
            if closes_at and body.endswith(closes_at):
                return

    return handler


async def test_a_tunnel_by_extended_connect_ends_each_way_alone(stack: Stacks, eventually: Eventually) -> None:
    async with http2_origin(echoing(b"bye"), settings={8: 1}) as target, stack(target.url) as running:
        client = await running.open()
        client.send(WEBSOCKET + b"early")
        head = await client.read_until(b"\r\n\r\n")
        assert b"Sec-WebSocket-Accept: " in head or b"sec-websocket-accept: " in head
        assert await client.read_until(b"early")
        asked = target.asked[0]
        assert asked.fields[:5] == [
            (b":method", b"CONNECT"),
            (b":scheme", b"http"),
            (b":authority", target.url.removeprefix("h2c://").encode()),
            (b":path", b"/chat"),
            (b":protocol", b"websocket"),
        ]
        assert b"sec-websocket-key" not in asked
        assert asked[b"sec-websocket-version"] == b"13"
        client.send(b"bye")
        assert await client.read_all() == b"bye"
        client.writer.transport.abort()
        await eventually(lambda: running.upstreams.idle_connections == 1)


async def test_a_lost_end_of_a_tunnel_ends_the_other(stack: Stacks, eventually: Eventually) -> None:
    async with http2_origin(echoing(), settings={8: 1}) as target, stack(target.url) as running:
        client = await running.open()
        client.send(WEBSOCKET + b"a")
        await client.read_until(b"a")
        client.writer.transport.abort()
        assert await target.asked[0].was_reset() == 8  # CANCEL
        client = await running.open()
        client.send(WEBSOCKET + b"a")
        await client.read_until(b"\r\n\r\na")
        target.asked[1].kill(2)
        assert await client.read_all() == b""
        await eventually(lambda: running.upstreams.idle_connections == 1)


async def test_a_tunnel_waits_for_a_slow_end(stack: Stacks, eventually: Eventually) -> None:
    async def handler(asked: Asked) -> None:
        asked.head([(b":status", b"200")])

    async with http2_origin(handler, settings={8: 1}) as target, stack(target.url) as running:
        target.consumes = False
        client = await running.open()
        client.send(WEBSOCKET)
        await client.read_until(b"\r\n\r\n")
        client.send(bytes(4_000_000))
        await eventually(lambda: len(target.asked[0].body) == 65535)
        target.asked[0].kill(2)
        assert not any(await client.read_all())


async def test_a_websocket_that_the_target_refuses(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        asked.head([(b":status", b"403"), (b"content-length", b"2")])
        asked.data(b"no", end=True)

    async with http2_origin(handler, settings={8: 1}) as target, stack(target.url) as running:
        client = await running.open()
        client.send(WEBSOCKET)
        answer = await client.switched()
        assert (answer.status, answer.body) == (403, b"no")
        assert await target.asked[0].was_reset() == 0  # NO_ERROR
        assert (await client.get()).status == 403
