"""The real `kubectl` through hub and agent, over SPDY/3.1 and over WebSockets: exec, cp, port-forward, logs, get -w.

The tests are skipped without kubectl. It is no Debian or PyPI package, so not every machine can have it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import random
import shutil
import signal
import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from ..limits import scaled
from .kube_end import POD, KubeEnd, running_kube_end
from .whole_cluster import Cluster
from .whole_peers import nginx_before

KUBECTL = shutil.which("kubectl") or ""
pytestmark = [
    pytest.mark.skipif(not KUBECTL, reason="kubectl is not installed, and these tests drive the real one"),
    pytest.mark.loops("uvloop"),  # what takes its time here is kubectl: the upgrades' own tests run on both
]

TIMEOUT_S = scaled(30.0)
DATA = random.Random(5).randbytes(600_000)


class Kubectl:
    """Runs kubectl against one cluster behind a hub. transport: what exec and port-forward are made to speak. url: of
    the cluster's root.
    """

    def __init__(self, url: str, end: KubeEnd, transport: str, home: pathlib.Path) -> None:
        self.end = end
        self.upgrade = "websocket" if transport == "websocket" else "SPDY/3.1"
        websockets = "true" if transport == "websocket" else "false"
        self._command = [KUBECTL, "--server", url, "--namespace", "default"]
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "KUBECONFIG": "/dev/null",
            "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": websockets,
            "KUBECTL_PORT_FORWARD_WEBSOCKETS": websockets,
        }

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *self._command, *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment
        )

    async def __call__(self, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """(exit code, standard output, standard error)."""
        process = await self.start(*arguments)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                output, errors = await process.communicate(stdin)
        except TimeoutError:
            process.kill()
            output, errors = await process.communicate()
            raise AssertionError(f"kubectl {arguments} hangs: {output[-500:]!r} {errors!r}") from None
        assert process.returncode is not None
        return process.returncode, output, errors

    @contextlib.asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A kubectl that runs until the end of the block."""
        process = await self.start(*arguments)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)  # then it closes its streams
            await process.communicate()


@pytest.fixture(params=["spdy", "websocket"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def running_kubectl(
    cluster: Cluster, directory: pathlib.Path, transport: str, *, through_nginx: bool = False
) -> AsyncIterator[Kubectl]:
    """through_nginx: nginx is in front of the hub and speaks HTTP/1.0 to it."""
    authority = trustme.CA()
    ca_file = directory / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with contextlib.AsyncExitStack() as stack:
        end = await stack.enter_async_context(running_kube_end(context))
        whole = await stack.enter_async_context(cluster.running(end.url, target_ca_file=str(ca_file)))
        url = whole.url
        if through_nginx:
            front = nginx_before(whole.http_port, directory / "front", "proxy_buffering off;")
            url = f"{await stack.enter_async_context(front)}/{whole.cluster}"
        yield Kubectl(url, end, transport, directory)


async def test_exec_carries_input_its_end_both_outputs_and_the_exit_code(
    cluster: Cluster, tmp_path: pathlib.Path, transport: str
) -> None:
    async with running_kubectl(cluster, tmp_path, transport) as kubectl:
        code, output, errors = await kubectl("exec", "-i", "p", "--", "cat", stdin=DATA)
        assert (code, errors) == (0, b"")
        assert output == DATA, "cat has written all, and has ended: so it saw its input's end"
        assert kubectl.end.stdin_ended == 1
        code, output, errors = await kubectl("exec", "p", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
        assert (code, output) == (7, b"out\n")
        assert errors.startswith(b"err\n")
        exec_path = "/api/v1/namespaces/default/pods/p/exec"
        method = "GET" if transport == "websocket" else "POST"
        assert kubectl.end.seen.count(f"{method} {exec_path} {kubectl.upgrade}") == 2, kubectl.end.seen


async def test_cp_takes_files_there_and_back(cluster: Cluster, tmp_path: pathlib.Path, transport: str) -> None:
    here, there, back = tmp_path / "here", tmp_path / "there", tmp_path / "back"
    there.mkdir()
    here.write_bytes(DATA)
    async with running_kubectl(cluster, tmp_path, transport) as kubectl:
        code, _, errors = await kubectl("cp", str(here), f"p:{there}/file")
        assert code == 0, errors
        assert (there / "file").read_bytes() == DATA
        code, _, errors = await kubectl("cp", f"p:{there}/file", str(back))
        assert code == 0, errors
        assert back.read_bytes() == DATA


async def test_port_forward_carries_each_connection_and_each_ones_end(
    cluster: Cluster, tmp_path: pathlib.Path, transport: str
) -> None:
    async def backwards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])  # all, so to the client's end
        writer.close()

    server = await asyncio.start_server(backwards, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, running_kubectl(cluster, tmp_path, transport) as kubectl:
        async with kubectl.running("port-forward", "--address", "127.0.0.1", "pod/p", f":{port}") as process:
            assert process.stdout is not None
            said = (await process.stdout.readline()).decode()
            local = int(said.split("127.0.0.1:")[1].split(" ")[0])

            async def one(data: bytes) -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", local)
                writer.write(data)
                writer.write_eof()
                assert await reader.read() == data[::-1]
                writer.close()

            await asyncio.gather(*(one(DATA[start : start + 50_000]) for start in range(0, 200_000, 50_000)))
        forward_path = "/api/v1/namespaces/default/pods/p/portforward"
        assert [each for each in kubectl.end.seen if forward_path in each] == [
            f"{'GET' if transport == 'websocket' else 'POST'} {forward_path} {kubectl.upgrade}"
        ]


async def test_logs_and_watches_arrive_line_by_line(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    await _logs_and_watches(cluster, tmp_path, through_nginx=False)


@pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)
async def test_logs_and_watches_pass_an_nginx_that_speaks_1_0(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    await _logs_and_watches(cluster, tmp_path, through_nginx=True)


async def _logs_and_watches(cluster: Cluster, directory: pathlib.Path, *, through_nginx: bool) -> None:
    async with running_kubectl(cluster, directory, "spdy", through_nginx=through_nginx) as kubectl:
        async with kubectl.running("logs", "-f", "p") as process:
            assert process.stdout is not None
            for number in range(5):
                line = b"line %d\n" % number
                kubectl.end.logs.put_nowait(line)
                assert await process.stdout.readline() == line, "each before the next is written"
            kubectl.end.logs.put_nowait(None)
            assert await process.wait() == 0
        async with kubectl.running("get", "pods", "-w", "-o", "name") as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"pod/p\n"
            for number in range(5):
                metadata = POD["metadata"] | {"name": f"p{number}", "resourceVersion": str(number + 2)}
                kubectl.end.events.put_nowait({"type": "ADDED", "object": POD | {"metadata": metadata}})
                assert await process.stdout.readline() == b"pod/p%d\n" % number
            kubectl.end.events.put_nowait(None)


async def test_a_pod_that_is_not_there_is_what_the_api_server_says(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    async with running_kubectl(cluster, tmp_path, "spdy") as kubectl:
        code, _, errors = await kubectl("exec", "nobody", "--", "true")
        assert code == 1
        assert b"NotFound" in errors
