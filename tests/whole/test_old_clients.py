"""HTTP/1.0 in front of our hub, by real peers: nginx with its defaults (`proxy_pass` speaks 1.0), git, curl."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from ..limits import scaled
from .whole_cluster import Cluster
from .whole_peers import NginxServer, curl, nginx_before, program, until

pytestmark = pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)

REPOSITORY_BYTES = 40_000_000
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
)


async def git(*arguments: str, cwd: pathlib.Path, **more: str) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | more
    environ |= {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
        "NO_PROXY": "*",
    }
    process = await asyncio.create_subprocess_exec(
        program("git"),
        *arguments,
        cwd=cwd,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(scaled(90)):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.fixture(scope="module")
def git_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, bytes]]:
    """git's own HTTP backend behind nginx and fcgiwrap, with one repository of 40 MB. Gives (its URL, its content)."""
    root = tmp_path_factory.mktemp("git")
    content = random.Random(40).randbytes(REPOSITORY_BYTES)
    work = root / "work"
    work.mkdir()
    (work / "file").write_bytes(content)
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        asyncio.run(git("-c", "core.compression=0", *arguments, cwd=work))
    asyncio.run(git("clone", "-q", "--bare", str(work), str(root / "repository.git"), cwd=root))
    backend = subprocess.run([program("git"), "--exec-path"], capture_output=True, text=True, check=True)
    script = pathlib.Path(backend.stdout.strip()) / "git-http-backend"
    wrapper = subprocess.Popen([program("fcgiwrap"), "-s", f"unix:{root}/fcgi", "-c", "2"], start_new_session=True)
    server = NginxServer(
        root / "nginx",
        f"""location / {{
            fastcgi_pass unix:{root}/fcgi;
            fastcgi_param SCRIPT_FILENAME {script};
            fastcgi_param GIT_HTTP_EXPORT_ALL "";
            fastcgi_param GIT_PROJECT_ROOT {root};
            fastcgi_param PATH_INFO $uri;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param SERVER_PROTOCOL $server_protocol;
            fastcgi_param REMOTE_ADDR $remote_addr;
        }}""",
    )
    try:
        yield server.url, content
    finally:
        server.close()
        os.killpg(wrapper.pid, signal.SIGTERM)  # its children, too
        wrapper.wait(10)


@pytest.mark.loops("uvloop")
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_git_clones_a_repository_of_40_mb(
    cluster: Cluster, git_server: tuple[str, bytes], tmp_path: pathlib.Path, version: str
) -> None:
    url, content = git_server
    async with cluster.running(url) as whole, nginx_before(whole.http_port, tmp_path / "front") as front:
        base = front if version == "1.0" else f"http://127.0.0.1:{whole.http_port}"
        await git("clone", "-q", f"{base}/{whole.cluster}/repository.git", "copy", cwd=tmp_path)
        assert (tmp_path / "copy" / "file").read_bytes() == content


@contextlib.asynccontextmanager
async def streaming(*pieces: bytes) -> AsyncIterator[tuple[str, asyncio.Semaphore]]:
    """(URL, semaphore) of a target that sends a piece for each release of the semaphore, and then closes."""
    go_on = asyncio.Semaphore(0)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                await go_on.acquire()
                writer.write(piece)
                await writer.drain()
        writer.close()
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", go_on
    finally:
        server.close()
        for task in tasks:
            task.cancel()


def event(number: int) -> bytes:
    return b"9\r\ndata: %d\n\n\r\n" % number


@contextlib.asynccontextmanager
async def following(
    cluster: Cluster, url: str, directory: pathlib.Path, through: str
) -> AsyncIterator[tuple[pathlib.Path, asyncio.Future[tuple[int, bytes, bytes]]]]:
    """curl, which follows a stream by HTTP/1.0, or behind nginx with 1.0. Gives (its output file, its end)."""
    async with contextlib.AsyncExitStack() as stack:
        whole = await stack.enter_async_context(cluster.running(url))
        base, version = f"http://127.0.0.1:{whole.http_port}", "--http1.0"
        if through == "nginx":
            base = await stack.enter_async_context(nginx_before(whole.http_port, directory / "front"))
            version = "--http1.1"
        output = directory / "events"
        output.touch()
        yield output, asyncio.ensure_future(curl(version, "-N", "-o", str(output), f"{base}/{whole.cluster}/events"))


@pytest.mark.parametrize("through", ["nginx", "curl"])
async def test_events_come_as_they_come(cluster: Cluster, tmp_path: pathlib.Path, through: str) -> None:
    pieces = (CHUNKED + event(1), event(2), event(3) + b"0\r\n\r\n")
    async with streaming(*pieces) as (url, go_on), following(cluster, url, tmp_path, through) as (output, ended):
        for number in (1, 2, 3):
            go_on.release()
            await until(lambda: output.read_bytes().count(b"data: "), lambda found, number=number: found == number)
        assert await ended == (0, b"", b"")
        assert output.read_bytes() == b"".join(b"data: %d\n\n" % number for number in (1, 2, 3))


@pytest.mark.parametrize("through", ["nginx", "curl"])
async def test_a_stream_that_breaks_off_does_not_look_whole(
    cluster: Cluster, tmp_path: pathlib.Path, through: str
) -> None:
    pieces = (CHUNKED + event(1), event(2))
    async with streaming(*pieces) as (url, go_on), following(cluster, url, tmp_path, through) as (output, ended):
        go_on.release()
        await until(lambda: b"data: 1" in output.read_bytes())
        go_on.release()
        code, _, _ = await ended
        assert code in (18, 56), "a partial file, or a failure to receive"
