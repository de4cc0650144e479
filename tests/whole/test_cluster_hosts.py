"""Clusters by host, by path and by a parser. The real curl asks, over TLS with a wildcard certificate."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from agent import Agent, ConfigError, HubConfig, RequestHead
from agent.hub import known_clusters as known
from agent.hub.hub import Hub

from .whole_cluster import RunningAgent, running_hub
from .whole_peers import Origin, curl, running_origin

DOMAIN = "tunnel.example.com"
BY_HOST = {"cluster_from": "host", "cluster_domain": DOMAIN}


class Files:
    def __init__(self, directory: pathlib.Path) -> None:
        self.authority = trustme.CA()
        self.ca = str(directory / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)
        self.cert = str(directory / "hub.pem")
        names = (f"*.{DOMAIN}", DOMAIN, "127.0.0.1", "::1", "other.example.com", f"a.c1.{DOMAIN}")
        self.authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(self.cert)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("hosts"))


@pytest.fixture(autouse=True)
def started_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "STARTING_S", 0.0)


@contextlib.asynccontextmanager
async def agents_of(
    grpc_port: int, *, is_base: bool = False, prefix: str = "/", **targets: str
) -> AsyncIterator[dict[str, Agent]]:
    """An agent for each cluster by name, with its target's URL. is_base: agents without our extensions."""
    running = {}
    try:
        for name, url in targets.items():
            running[name] = agent = RunningAgent(
                hub_address=f"127.0.0.1:{grpc_port}",
                cluster_name=name.replace("_", "-"),
                insecure=True,
                routes=(f"{prefix}={url}",),
                use_memory_comm=True,
            )
            if is_base:
                agent.agent.tunnel_features = frozenset()  # before the task's first step
            await agent.wait_ready()
        yield {name: each.agent for name, each in running.items()}
    finally:
        for each in running.values():
            await each.stop()


class User:
    """Runs curl against the hub's HTTP port, whatever host the URL names."""

    def __init__(self, port: int, ca: str = "") -> None:
        self.port = port
        self._scheme = "https" if ca else "http"
        self._options = [*(["--cacert", ca] if ca else []), "--connect-to", f"::127.0.0.1:{port}"]

    async def __call__(self, host: str, path: str = "/", *options: str) -> tuple[int, str, str]:
        """(status, head, body)."""
        name, _, port = host.partition("@")
        url = f"{self._scheme}://{name}:{port or self.port}{path}"
        code, output, errors = await curl(*self._options, "-i", "--path-as-is", *options, url)
        assert code == 0, errors
        head, _, body = output.decode().partition("\r\n\r\n")
        return int(head.split()[1]), head, body


def seen(origin: Origin) -> list[str]:
    found = origin.seen.copy()
    origin.seen.clear()
    return found


@pytest.mark.parametrize("is_base", [False, True], ids=["our agents", "base agents"])
async def test_each_clusters_host_is_an_origin(files: Files, is_base: bool) -> None:
    async with (
        running_origin() as one,
        running_origin() as two,
        running_hub(http_cert_file=files.cert, **BY_HOST) as (grpc_port, http_port),
        agents_of(grpc_port, is_base=is_base, c1=one.url, c2=two.url, xn__bcher_kva=two.url),
    ):
        user = User(http_port, files.ca)
        for path in ("/", "/docs?q=1", "/c2/docs", "/api/v1/namespaces/default/pods?watch=true&limit=5", "/a//b", "/?"):
            assert (await user(f"c1.{DOMAIN}", path))[0] == 200
            assert seen(one) == [f"GET {path}"]
        assert one.headers.get("x-forwarded-host") == (None if is_base else f"c1.{DOMAIN}:{http_port}")
        assert one.headers.get("x-forwarded-prefix") == ("/c1" if is_base else None)
        assert (await user(f"c2.{DOMAIN}", "/x", "-X", "POST", "--data", "y"))[0] == 200
        assert (seen(one), seen(two)) == ([], ["POST /x"])
        for host in (f"C1.Tunnel.EXAMPLE.com@{http_port}", f"c1.{DOMAIN}.", f"c1.{DOMAIN}@443", f"c1.{DOMAIN}@1"):
            assert (await user(host, "/same"))[0] == 200
        assert seen(one) == ["GET /same"] * 4
        assert (await user(f"c1.{DOMAIN}", "/same", "--resolve", f"c1.{DOMAIN}:{http_port}:127.0.0.1"))[0] == 200
        assert (await user(f"xn--bcher-kva.{DOMAIN}", "/idn"))[0] == 200
        assert seen(two) == ["GET /idn"]
        assert (await user(f"c1.{DOMAIN}", "/", "-X", "OPTIONS", "--request-target", "*"))[0] == 204
        assert seen(one) == ["GET /same"]


async def test_a_routes_prefix_without_its_slash_is_redirected(files: Files) -> None:
    async with (
        running_origin() as origin,
        running_hub(http_cert_file=files.cert, **BY_HOST) as (grpc_port, http_port),
        agents_of(grpc_port, prefix="/files", c1=origin.url),
    ):
        user = User(http_port, files.ca)
        status, head, _ = await user(f"c1.{DOMAIN}", "/files?q=1", "--max-redirs", "0")
        assert (status, "\r\nlocation: /files/?q=1\r\n" in head.lower()) == (308, True)
        assert (await user(f"c1.{DOMAIN}", "/files/?q=1"))[0] == 200
        assert seen(origin) == ["GET /?q=1"]


async def test_other_hosts_are_refused_and_the_connection_closes(files: Files) -> None:
    async with (
        running_origin() as origin,
        running_hub(http_cert_file=files.cert, **BY_HOST) as (grpc_port, http_port),
        agents_of(grpc_port, c1=origin.url),
    ):
        user = User(http_port, files.ca)
        for host in ("127.0.0.1", "[::1]", "other.example.com", f"a.c1.{DOMAIN}"):
            status, head, body = await user(host, "/c1/", "--http1.1")
            assert (status, "connection: close" in head.lower()) == (421, True), host
            assert f"it must be <cluster>.{DOMAIN}" in body
        for host in (DOMAIN, f"c9.{DOMAIN}"):
            status, head, body = await user(host, "/c1/")
            assert (status, "connection: close" in head.lower()) == (404, False), host
            assert f"as in <cluster>.{DOMAIN}" in body
        status, head, _ = await user(f"c1.{DOMAIN}", "/", "-0", "-H", "Host:")
        assert (status, "connection: close" in head.lower()) == (421, True), "HTTP/1.0 without Host"
        assert seen(origin) == []


async def test_one_connection_serves_several_hosts_until_a_foreign_one() -> None:
    async with (
        running_origin() as one,
        running_origin() as two,
        asyncio.timeout(30),
        running_hub(**BY_HOST) as (grpc_port, http_port),
        agents_of(grpc_port, c1=one.url, c2=two.url),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
        for host in (f"c1.{DOMAIN}", f"c2.{DOMAIN}", f"c1.{DOMAIN}", "evil.example", f"c1.{DOMAIN}"):
            writer.write(f"GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answers = await reader.read()
        assert [answers.count(f" {status} ".encode()) for status in (200, 421)] == [3, 1]
        assert (len(one.seen), len(two.seen)) == (2, 1)
        writer.close()
        await writer.wait_closed()


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize("domain", [DOMAIN, "other.example.com"])
async def test_a_certificate_without_the_domain_is_a_warning_at_the_start(
    files: Files, domain: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_hub(http_cert_file=files.cert, cluster_from="host", cluster_domain=domain):
        pass
    found = [each.__dict__["missing"] for each in caplog.records if "host names" in each.getMessage()]
    assert found == ([] if domain == DOMAIN else [f"DNS:*.{domain}"])


def test_a_parser_given_in_python_and_clusters_by_host_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="must not be set with cluster_from = host"):
        Hub(HubConfig(cluster_from="host", cluster_domain=DOMAIN), cluster_parser=lambda head: "c1")


# -- parsers


def by_tenant(request: RequestHead) -> tuple[str, bytes]:
    _, _, tenant, rest = request.target.split(b"/", 3)
    return tenant.decode("ascii"), b"/" + rest


@pytest.mark.parametrize("is_base", [False, True], ids=["our agents", "base agents"])
async def test_a_parser_may_name_the_path_too(is_base: bool) -> None:
    async with (
        running_origin() as origin,
        running_hub(cluster_parser=by_tenant) as (grpc_port, http_port),
        agents_of(grpc_port, is_base=is_base, acme=origin.url),
    ):
        user = User(http_port)
        assert (await user("hub", "/t/acme/docs?q=/t/acme/"))[0] == 200
        assert seen(origin) == ["GET /docs?q=/t/acme/"]
        assert origin.headers["x-forwarded-prefix"] == ("/acme" if is_base else "/t/acme")


async def test_a_name_alone_gets_the_whole_path() -> None:
    async with (
        running_origin() as origin,
        running_hub(cluster_parser=lambda head: "c1") as (grpc_port, http_port),
        agents_of(grpc_port, c1=origin.url),
    ):
        user = User(http_port)
        for path in ("/", "/docs?q", "/c10/x"):
            assert (await user("hub", path))[0] == 200
            assert seen(origin) == [f"GET {path}"]
        assert (await user("hub", "/c1/docs"))[0] == 200
        assert seen(origin) == ["GET /docs"], "the name is in the path already"


@pytest.mark.parametrize("path", [b"/../c2/", b"no-slash", b"/a b", b"/x\r\nX: y", None, b"/#"])
async def test_a_parsers_wrong_path_is_a_503_and_one_line(path: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        running_origin() as origin,
        running_hub(cluster_parser=lambda head: ("c1", path)) as (grpc_port, http_port),
        agents_of(grpc_port, c1=origin.url),
    ):
        caplog.clear()
        assert (await User(http_port)("hub", "/x"))[0] == 503
        (record,) = [each for each in caplog.records if each.levelname in ("ERROR", "WARNING")]
        assert "cluster_parser must give a name and a path" in record.getMessage()
        assert record.exc_info is None
        assert seen(origin) == []


# -- the page at /


async def test_the_page_lists_the_connected_clusters() -> None:
    async with (
        running_origin() as origin,
        running_hub(index=True) as (grpc_port, http_port),
        agents_of(grpc_port, c2=origin.url, c1=origin.url),
    ):
        user = User(http_port)
        status, head, body = await user("hub", "/")
        assert status == 200
        assert '<a href="c1/">c1</a>' in body
        assert body.index("c1/") < body.index("c2/")
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
        assert fields["content-type"] == "text/html; charset=utf-8"
        assert fields["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"
        assert (fields["x-content-type-options"], fields["cache-control"]) == ("nosniff", "no-store")
        assert "/c1/\n/c2/" in (await user("hub", "/?x", "-H", "Accept: text/plain"))[2]
        status, head, body = await user("hub", "/", "-I")
        assert (status, body, "text/html" in head) == (200, "", True)
        assert (await user("hub", "/", "-X", "POST"))[0] == 404
        assert (await user("hub", "/favicon.ico"))[0] == 404
        assert (await user("hub", "/c1"))[0] == 308


@pytest.mark.loops("asyncio")
async def test_the_page_is_off_by_default() -> None:
    async with running_hub() as (_, http_port):
        status, _, body = await User(http_port)("hub", "/")
        assert (status, "as in /<cluster>/path" in body) == (404, True)


# -- isolation


@contextlib.asynccontextmanager
async def running_setter(*fields: tuple[str, str]) -> AsyncIterator[str]:
    """URL of a target that responds to everything with these fields, and with the request's Destination in its body."""

    async def handle(request: web.Request) -> web.Response:
        response = web.Response(text=request.headers.get("Destination", "none"))
        for name, value in fields:
            response.headers.add(name, value)
        return response

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


HOSTILE = (
    ("Set-Cookie", "wide=1; Domain=tunnel.example.com; Path=/"),
    ("Set-Cookie", "plain=1; HttpOnly"),
    ("Set-Cookie", "__Host-own=1; Path=/; Secure"),
    ("Alt-Svc", 'h3=":443"'),
    ("Clear-Site-Data", '"cookies"'),
    ("Service-Worker-Allowed", "/"),
    ("X-Other", "Path=/"),
)


@pytest.mark.parametrize("is_base", [False, True], ids=["our agents", "base agents"])
@pytest.mark.parametrize("is_by_host", [False, True], ids=["by path", "by host"])
async def test_a_response_reaches_no_other_cluster(
    is_by_host: bool, is_base: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running_setter(*HOSTILE) as url,
        running_hub(**(BY_HOST if is_by_host else {})) as (grpc_port, http_port),
        agents_of(grpc_port, is_base=is_base, c1=url),
        aiohttp.ClientSession() as client,
    ):
        path = "/x" if is_by_host else "/c1/x"
        for _ in range(2):
            async with client.get(
                f"http://127.0.0.1:{http_port}{path}", headers={"Host": f"c1.{DOMAIN}:{http_port}"}
            ) as answer:
                assert answer.status == 200
                cookies = answer.headers.getall("Set-Cookie")
                others = {name: answer.headers.get(name) for name in ("Alt-Svc", "Clear-Site-Data", "X-Other")}
                scope = answer.headers["Service-Worker-Allowed"]
    warned = [each for each in caplog.records if "__Host-" in each.getMessage()]
    if is_by_host:
        assert cookies == ["wide=1; Path=/", "plain=1; HttpOnly", "__Host-own=1; Path=/; Secure"]
        assert others == {"Alt-Svc": None, "Clear-Site-Data": '"cookies"', "X-Other": "Path=/"}
        assert scope == "/"
        assert warned == []
    else:
        assert cookies == ["wide=1; Path=/c1/", "plain=1; HttpOnly"]
        assert others == {"Alt-Svc": None, "Clear-Site-Data": None, "X-Other": "Path=/"}
        assert scope == "/c1/"
        assert [each.__dict__["cluster"] for each in warned] == ["c1"]


ODD = [
    b"a=1",
    b"b=1; Path=/",
    b'c=1; Path="/"',
    b"d=1; Path=/; Path",
    b"e=1; pAtH =  /x",
    b"f=1; Path=/c1/y/",
    b"g=1; Path=/c10",
]


async def test_the_jar_of_curl_has_no_cookie_above_the_prefix() -> None:
    async with (
        running_setter(*(("Set-Cookie", cookie.decode()) for cookie in ODD)) as url,
        running_hub() as (grpc_port, http_port),
        agents_of(grpc_port, c1=url),
    ):
        for options, path, default in (((), "/c1/docs/x", "/c1/docs"), (("-X", "POST"), "/c1", "/c1")):
            hub = f"http://127.0.0.1:{http_port}"
            code, output, errors = await curl("-o", "/dev/null", "-c", "-", *options, f"{hub}{path}")
            assert code == 0, errors
            rows = [line.split("\t") for line in output.decode().splitlines() if line.count("\t") == 6]
            paths = {row[5]: row[2].rstrip("/") for row in rows}
            assert paths.pop("d") in ("/c1", default)  # with or without the attribute that has no value
            assert paths == {"a": default, "b": "/c1", "c": "/c1", "e": "/c1/x", "f": "/c1/y", "g": "/c1/c10"}


async def test_a_destination_in_another_cluster_is_a_502() -> None:
    async with (
        running_setter() as url,
        running_hub() as (grpc_port, http_port),
        agents_of(grpc_port, c1=url, c2=url),
        aiohttp.ClientSession() as client,
    ):
        hub = f"http://127.0.0.1:{http_port}"
        for value, status in (
            (f"{hub}/c1/b", 200),
            ("/c1/b", 200),
            (f"{hub}/c2/b", 502),
            ("/c1/../c2/b", 502),
            ("http://other/c1/b", 502),
        ):
            async with client.request("MOVE", f"{hub}/c1/a", headers={"Destination": value}) as answer:
                text = await answer.text()
                assert answer.status == status, (value, text)
                assert ("the Destination is refused" in text) is (status == 502)
