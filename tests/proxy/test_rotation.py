"""Trust roots, and the agent's certificate, that change under load: no request fails, and nothing old is used on."""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
import ssl

import pytest
import trustme

from agent.messages import Target
from agent.policy.api_server import ApiAccess
from agent.policy.trust import FileTrust

CHECK_S = 0.02
CLIENTS = 6


@pytest.fixture
def carrier() -> str:
    return "pipe"  # what the client's side runs on makes no difference here


class PlainFile:
    """A file that is replaced by renaming another over it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.path = directory / "ca.crt"

    def put(self, content: bytes) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(content)
        os.replace(new, self.path)


class KubeletVolume:
    """A file in a volume as kubelet keeps it: `ca.crt` → `..data/ca.crt`, and `..data` a symlink that is swapped."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._version = 0
        self.path = directory / "ca.crt"
        self.path.symlink_to("..data/ca.crt")

    def put(self, content: bytes) -> None:
        self._version += 1
        old = self._directory / f"..version{self._version - 1}"
        new = self._directory / f"..version{self._version}"
        new.mkdir()
        (new / "ca.crt").write_bytes(content)
        (self._directory / "..data_tmp").symlink_to(new.name)
        os.replace(self._directory / "..data_tmp", self._directory / "..data")
        if old.exists():
            (old / "ca.crt").unlink()
            old.rmdir()


class Load:
    """Clients that send requests without a pause. Each response must be right."""

    def __init__(self, h) -> None:
        self._h = h
        self._over = asyncio.Event()
        self.answers = 0

    async def _ask(self, slow: bool) -> None:
        client = await self._h.open()
        while not self._over.is_set():
            if slow:
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na")
                await asyncio.sleep(2 * CHECK_S)  # in flight while the files change
                client.send(b"bc")
            else:
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
            answer = await client.answer("POST")
            assert (answer.status, answer.body) == (200, b"abc"), answer
            self.answers += 1
            await asyncio.sleep(0)

    async def __aenter__(self):
        self._tasks = [asyncio.ensure_future(self._ask(number % 2 == 1)) for number in range(CLIENTS)]
        return self

    async def more(self) -> None:
        """Wait for 4 × CLIENTS further responses, so that each client gets some."""
        wanted = self.answers + 4 * CLIENTS
        async with asyncio.timeout(20):
            while self.answers < wanted:
                assert not any(task.done() for task in self._tasks), [task.exception() for task in self._tasks]
                await asyncio.sleep(CHECK_S)

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)


@pytest.mark.parametrize("kind", [PlainFile, KubeletVolume])
async def test_roots_rotate_under_load_without_a_failed_request(stack, origin, tmp_path, eventually, caplog, kind):
    old, new = trustme.CA(), trustme.CA()
    file = kind(tmp_path)
    file.put(old.cert_pem.bytes())
    trust = FileTrust([file.path], system_roots=False, check_interval_s=CHECK_S)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    old.issue_cert("127.0.0.1").configure_cert(server)

    async with (
        origin(ssl=server) as o,
        stack(o.url, ssl_context=trust.ssl_context, generation=lambda: trust.generation) as h,
        Load(h) as load,
    ):
        await load.more()
        first = o.connections
        assert first <= CLIENTS, "pooled"
        file.put(old.cert_pem.bytes() + new.cert_pem.bytes())
        await eventually(lambda: trust.generation == 1)
        await load.more()
        assert o.connections > first, "the old generation's connections are used no more"
        await eventually(lambda: o.open <= CLIENTS)

        new.issue_cert("127.0.0.1").configure_cert(server)  # of connections from now on
        file.put(b"-----BEGIN CERTIFICATE-----\nhalf a fi")
        await eventually(lambda: trust.problem)
        await load.more()
        errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [str(file.path) in record.files for record in errors] == [True], "one error in the log"
        assert trust.generation == 1, "the last good ones stay in force"

        second = o.connections
        file.put(new.cert_pem.bytes())
        await eventually(lambda: trust.generation == 2)
        await load.more()
        assert trust.problem is None
        assert o.connections > second, "connected again, with the new roots, which have issued the server's certificate"
        await eventually(lambda: o.open <= CLIENTS)


async def test_the_agents_certificate_rotates_under_load_without_a_failed_request(stack, origin, tmp_path, eventually):
    authority = trustme.CA()
    ca_file, certificate = PlainFile(tmp_path), tmp_path / "client.pem"
    ca_file.put(authority.cert_pem.bytes())
    shown = []

    def renew(name: str) -> None:
        issued = authority.issue_cert(name, common_name=name)
        new = tmp_path / "new"
        new.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        os.replace(new, certificate)

    renew("first")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    kubeconfig = tmp_path / "kubeconfig"

    async def echo(reader, writer):
        subject = dict(pair for part in writer.get_extra_info("peercert")["subject"] for pair in part)
        shown.append(subject["commonName"])
        while head := await reader.readuntil(b"\r\n\r\n"):
            assert b"Content-Length: 3" in head
            body = await reader.readexactly(3)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)

    async with origin(echo, ssl=server) as o:
        kubeconfig.write_text(
            f"""
            {{"apiVersion": "v1", "kind": "Config", "current-context": "it",
              "contexts": [{{"name": "it", "context": {{"cluster": "c", "user": "u"}}}}],
              "clusters": [{{"name": "c", "cluster":
                {{"server": "{o.url}", "certificate-authority": "{ca_file.path}"}}}}],
              "users": [{{"name": "u", "user":
                {{"client-certificate": "{certificate}", "client-key": "{certificate}"}}}}]}}
            """
        )
        access = ApiAccess.from_kubeconfig(str(kubeconfig), field="kubeconfig", check_interval_s=CHECK_S)

        def generation() -> int:
            access.refresh()
            return access.generation

        def route(head):
            return Target(o.url + head.target.decode(), client_identity="agent")

        async with (
            stack(route, ssl_context=lambda target: access.own_context(), generation=generation) as h,
            Load(h) as load,
        ):
            for name in ("first", "second", "third"):
                if name != "first":
                    renew(name)
                    await eventually(lambda: name in shown)  # noqa: B023
                await load.more()
                assert shown[-1] == name
                await eventually(lambda: o.open <= CLIENTS)
        assert set(shown) == {"first", "second", "third"}
