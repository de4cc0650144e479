"""kube-apiserver's egress selector dials through the hub: its code by `FASTPIPE_GO=1`, and its very bytes in each run.

`egress_selector/main.go` is kube-apiserver's dialer around `k8s.io/apiserver`. The configurations are those of
docs/kubernetes.md, with this test's paths and ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import subprocess
import tomllib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme

from ..limits import scaled
from .test_listeners import listening
from .whole_connect import tcp_target
from .whole_peers import program

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "kubernetes.md"
SOURCE = pathlib.Path(__file__).parent / "egress_selector"
BUILD_S = 600.0  # k8s.io/apiserver has 60 modules


def blocks(kind: str) -> list[str]:
    """The examples of one language in the page's section, the Unix socket's first."""
    section = PAGE.read_text("utf-8").partition("## Egress of the control plane")[2].partition("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def files(tmp_path: pathlib.Path) -> dict[str, str]:
    """The files of the page, and their paths here."""
    hubs, apiservers = trustme.CA(), trustme.CA()
    hub, apiserver = hubs.issue_cert("127.0.0.1"), apiservers.issue_cert("kube-apiserver")
    for name, blob in (
        ("hub.pem", hub.cert_chain_pems[0]),
        ("hub-key.pem", hub.private_key_pem),
        ("hub-ca.pem", hubs.cert_pem),
        ("apiserver.pem", apiserver.cert_chain_pems[0]),
        ("apiserver-key.pem", apiserver.private_key_pem),
        ("apiservers-ca.pem", apiservers.cert_pem),
    ):
        blob.write_to_path(str(tmp_path / name))
    return {"/etc/fastpipe": str(tmp_path), "/run/fastpipe": str(tmp_path)}


def here(text: str, files: dict[str, str], port: int = 0) -> str:
    for path, own in files.items():
        text = text.replace(path, own)
    return text.replace('":8131"', '"127.0.0.1:0"').replace("hub.example.com:8131", f"127.0.0.1:{port}")


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.readline()).upper())


@contextlib.asynccontextmanager
async def from_the_page(files: dict[str, str]) -> AsyncIterator[tuple[Any, str]]:
    """The hub with both listeners of the page, and a target that the agent allows."""
    async with tcp_target(shout) as port:
        listeners = [tomllib.loads(here(each, files))["listeners"][0] for each in blocks("toml")]
        assert [each["address"].partition(":")[0] for each in listeners] == ["unix", "127.0.0.1"]
        async with listening("memory", listeners, [f"127.0.0.1:{port}"]) as running:
            yield running, f"127.0.0.1:{port}"


@pytest.mark.loops("uvloop")
async def test_the_bytes_of_kube_apiserver_open_a_tunnel(files: dict[str, str]) -> None:
    """`tunnelHTTPConnect` writes exactly this, with a Host that is not the target's (egress_selector.go)."""
    async with from_the_page(files) as (running, target):
        reader, writer = await asyncio.open_unix_connection(running.hub.connect_ports.ports[0].listener.path)
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        # A byte behind the head before the client has spoken is an error there.
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        writer.write(b"hello\n")
        assert await reader.read() == b"HELLO\n"
        writer.close()
        reader, writer = await asyncio.open_unix_connection(running.hub.connect_ports.ports[0].listener.path)
        writer.write(b"CONNECT 10.1.2.3:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
        writer.close()


@pytest.mark.loops("uvloop")
@pytest.mark.timeout(BUILD_S + 60)
@pytest.mark.skipif(os.environ.get("FASTPIPE_GO", "0") in ("", "0"), reason="FASTPIPE_GO=1 builds k8s.io/apiserver")
async def test_kube_apiserver_s_own_dialer_reaches_targets_by_both_transports(
    files: dict[str, str], tmp_path: pathlib.Path
) -> None:
    dialer = str(tmp_path / "dialer")
    build = (program("go"), "build", "-o", dialer, ".")
    await asyncio.to_thread(subprocess.run, build, cwd=SOURCE, check=True, timeout=BUILD_S)

    async def dial(config: str, target: str) -> tuple[int, bytes, bytes]:
        path = tmp_path / "egress.yaml"
        path.write_text(config)
        process = await asyncio.create_subprocess_exec(
            *(dialer, str(path), "cluster", target),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(scaled(30)):
            out, error = await process.communicate(b"hello\n")
        assert process.returncode is not None
        return process.returncode, out, error

    async with from_the_page(files) as (running, target):
        for config in blocks("yaml"):
            assert await dial(here(config, files, running.ports[1]), target) == (0, b"HELLO\n", b"")
            code, out, error = await dial(here(config, files, running.ports[1]), "10.1.2.3:10250")
            assert (code, out) == (1, b"")
            assert b"code 403" in error
        # Another CA's certificate is no way in.
        stranger = trustme.CA().issue_cert("stranger")
        stranger.cert_chain_pems[0].write_to_path(str(tmp_path / "apiserver.pem"))
        stranger.private_key_pem.write_to_path(str(tmp_path / "apiserver-key.pem"))
        code, out, _ = await dial(here(blocks("yaml")[1], files, running.ports[1]), target)
        assert (code, out) == (1, b"")
