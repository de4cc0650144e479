"""The API server's end that `kubectl` talks to: pods whose commands are real processes, streams as Kubernetes has them.

`exec` comes as SPDY/3.1 or as a v5.channel.k8s.io WebSocket, `port-forward` as SPDY/3.1, bare or inside a WebSocket.
Everything else is HTTP/1.1 read by h11. The test itself decides what a log or a watch sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side
from websockets.utils import accept_key

from .kube_spdy import SpdySession, SpdyStream

STDIN, STDOUT, STDERR, ERROR = range(4)
CLOSE_CHANNEL = 255
PIECE_BYTES = 32 * 1024

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "default", "uid": "1", "resourceVersion": "1"},
    "spec": {"containers": [{"name": "c", "image": "i"}]},
    "status": {"phase": "Running"},
}
DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "pods",
                "singularName": "pod",
                "namespaced": True,
                "kind": "Pod",
                "shortNames": ["po"],
                "verbs": ["get", "list", "watch"],
            }
        ],
    },
}


def exit_status(code: int) -> bytes:
    """The exit code of a command, as an API server reports it."""
    if code == 0:
        return json.dumps({"metadata": {}, "status": "Success"}).encode()
    details = {"causes": [{"reason": "ExitCode", "message": str(code)}]}
    failed = {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": f"exit code {code}"}
    return json.dumps(failed | {"details": details}).encode()


class Wire:
    """An upgraded connection's bytes, those first that came with its head."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> None:
        self._reader, self._writer, self._first = reader, writer, first

    async def read(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        return await self._reader.read(65536)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


class Messages:
    """A WebSocket's binary messages on a wire, framed by the websockets package."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._protocol = Protocol(Side.SERVER, max_size=None)
        self._message = b""
        self._whole: list[bytes] = []
        self._writing = asyncio.Lock()
        self.close_code: int | None = None

    async def read(self) -> bytes:
        """The next message, b"" after the close."""
        while not self._whole and self.close_code is None:
            data = await self._wire.read()
            if not data:
                return b""
            self._protocol.receive_data(data)
            for frame in self._protocol.events_received():
                assert isinstance(frame, Frame)
                if frame.opcode in (Opcode.BINARY, Opcode.CONT):
                    self._message += bytes(frame.data)
                    if frame.fin:
                        self._whole += [self._message] if self._message else []  # port-forward sends empty ones, too
                        self._message = b""
            await self._flush()  # the responses to pings and to the close
            if self._protocol.close_rcvd is not None:
                self.close_code = self._protocol.close_rcvd.code
        return self._whole.pop(0) if self._whole else b""

    async def write(self, data: bytes) -> None:
        self._protocol.send_binary(data)
        await self._flush()

    async def close(self) -> None:
        self._protocol.send_close(1000)
        await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            for data in self._protocol.data_to_send():
                if data:
                    await self._wire.write(data)


async def pump(read: Callable[[int], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]) -> None:
    while data := await read(PIECE_BYTES):
        await write(data)


class KubeEnd:
    """One pod, "p".

    seen: "METHOD path", and the protocol of an upgrade.
    logs: the lines for `logs -f`. None ends them.
    events: the objects for `get -w`. None ends them.
    stdin_ended: how many commands have seen the end of their input.
    """

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[str] = []
        self.logs: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.stdin_ended = 0
        self._running: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    # -- HTTP

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from the agent."""
        parser = h11.Connection(h11.SERVER)
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage):
                headers: dict[str, str] = {}
                for name, value in request.headers:  # of several lines, one list
                    headers[name.decode()] = ",".join([*filter(None, [headers.get(name.decode())]), value.decode()])
                upgrade = headers.get("upgrade", "")
                path = urlsplit(request.target).path.decode()
                self.seen.append(f"{request.method.decode()} {path} {upgrade}".strip())
                if upgrade:
                    await self._upgrade(parser, request.target.decode(), headers, reader, writer)
                    return
                await self._answer(parser, request.target.decode(), writer)
                if parser.our_state is not h11.DONE:
                    return
                parser.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                return

    async def _answer(self, parser: h11.Connection, target: str, writer: asyncio.StreamWriter) -> None:
        async def send(*events: Any) -> None:
            writer.write(b"".join(parser.send(event) or b"" for event in events))
            await writer.drain()

        url = urlsplit(target)
        asked = parse_qs(url.query)
        queue: asyncio.Queue[Any] | None = None
        found: Any = DISCOVERY.get(url.path)
        if url.path == "/api/v1/namespaces/default/pods/p":
            found = POD
        elif url.path == "/api/v1/namespaces/default/pods":
            found = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [POD]}
            queue = self.events if "watch" in asked else None
        elif url.path == "/api/v1/namespaces/default/pods/p/log":
            queue = self.logs
        if queue is not None:
            await send(h11.Response(status_code=200, headers=[("Content-Type", "application/json")]))
            while (item := await queue.get()) is not None:
                await send(h11.Data(data=item if isinstance(item, bytes) else json.dumps(item).encode() + b"\n"))
            await send(h11.EndOfMessage())
            return
        status = 404 if found is None else 200
        failure = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(found or failure).encode()
        fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        await send(h11.Response(status_code=status, headers=fields), h11.Data(data=body), h11.EndOfMessage())

    async def _upgrade(
        self,
        parser: h11.Connection,
        target: str,
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        url = urlsplit(target)
        is_exec = url.path.endswith("/exec")
        answer = [("Connection", "Upgrade"), ("Upgrade", headers["upgrade"])]
        if headers["upgrade"] == "websocket":
            wanted = "v5.channel.k8s.io" if is_exec else "SPDY/3.1+portforward.k8s.io"
            assert wanted in headers["sec-websocket-protocol"].replace(" ", "").split(",")
            answer.append(("Sec-WebSocket-Accept", accept_key(headers["sec-websocket-key"])))
            answer.append(("Sec-WebSocket-Protocol", wanted))
        else:
            wanted = "v4.channel.k8s.io" if is_exec else "portforward.k8s.io"
            assert wanted in headers["x-stream-protocol-version"].replace(" ", "").split(",")
            answer.append(("X-Stream-Protocol-Version", wanted))
        writer.write(parser.send(h11.InformationalResponse(status_code=101, headers=answer)) or b"")
        wire = Wire(reader, writer, parser.trailing_data[0])
        command = parse_qs(url.query).get("command", [])
        if headers["upgrade"] == "websocket":
            messages = Messages(wire)
            if is_exec:
                await self._exec_by_messages(messages, command)
            else:
                await self._forward(messages.read, messages.write)
        elif is_exec:
            await self._exec_by_streams(wire, command, parse_qs(url.query))
        else:
            await self._forward(wire.read, wire.write)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    # -- exec

    async def _run(
        self,
        command: list[str],
        stdin: Callable[[int], Awaitable[bytes]],
        stdout: Callable[[bytes], Awaitable[None]],
        stderr: Callable[[bytes], Awaitable[None]],
    ) -> int:
        """Run a command between these streams. Returns its exit code."""
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        into = process.stdin

        async def feed() -> None:
            with contextlib.suppress(ConnectionError):  # it ended without reading on
                while data := await stdin(PIECE_BYTES):
                    into.write(data)
                    await into.drain()
                self.stdin_ended += 1
            into.close()

        feeding = asyncio.ensure_future(feed())
        try:
            await asyncio.gather(pump(process.stdout.read, stdout), pump(process.stderr.read, stderr))
            return await process.wait()
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
            if process.returncode is None:
                process.kill()
                await process.wait()
            into.close()

    async def _exec_by_messages(self, messages: Messages, command: list[str]) -> None:
        stdin = asyncio.StreamReader(limit=1 << 22)

        async def receive() -> None:
            while message := await messages.read():
                if message[0] == STDIN:
                    stdin.feed_data(message[1:])
                elif message[0] == CLOSE_CHANNEL:
                    assert message[1:] == bytes([STDIN])
                    stdin.feed_eof()

        receiving = asyncio.ensure_future(receive())
        try:
            code = await self._run(
                command,
                stdin.read,
                lambda data: messages.write(bytes([STDOUT]) + data),
                lambda data: messages.write(bytes([STDERR]) + data),
            )
            await messages.write(bytes([ERROR]) + exit_status(code))
            await messages.close()
            await receiving
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])

    async def _exec_by_streams(self, wire: Wire, command: list[str], asked: dict[str, list[str]]) -> None:
        streams: dict[str, SpdyStream] = {}
        wanted = {"error"} | {name for name in ("stdin", "stdout", "stderr") if asked.get(name) == ["true"]}
        all_there = asyncio.Event()

        def opened(stream: SpdyStream) -> None:
            streams[stream.headers["streamtype"]] = stream
            if wanted <= set(streams):
                all_there.set()

        async def nothing(_: int) -> bytes:
            return b""

        async def execute() -> None:
            await all_there.wait()
            stdin = streams["stdin"].reader.read if "stdin" in streams else nothing
            code = await self._run(command, stdin, streams["stdout"].write, streams["stderr"].write)
            await streams["error"].write(exit_status(code))
            for stream in streams.values():
                await stream.finish()

        session = SpdySession(wire.read, wire.write, opened)
        executing = asyncio.ensure_future(execute())
        try:
            await session.run()
        finally:
            executing.cancel()
            await asyncio.wait([executing])
            if not executing.cancelled():
                executing.result()

    # -- port-forward

    async def _forward(self, read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]) -> None:
        errors: dict[str, SpdyStream] = {}

        def opened(stream: SpdyStream) -> None:
            if stream.headers["streamtype"] == "error":
                errors[stream.headers["requestid"]] = stream
            else:
                self._spawn(carry(stream))

        async def carry(stream: SpdyStream) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(stream.headers["port"]))

            async def to_pod() -> None:
                while data := await stream.reader.read(PIECE_BYTES):
                    writer.write(data)
                    await writer.drain()
                writer.write_eof()

            try:
                await asyncio.gather(to_pod(), pump(reader.read, stream.write))
                await stream.finish()
                await errors[stream.headers["requestid"]].finish()
            finally:
                writer.transport.abort()

        await SpdySession(read, write, opened).run()

    async def stop(self) -> None:
        for task in list(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)


@contextlib.asynccontextmanager
async def running_kube_end(context: ssl.SSLContext) -> AsyncIterator[KubeEnd]:
    """The end, with TLS, on a free port."""
    end = KubeEnd()
    tasks: set[asyncio.Task[None]] = set()
    errors: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await end.serve(reader, writer)
        except BaseException as error:
            errors.append(error)
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    end.port = server.sockets[0].getsockname()[1]
    try:
        yield end
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await end.stop()
        for error in errors:  # whatever else has failed, failed because of it
            raise error
