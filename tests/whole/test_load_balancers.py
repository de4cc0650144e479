"""Real load balancers in front of our hub: the user's address arrives, by PROXY headers or by X-Forwarded-For.

The user is at 127.0.0.2. The load balancer is at 127.0.0.1, and the hub trusts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trustme
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from agent.config.schema import HubConfig
from agent.hub.hub import Hub
from agent.proxy.forwarded_fields import _NAMES
from agent.proxy.origin import ClientOrigin

from .whole_cluster import RunningAgent, running_hub
from .whole_peers import START_TIMEOUT_S, NginxServer, Origin, curl, free_port, missing, program, running_origin, until

USER = "127.0.0.2"
SPOOFED = "192.0.2.66"
SPOOFS = ("-H", f"X-Real-IP: {SPOOFED}", "-H", f"X-Forwarded-Host: {SPOOFED}", "-H", "X-Forwarded-Proto: ftp")
MORE_NAMES = (
    *("X-Forwarded-Host", "X-Forwarded-Prefix", "X-Forwarded-User", "X-Forwarded-Groups", "X-Forwarded-Email"),
    *("X-Client-Cert", "X-SSL-Client-Verify", "SSL-Client-S-DN", "X-Forwarded-Client-Cert", "X_Real_IP", "X.Real.IP"),
)
ALL_SPOOFS = tuple(
    word for name in (*MORE_NAMES, *(each.decode() for each in _NAMES)) for word in ("-H", f"{name}: /{SPOOFED}")
)
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "operating.md"
TRUSTED: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",)}
BY_HEADER: dict[str, Any] = {**TRUSTED, "proxy_protocol": True}
STREAM_MODULE = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")


class LoadBalancer:
    """A program with a configuration, on a port of 127.0.0.1."""

    def __init__(self, directory: pathlib.Path, port: int, config: str, *command: str) -> None:
        self.port = port
        (directory / "config").write_text(config)
        log = directory / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen([program(command[0]), *command[1:]], stdout=output, stderr=output)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            assert time.monotonic() < deadline_s, log.read_text()
            assert self._process.poll() is None, log.read_text()
            time.sleep(0.01)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def haproxy(directory: pathlib.Path, *lines: str) -> LoadBalancer:
    """haproxy with one `listen` block of these lines, besides `bind`."""
    port = free_port()
    times = "\n  ".join(f"timeout {each} 30s" for each in ("connect", "client", "server"))
    listen = "\n  ".join((f"bind 127.0.0.1:{port}", *lines))
    config = f"global\n  nbthread 1\ndefaults\n  {times}\nlisten hub\n  {listen}\n"
    return LoadBalancer(directory, port, config, "haproxy", "-db", "-f", str(directory / "config"))


def nginx_stream(directory: pathlib.Path, *directives: str) -> LoadBalancer:
    """nginx with one server of its stream module."""
    if not STREAM_MODULE.exists():
        missing("nginx's stream module (libnginx-mod-stream)")
    port = free_port()
    server = " ".join((f"listen 127.0.0.1:{port};", *directives))
    config = f"""
        load_module {STREAM_MODULE}; daemon off; master_process off; pid {directory}/pid;
        error_log {directory}/error.log; events {{ worker_connections 1024; }}
        stream {{ server {{ {server} }} }}
    """
    command = ("nginx", "-c", str(directory / "config"), "-e", f"{directory}/error.log")
    return LoadBalancer(directory, port, config, *command)


def page_blocks(words: str) -> Iterator[str]:
    """The blocks of code in docs/operating.md behind these words."""
    if not PAGE.exists():
        pytest.skip("the checkout has no docs/operating.md")
    _, found, text = PAGE.read_text(encoding="utf-8").partition(words)
    assert found
    yield from re.findall(r"^```\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The files of a CA, and of the hub's certificate."""
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "hub.pem"))
    return str(folder / "ca.pem"), str(folder / "hub.pem")


@pytest.fixture
def origins(monkeypatch: pytest.MonkeyPatch) -> list[ClientOrigin]:
    """The origins that the door gives to the proxy."""
    seen: list[ClientOrigin] = []
    make = Hub._make_user_door

    def recording(hub: Hub, *arguments: Any) -> Any:
        door = make(hub, *arguments)
        protocol = door._protocol

        def record(origin: ClientOrigin) -> asyncio.Protocol:
            seen.append(origin)
            return protocol(origin)

        door._protocol = record
        return door

    monkeypatch.setattr(Hub, "_make_user_door", recording)
    return seen


@contextlib.asynccontextmanager
async def hub_with_agent(**config: Any) -> AsyncIterator[tuple[int, Origin]]:
    """(the hub's HTTP port, the target) of a hub with an agent."""
    async with running_origin() as origin, running_hub(**config) as (grpc_port, http_port):
        agent = RunningAgent(
            hub_address=f"127.0.0.1:{grpc_port}", cluster_name="c1", insecure=True, routes=(f"/={origin.url}",)
        )
        try:
            await agent.wait_ready()
            yield http_port, origin
        finally:
            await agent.stop()


async def get(url: str, *arguments: str) -> None:
    """GET by curl from the user's address, three requests on one connection."""
    done = await curl("--interface", USER, "-H", f"X-Forwarded-For: {SPOOFED}", *arguments, f"{url}/c1/[1-3]")
    assert done == (0, b"hello from the origin\n" * 3, b"")


def assert_fields(target: Origin, *, forwarded_for: str, proto: str, port: int) -> None:
    """The forwarding fields at the target."""
    names = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-port")
    assert [target.headers.get(name) for name in names] == [forwarded_for, proto, str(port)]


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
async def test_haproxy_sends_the_users_address_in_a_proxy_header(
    tmp_path: pathlib.Path,
    certificates: tuple[str, str],
    origins: list[ClientOrigin],
    send: str,
    is_tls: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """TLS passes through haproxy. Its checks of the hub cause no warning."""
    caplog.set_level(logging.DEBUG, "agent.hub.user_door")
    ca, certificate = certificates
    config = BY_HEADER | ({"http_cert_file": certificate} if is_tls else {})
    async with hub_with_agent(**config) as (port, target):
        server = f"server hub 127.0.0.1:{port} {send} check inter 50ms"
        identity = ("unique-id-format %pid-%rt",) if "unique-id" in send else ()
        front = await asyncio.to_thread(haproxy, tmp_path, "mode tcp", *identity, server)
        try:
            checks = "a proxy closed a connection before its PROXY header"
            scheme = "https" if is_tls else "http"
            await get(f"{scheme}://127.0.0.1:{front.port}", "--cacert", ca, *SPOOFS)
            users = [each for each in origins if each.peer == USER]
            assert [(each.scheme, each.port, each.is_trusted) for each in users] == [(scheme, front.port, False)]
            assert {each.peer for each in origins} <= {USER, "127.0.0.1"}  # LOCAL and UNKNOWN: of a check
            assert_fields(target, forwarded_for=USER, proto=scheme, port=front.port)
            assert SPOOFED not in "".join(target.headers.values())
            assert len(target.seen) == 3
            await until(lambda: len(origins) > 1 or checks in caplog.text or "TLS handshake failed" in caplog.text)
        finally:
            await asyncio.to_thread(front.close)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING and "door" in each.name]


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_nginx_sends_the_users_address_in_a_proxy_header(
    tmp_path: pathlib.Path, certificates: tuple[str, str], origins: list[ClientOrigin], is_tls: bool
) -> None:
    ca, certificate = certificates
    config = BY_HEADER | ({"http_cert_file": certificate} if is_tls else {})
    async with hub_with_agent(**config) as (port, target):
        directives = (f"proxy_pass 127.0.0.1:{port};", "proxy_protocol on;")
        front = await asyncio.to_thread(nginx_stream, tmp_path, *directives)
        try:
            scheme = "https" if is_tls else "http"
            await get(f"{scheme}://127.0.0.1:{front.port}", "--cacert", ca, *SPOOFS)
            users = [each for each in origins if each.peer == USER]
            assert [(each.scheme, each.port, each.is_trusted) for each in users] == [(scheme, front.port, False)]
            assert_fields(target, forwarded_for=USER, proto=scheme, port=front.port)
            assert SPOOFED not in "".join(target.headers.values())
        finally:
            await asyncio.to_thread(front.close)


async def test_haproxy_sends_the_users_address_in_a_field(tmp_path: pathlib.Path, origins: list[ClientOrigin]) -> None:
    """In HTTP mode, with the configuration of docs/operating.md. No forged field arrives."""
    block = next(page_blocks("haproxy, with TLS at haproxy."))
    lines = [line.strip() for line in block.splitlines()[1:] if "bind" not in line]
    async with hub_with_agent(**TRUSTED) as (port, target):
        lines[-1] = f"server hub 127.0.0.1:{port}"
        front = await asyncio.to_thread(haproxy, tmp_path, *lines)
        try:
            await get(f"http://127.0.0.1:{front.port}", *SPOOFS, *ALL_SPOOFS)
            assert {(each.peer, each.is_trusted) for each in origins} == {("127.0.0.1", True)}
            assert_fields(target, forwarded_for=f"{USER}, 127.0.0.1", proto="https", port=front.port)
            assert target.headers["host"] == target.headers["x-forwarded-host"] == f"127.0.0.1:{front.port}"
            assert SPOOFED not in "".join(target.headers.values())
        finally:
            await asyncio.to_thread(front.close)


async def test_nginx_sends_the_users_address_in_a_field(
    tmp_path: pathlib.Path, certificates: tuple[str, str], origins: list[ClientOrigin]
) -> None:
    """With the configuration of docs/operating.md, on another port than 443. No forged field arrives."""
    blocks = page_blocks("nginx, with TLS at nginx, in its `http` block.")
    http, fields = next(blocks), next(blocks)
    (tmp_path / "users_fields.conf").write_text(fields)
    ca, certificate = certificates
    async with hub_with_agent(**TRUSTED) as (port, target):
        for given, own in (
            ("/etc/nginx/users_fields.conf", str(tmp_path / "users_fields.conf")),
            ("/etc/nginx/hub.pem", certificate),
            ("/etc/nginx/hub.key", certificate),
            ("10.0.0.5:8080", f"127.0.0.1:{port}"),
            ("listen 443 ssl;", "listen 127.0.0.1:TLS_PORT ssl;"),
        ):
            assert given in http
            http = http.replace(given, own)
        tls_port = free_port()
        http = http.replace("TLS_PORT", str(tls_port))
        front = await asyncio.to_thread(NginxServer, tmp_path / "nginx", "return 404;", beside=http)
        try:
            await get(f"https://127.0.0.1:{tls_port}", "--cacert", ca, *SPOOFS, *ALL_SPOOFS)
            assert {(each.peer, each.is_trusted) for each in origins} == {("127.0.0.1", True)}
            assert_fields(target, forwarded_for=f"{USER}, 127.0.0.1", proto="https", port=tls_port)
            assert target.headers["host"] == target.headers["x-forwarded-host"] == f"127.0.0.1:{tls_port}"
            assert SPOOFED not in "".join(target.headers.values())
        finally:
            await asyncio.to_thread(front.close)


@pytest.mark.parametrize("proxies", [("127.0.0.1",), ("10.0.0.4", "127.0.0.1")], ids=["one", "two"])
async def test_frameworks_find_the_user_before_the_trusted_proxies(proxies: tuple[str, ...]) -> None:
    """With the lines of docs/web-apps.md. X-Forwarded-For has the user, then each trusted proxy."""
    user = "203.0.113.9"
    async with hub_with_agent(trusted_proxies=proxies) as (port, target):
        sent = ", ".join((SPOOFED, user, *proxies[:-1]))
        code, *_ = await curl("-H", f"X-Forwarded-For: {sent}", f"http://127.0.0.1:{port}/c1/")
        forwarded = target.headers["x-forwarded-for"]
    assert (code, forwarded) == (0, ", ".join((user, *proxies)))

    flask = ProxyFix(lambda environ, start: [environ["REMOTE_ADDR"].encode()], x_for=1 + len(proxies))
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": forwarded}
    assert list(flask(environ, lambda *_: lambda data: None)) == [user.encode()]

    scope: Any = {"type": "http", "client": ("127.0.0.1", 1), "scheme": "http"}
    scope["headers"] = [(b"x-forwarded-for", forwarded.encode()), (b"x-forwarded-proto", b"https")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["client"][0] == user

    await ProxyHeadersMiddleware(app, trusted_hosts="127.0.0.1,10.0.0.4")(scope, None, None)  # type: ignore[arg-type]


async def test_a_load_balancer_that_is_not_trusted_is_the_user(
    tmp_path: pathlib.Path, origins: list[ClientOrigin]
) -> None:
    config = HubConfig(trusted_proxies="127.0.0.3").trusted_proxies
    async with hub_with_agent(trusted_proxies=config) as (port, target):
        location = (
            f"location / {{ proxy_pass http://127.0.0.1:{port}; proxy_set_header X-Forwarded-For $remote_addr; }}"
        )
        front = await asyncio.to_thread(NginxServer, tmp_path, location)
        try:
            await get(front.url)
            assert {(each.peer, each.is_trusted) for each in origins} == {("127.0.0.1", False)}
            assert_fields(target, forwarded_for="127.0.0.1", proto="http", port=port)
        finally:
            await asyncio.to_thread(front.close)


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
async def test_a_proxy_header_from_a_stranger_never_reaches_an_agent(tmp_path: pathlib.Path, send: str) -> None:
    async with hub_with_agent(**BY_HEADER | {"trusted_proxies": "127.0.0.3"}) as (port, target):
        front = await asyncio.to_thread(haproxy, tmp_path, "mode tcp", f"server hub 127.0.0.1:{port} {send}")
        try:
            code, output, _ = await curl("-w", "%{http_code}", "-o", "/dev/null", f"http://127.0.0.1:{front.port}/c1/")
            assert (code, output) == (0, b"400")
            assert target.seen == []
        finally:
            await asyncio.to_thread(front.close)
