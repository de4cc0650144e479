"""grpcio's server or client of a service, in its own process. Messages are bytes, so nothing is compiled.

`python grpc_peers.py server [KEY CERT]` and `python grpc_peers.py client` print JSON with their ports, and exit at the
end of their standard input. Each connection to the port `orders` sends one order at a time, a line of JSON. It gets
one line back. An error in a line is {"failed": TEXT}.

No test process runs grpcio: gRPC's core is process-wide (see `grpc_client.py`).
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

SERVICE = "/fastpipe.test.Peer/"
CHATTING = 10
"""Messages of a stream until the server reports that it is in the middle."""

MAX_LINE_BYTES = 64 * 1024 * 1024
UNBOUNDED: list[tuple[str, Any]] = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def message(stream: int, number: int, size: int) -> bytes:
    """A message that no other message of a run is equal to."""
    return (b"%d/%d;" % (stream, number)).ljust(size, b".")[: max(size, 16)]


def contents(path: str) -> bytes:
    return pathlib.Path(path).read_bytes()


def written(metadata: Any) -> list[list[Any]]:
    """Metadata as JSON has it. Bytes are in a list."""
    return [
        [name, [base64.b64encode(value).decode()] if isinstance(value, bytes) else value]
        for name, value in metadata or ()
    ]


def read(metadata: list[list[Any]]) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((name, base64.b64decode(value[0]) if isinstance(value, list) else value) for name, value in metadata)


class Server:
    """The service. Orders: `event` waits for the next event, `release` lets held calls end, `peak` counts calls."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.released = asyncio.Event()
        self.running = self.peak = 0
        self.handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Refuse": grpc.stream_stream_rpc_method_handler(self.refuse),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "Generate": grpc.unary_stream_rpc_method_handler(self.generate),
            "End": grpc.unary_unary_rpc_method_handler(self.end),
            "EndStream": grpc.unary_stream_rpc_method_handler(self.end_stream),
            "Metadata": grpc.unary_unary_rpc_method_handler(self.metadata),
            "Hold": grpc.unary_unary_rpc_method_handler(self.hold),
            "HoldStream": grpc.unary_stream_rpc_method_handler(self.hold_stream),
        }

    def service(self, details: Any) -> Any:
        return self.handlers.get(details.method.rpartition("/")[2])

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "event":
                return await self.events.get()
            case "release":
                self.released.set()
            case "peak":
                return {"peak": self.peak}
            case "again":
                self.released.clear()
                self.peak = 0
                while not self.events.empty():
                    self.events.get_nowait()
        return {}

    async def close(self) -> None:
        pass

    def say(self, event: str) -> None:
        self.events.put_nowait({"event": event, "at_s": time.monotonic()})

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        number = 0
        async for request in requests:
            yield request
            number += 1
            if number == CHATTING:
                self.say("chatting")

    async def refuse(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """End the call in the middle of its messages."""
        async for request in requests:
            yield request
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "no more")

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        count, digest = 0, hashlib.sha256()
        async for request in requests:
            count += 1
            digest.update(request)
        return b"%d %s" % (count, digest.hexdigest().encode())

    async def generate(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        wanted = json.loads(request)
        for number in range(wanted["messages"]):
            yield message(wanted["stream"], number, wanted["size"])

    async def end(self, request: bytes, context: Any) -> bytes:
        wanted = json.loads(request)
        if wanted["code"] == 0:
            context.set_trailing_metadata(read(wanted["trailing"]))
            return b"ok"
        code = next(code for code in grpc.StatusCode if code.value[0] == wanted["code"])
        await context.abort(code, wanted["message"], read(wanted["trailing"]))
        raise AssertionError

    async def end_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await self.end(request, context)

    async def metadata(self, request: bytes, context: Any) -> bytes:
        found = context.invocation_metadata()
        own = tuple((name, value) for name, value in found if name.startswith("x-own"))
        await context.send_initial_metadata(own)
        context.set_trailing_metadata(own)
        return json.dumps([written(found), context.peer(), context.time_remaining()]).encode()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self.running += 1
        self.peak = max(self.peak, self.running)
        self.say("arrived")
        try:
            yield
        except asyncio.CancelledError:
            self.say("cancelled")
            raise
        finally:
            self.running -= 1

    async def hold(self, request: bytes, context: Any) -> bytes:
        with self.counted():
            await self.released.wait()
        return request

    async def hold_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        with self.counted():
            yield b"one"
            await self.released.wait()


class Client:
    """The calls of one connection, on one channel."""

    def __init__(self) -> None:
        self.channel: Any = None
        self.prefix = SERVICE
        self.call: Any = None

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        do = order.pop("do")
        found: dict[str, Any] = await getattr(self, f"do_{do}")(**order)
        return found

    async def close(self) -> None:
        if self.channel is not None:
            await self.channel.close()

    async def do_open(self, target: str, prefix: str, ca: str, options: list[list[Any]]) -> dict[str, Any]:
        """Open the channel. Nothing is retried, so each failure is seen."""
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
        arguments = [*UNBOUNDED, *own, *map(tuple, options)]
        self.prefix = prefix + SERVICE
        if ca:
            credentials = grpc.ssl_channel_credentials(contents(ca))
            self.channel = grpc.aio.secure_channel(target, credentials, options=arguments)
        else:
            self.channel = grpc.aio.insecure_channel(target, options=arguments)
        return {}

    async def do_echoes(self, calls: int, size: int, at_once: int, method: str = "Echo") -> dict[str, Any]:
        """Unary calls, so many at once. Each has its own message, and gets that one."""
        call = self.channel.unary_unary(self.prefix + method)
        codes: collections.Counter[str] = collections.Counter()
        wrong = 0
        left = iter(range(calls))

        async def work() -> None:
            nonlocal wrong
            for number in left:
                sent = message(0, number, size)
                try:
                    received = await call(sent, timeout=100)
                except grpc.aio.AioRpcError as error:
                    codes[error.code().name] += 1
                    continue
                codes["OK"] += 1
                wrong += received != sent

        await asyncio.gather(*(work() for _ in range(at_once)))
        return {"codes": codes, "wrong": wrong}

    async def do_chats(
        self, streams: int, messages: int, size: int, ahead: int, method: str = "Chat"
    ) -> dict[str, Any]:
        """Streams both ways at once. ahead: how many messages are sent without a response, 1 for ping-pong."""
        kind = self.channel.stream_stream(self.prefix + method)
        codes: collections.Counter[str] = collections.Counter()
        details: collections.Counter[str] = collections.Counter()
        wrong = received = 0

        async def work(stream: int) -> None:
            nonlocal wrong, received
            call = kind()
            room = asyncio.Semaphore(ahead)

            async def write() -> None:
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    for number in range(messages):
                        await room.acquire()
                        await call.write(message(stream, number, size))
                    await call.done_writing()

            writing = asyncio.ensure_future(write())
            try:
                number = 0
                while (found := await call.read()) is not grpc.aio.EOF:
                    wrong += found != message(stream, number, size)
                    number += 1
                    received += 1
                    room.release()
            except grpc.aio.AioRpcError:
                pass
            writing.cancel()
            await asyncio.wait([writing])
            codes[(await call.code()).name] += 1
            details[await call.details()] += 1

        await asyncio.gather(*(work(stream) for stream in range(streams)))
        return {"codes": codes, "wrong": wrong, "received": received, "details": details}

    async def do_collect(self, messages: int, size: int) -> dict[str, Any]:
        digest = hashlib.sha256()

        async def sent() -> AsyncIterator[bytes]:
            for number in range(messages):
                digest.update(message(0, number, size))
                yield message(0, number, size)

        response = await self.channel.stream_unary(self.prefix + "Collect")(sent())
        return {"right": response.decode() == f"{messages} {digest.hexdigest()}"}

    async def do_generate(self, messages: int, size: int, pause_s: float = 0) -> dict[str, Any]:
        asked = json.dumps({"messages": messages, "size": size, "stream": 3}).encode()
        number = wrong = 0
        async for received in self.channel.unary_stream(self.prefix + "Generate")(asked):
            if number == 0 and pause_s:
                await asyncio.sleep(pause_s)
            wrong += received != message(3, number, size)
            number += 1
        return {"received": number, "wrong": wrong}

    async def do_start(
        self,
        method: str,
        metadata: list[list[Any]],
        body: str = "",
        streams: bool = False,
        timeout_s: float | None = None,
        compression: str = "",
    ) -> dict[str, Any]:
        """Begin a call, for `result` and `cancel`."""
        kind = self.channel.unary_stream if streams else self.channel.unary_unary
        arguments = {"compression": getattr(grpc.Compression, compression)} if compression else {}
        self.call = kind(self.prefix + method)(body.encode(), timeout=timeout_s, metadata=read(metadata), **arguments)
        return {}

    async def do_first(self) -> dict[str, Any]:
        """The first message of a stream."""
        found = await self.call.read()
        return {"message": None if found is grpc.aio.EOF else found.decode()}

    async def do_cancel(self) -> dict[str, Any]:
        self.call.cancel()
        return {"at_s": time.monotonic()}

    async def do_result(self) -> dict[str, Any]:
        """How the call ended."""
        response = ""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            if hasattr(self.call, "read"):
                while (await self.call.read()) is not grpc.aio.EOF:
                    pass
            else:
                response = (await self.call).decode()
        return {
            "code": (await self.call.code()).value[0],
            "details": await self.call.details(),
            "initial": written(await self.call.initial_metadata()),
            "trailing": written(await self.call.trailing_metadata()),
            "response": response,
            "at_s": time.monotonic(),
        }


async def serve_orders(make: Any, first: dict[str, int]) -> None:
    """Serve orders until the end of standard input. first: ports to print beside the orders' own."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = make()

        async def obey() -> None:
            while line := await reader.readline():
                try:
                    found = await peer.obey(json.loads(line))
                except Exception as error:
                    found = {"failed": repr(error)}
                writer.write(json.dumps(found).encode() + b"\n")
                await writer.drain()

        with contextlib.suppress(OSError):
            await obey()
        await peer.close()
        writer.close()

    orders = await asyncio.start_server(serve, "127.0.0.1", 0, limit=MAX_LINE_BYTES)
    print(json.dumps(first | {"orders": orders.sockets[0].getsockname()[1]}), flush=True)
    standard_input = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(standard_input), sys.stdin)
    await standard_input.read()
    orders.close()


async def run_server(key_file: str, cert_file: str) -> None:
    """One service on two ports: plaintext, and TLS if there is a certificate."""
    service = Server()
    server = grpc.aio.server(options=[*UNBOUNDED, ("grpc.max_concurrent_streams", 10_000), ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((service,))
    ports = {"plain": server.add_insecure_port("127.0.0.1:0")}
    if key_file:
        pair = (contents(key_file), contents(cert_file))
        ports["tls"] = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    await serve_orders(lambda: service, ports)
    await server.stop(0)


async def main() -> None:
    role, *files = sys.argv[1:]
    if role == "server":
        await run_server(*(files or ("", "")))
    else:
        await serve_orders(Client, {})


if __name__ == "__main__":
    asyncio.run(main())
