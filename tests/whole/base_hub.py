"""A base hub as one process, faults included. It follows the "Base protocol" of wire.md, as a hub in Go does.

    client ── TCP ──► HTTP port ── first request re-written, then raw bytes ──► gRPC stream ──► agent

gRPC is grpcio's C core. h11 reads HTTP, and the messages are compiled from the .proto. The hub uses nothing of `agent`.
`python base_hub.py [--go SECONDS] [CERT KEY]` prints `grpc PORT` and `http PORT`. It then responds to each command line
on standard input with one line of JSON. It exits at the end of its standard input.

`--go SECONDS` keeps the faults that end a hub written in Go. Without it one hub serves many tests, so it keeps only the
faults that hurt one connection. The code repeats the numbers beside each fault:

    F1  A hub lists a client's connection until the client closes, an agent's ERROR reaches the client, or SECONDS
        (30 in Go) have passed since its first request began, whatever the connection does. A request body that is
        still coming keeps the connection listed, however long it takes.
    F2  A stream that ends while it lists a connection takes the stream's lock twice: the lock is never released. The
        cluster is *stuck*: the hub still routes to the stream, and each client of the cluster waits for the lock.
    F3  A second stream of a cluster closes the first one under the lock of all clusters. If the first one is stuck, or
        lists a connection, the hub is *frozen*: no client and no agent of any cluster gets an answer.
    F4  A second stream of a cluster makes the hub flood the first one with packets for id 0 (both modes).
    F5  The hub keeps 100 packets for each client, and drops the rest (both modes). ERROR waits behind them, and is
        dropped like them.
    F6  The hub reads only the first request of a connection; what follows it is a splice of raw bytes (both modes).
    F7  An empty DATA for a listed connection gets no answer (both modes).

Commands, CLUSTER being the agent's `cluster-name`:

    stats CLUSTER               what has been seen of this cluster's agents (`Record`)
    drop CLUSTER [STATUS]       end its streams with this gRPC status (UNAVAILABLE)
    refuse CLUSTER STATUS       end every new stream at once with this status; `-` accepts again
    deaf CLUSTER on|off         leave probes for id -1 unanswered
    mute CLUSTER on|off         leave probes of connections unanswered
    frozen                      whether the hub is frozen, and which clusters are stuck (`--go`)
    flood CLUSTER N             N empty DATA packets for conn_id 0
    raw CLUSTER CONN_ID HEX     one DATA packet
    code CLUSTER CONN_ID N [TEXT]  one packet with this control code and error message
    message CLUSTER HEX         these bytes as one gRPC message, whatever they are
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import sys
from collections import deque
from typing import Any

import grpc
import h11

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tunnel"))
messages = grpc.protos("tunnel.proto")
Packet = messages.Packet
DATA, ERROR, DRAIN = 0, 1, 2

RAW_PACKET_BYTES = 32 * 1024
QUEUED_PACKETS = 100  # per connection; more are dropped without a word
OUTGOING_PACKETS = 1000  # per stream; past it the hub gives the stream up
MAX_HEAD_BYTES = 1024 * 1024  # net/http's DefaultMaxHeaderBytes


@dataclasses.dataclass(eq=False)
class Record:
    """The counts of one cluster's agents, over all its streams."""

    streams: int = 0
    live_streams: int = 0
    metadata: list[list[str]] = dataclasses.field(default_factory=list)
    probes: int = 0
    connections: int = 0
    open_connections: int = 0
    packets_out: int = 0  # hub to agent, without responses to probes
    packets_in: int = 0
    dropped_packets: int = 0
    largest_packet_in: int = 0
    unknown_ids: list[int] = dataclasses.field(default_factory=list)  # DATA for connections the hub doesn't know
    errors: list[list[Any]] = dataclasses.field(default_factory=list)  # [conn_id, text] of the agent's ERRORs
    error_for_unknown: int = 0
    drains: int = 0
    open_at_drain: int = 0
    packets_after_drain: int = 0
    other_codes: list[int] = dataclasses.field(default_factory=list)
    ends: list[str] = dataclasses.field(default_factory=list)  # how each stream ended
    listed_at_end: list[int] = dataclasses.field(default_factory=list)  # connections listed as each stream ended


class GoError:
    """An agent's ERROR in the queue of a Go hub's client (F5)."""

    def __init__(self, text: str) -> None:
        self.text = text


class Connection:
    """One client's TCP connection. `queue` holds what its own task has not written yet."""

    def __init__(self, conn_id: int, writer: asyncio.StreamWriter) -> None:
        self.conn_id = conn_id
        self.writer = writer
        self.queue: deque[bytes | GoError] = deque()
        self.wake = asyncio.Event()
        self.ended = False

    async def write_queued(self) -> None:
        with contextlib.suppress(OSError):
            while self.queue or not self.ended:
                if not self.queue:
                    self.wake.clear()
                    await self.wake.wait()
                    continue
                data = self.queue.popleft()
                if isinstance(data, GoError):
                    text = data.text.encode()
                    head = b"Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: close" % len(text)
                    self.writer.write(b"HTTP/1.1 502 Bad Gateway\r\n" + head + b"\r\n\r\n" + text)
                    await self.writer.drain()
                    break
                self.writer.write(data)
                await self.writer.drain()
            self.writer.close()

    def end(self) -> None:
        """Close the client's connection as soon as the queue is written."""
        self.ended = True
        self.wake.set()


class Stream:
    """One agent's call."""

    def __init__(self, hub: BaseHub, cluster: str, context: grpc.aio.ServicerContext) -> None:
        self.hub = hub
        self.cluster = cluster
        self.record = hub.record(cluster)
        self.floods: list[asyncio.Task[None]] = []
        self.context = context
        self.connections: dict[int, Connection] = {}
        self.last_id = 0
        self.outgoing: asyncio.Queue[Any] = asyncio.Queue(OUTGOING_PACKETS)
        self.ended: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()
        self.drained = False
        self.stuck = False

    def end(self, status: grpc.StatusCode, message: str) -> None:
        if not self.ended.done():
            self.ended.set_result((status, message))

    def send(self, packet: Any) -> None:
        try:
            self.outgoing.put_nowait(packet)
        except asyncio.QueueFull:
            self.end(grpc.StatusCode.UNKNOWN, "outgoing queue is full")

    def open(self, writer: asyncio.StreamWriter) -> Connection:
        self.last_id += 1
        self.record.connections += 1
        connection = self.connections[self.last_id] = Connection(self.last_id, writer)
        return connection

    def flood(self, count: int) -> None:
        """Flood an agent that a newer one of its cluster has replaced, as a base hub does."""

        async def put_all() -> None:
            for _ in range(count):
                await self.outgoing.put(Packet())

        self.floods.append(asyncio.ensure_future(put_all()))

    async def write_packets(self) -> None:
        while True:
            await self.context.write(await self.outgoing.get())

    async def read_packets(self) -> None:
        while (packet := await self.context.read()) is not grpc.aio.EOF:
            self.take(packet)
        self.end(grpc.StatusCode.OK, "")

    def take(self, packet: Any) -> None:
        record, conn_id = self.record, packet.conn_id
        record.packets_after_drain += self.drained
        if packet.code == DRAIN:
            record.drains += 1
            record.open_at_drain = len(self.connections)
            self.drained = True
            self.end(grpc.StatusCode.OK, "")
            return
        connection = self.connections.get(conn_id)
        if packet.code == DATA and connection is None:
            if conn_id == -1:
                record.probes += 1
                if self.record in self.hub.deaf:
                    return
            else:
                record.unknown_ids.append(conn_id)
                if self.record in self.hub.mute:
                    return
            text = f"unknown packet connection {conn_id}"
            self.send(Packet(conn_id=conn_id, code=ERROR, error_message=text))
            return
        record.packets_in += 1
        record.largest_packet_in = max(record.largest_packet_in, len(packet.data))
        if packet.code == DATA:
            assert connection is not None
            if len(connection.queue) >= QUEUED_PACKETS:
                record.dropped_packets += 1
            elif packet.data:
                connection.queue.append(packet.data)
                connection.wake.set()
        elif packet.code == ERROR:
            record.errors.append([conn_id, packet.error_message])
            if connection is None:
                record.error_for_unknown += 1
                return
            if self.hub.life_s is not None:
                if len(connection.queue) < QUEUED_PACKETS:  # F5
                    connection.queue.append(GoError(packet.error_message))
                    connection.wake.set()
                return
            del self.connections[conn_id]
            text = packet.error_message.encode()
            connection.queue.append(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n" + text)
            connection.end()
        else:
            record.other_codes.append(packet.code)

    async def serve(self) -> None:
        """Until the stream ends, one way or another."""
        jobs: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(job()) for job in (self.write_packets, self.read_packets)
        ]
        try:
            await asyncio.wait([self.ended, *jobs], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in (*jobs, *self.floods):
                job.cancel()
            self.record.listed_at_end.append(len(self.connections))
            if self.hub.life_s is not None and self.connections:  # F2: it stays in `streams`, and never returns
                self.stuck = True
                await self.hub.for_ever()
            for connection in self.connections.values():
                connection.end()
            self.connections.clear()
            self.hub.streams[self.cluster].remove(self)  # no more connections open on it
            # Last, because grpcio cancels a handler whose peer has left. It can cancel here a second time.
            await asyncio.gather(*jobs, *self.floods, return_exceptions=True)
        if self.ended.done():
            status, message = self.ended.result()
            self.record.ends.append(status.name)
            if status is not grpc.StatusCode.OK:
                await self.context.abort(status, message)
        else:
            self.record.ends.append("LOST")


class BaseHub:
    """Both ports, and the commands. life_s: how long a Go hub lists each connection. None: no Go hub."""

    def __init__(self, life_s: float | None = None) -> None:
        self.life_s = life_s
        self.frozen = False
        self.never = asyncio.Event()
        self.mute: list[Record] = []
        self.records: dict[str, Record] = {}
        self.streams: dict[str, list[Stream]] = {}
        self.refusals: dict[str, grpc.StatusCode] = {}
        self.deaf: list[Record] = []

    async def for_ever(self) -> None:
        """Wait for a lock that nobody releases, until the hub itself ends."""
        await self.never.wait()

    def record(self, cluster: str) -> Record:
        return self.records.setdefault(cluster, Record())

    # -- agents

    async def tunnel(self, _requests: object, context: grpc.aio.ServicerContext) -> None:
        metadata = [[key, str(value)] for key, value in context.invocation_metadata() or ()]
        cluster = dict(metadata).get("cluster-name", "")
        if not cluster:
            await context.abort(grpc.StatusCode.UNKNOWN, "cluster-name is required in the metadata")
        record = self.record(cluster)
        record.streams += 1
        record.metadata = metadata
        if cluster in self.refusals:
            record.ends.append(self.refusals[cluster].name)
            await context.abort(self.refusals[cluster], "refused on command")
        streams = self.streams.setdefault(cluster, [])
        if self.life_s is not None and any(one.stuck or one.connections for one in streams):
            self.frozen = True  # F3
        if self.frozen:
            await self.for_ever()
        stream = Stream(self, cluster, context)
        for replaced in streams:
            replaced.flood(1_000_000)  # F4
        streams.append(stream)
        record.live_streams += 1
        try:
            await stream.serve()
        finally:
            record.live_streams -= 1

    # -- clients

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.serve_client(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        except h11.RemoteProtocolError:
            with contextlib.suppress(OSError):
                writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        finally:
            writer.close()

    async def serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.life_s is not None:
            return await self.serve_go_client(reader, writer, self.life_s)
        first = await read_first_request(reader, writer)
        if first is None:
            return None
        path, request, rest = first
        cluster = cluster_of(path)
        if not self.streams.get(cluster):
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\nno agent\n")
            return await writer.drain()
        stream = self.streams[cluster][-1]
        connection = stream.open(writer)
        writing = asyncio.ensure_future(connection.write_queued())
        try:
            for data in (b"", request, rest) if rest else (b"", request):
                stream.record.packets_out += 1
                stream.send(Packet(conn_id=connection.conn_id, data=data))
            while data := await reader.read(RAW_PACKET_BYTES):
                if connection.ended:
                    return None
                stream.record.packets_out += 1
                stream.send(Packet(conn_id=connection.conn_id, data=data))
        finally:
            stream.connections.pop(connection.conn_id, None)  # the agent gets no packet
            if connection.ended:
                await asyncio.wait([writing])
            writing.cancel()

    async def serve_go_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, life_s: float) -> None:
        """As `serve_client`, and F1: the connection is listed from its request's head on."""
        loop = asyncio.get_running_loop()
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        head = await read_head(parser, reader)
        if head is None:
            return
        ends_at_s = loop.time() + life_s
        cluster = cluster_of(head.target.decode("latin-1"))
        streams = self.streams.get(cluster)
        if self.frozen or (streams and streams[-1].stuck):
            await self.for_ever()
        if not streams:
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\nno agent\n")
            await writer.drain()
            return
        stream = streams[-1]
        connection = stream.open(writer)
        writing = reading = None

        def send(data: bytes) -> None:
            stream.record.packets_out += 1
            stream.send(Packet(conn_id=connection.conn_id, data=data))

        async def read_on() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(RAW_PACKET_BYTES):
                    send(data)

        try:
            send(b"")
            body = await read_body(parser, reader, writer)
            if body is None:
                return
            send(rewritten(head, body))
            if rest := parser.trailing_data[0]:
                send(rest)
            writing = asyncio.ensure_future(connection.write_queued())
            reading = asyncio.ensure_future(read_on())
            left_s = max(0.0, ends_at_s - loop.time())
            await asyncio.wait([writing, reading], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, reading):
                if task is not None:
                    task.cancel()
            if not stream.stuck:
                stream.connections.pop(connection.conn_id, None)  # the agent gets no packet

    # -- commands

    def command(self, line: str) -> object:
        name, cluster, *rest = line.split(" ", 3) if " " in line else (line, "")
        streams = list(self.streams.get(cluster, ()))
        if name == "stats":
            record = self.record(cluster)
            record.open_connections = sum(len(stream.connections) for stream in streams)
            return dataclasses.asdict(record)
        if name == "drop":
            for stream in streams:
                stream.end(grpc.StatusCode[rest[0] if rest else "UNAVAILABLE"], "dropped on command")
        elif name == "refuse":
            self.refusals.pop(cluster, None)
            if rest[0] != "-":
                self.refusals[cluster] = grpc.StatusCode[rest[0]]
        elif name == "deaf":
            self.deaf = [record for record in self.deaf if record is not self.record(cluster)]
            if rest[0] == "on":
                self.deaf.append(self.record(cluster))
        elif name == "mute":
            self.mute = [record for record in self.mute if record is not self.record(cluster)]
            if rest[0] == "on":
                self.mute.append(self.record(cluster))
        elif name == "frozen":
            stuck = [name for name, streams in self.streams.items() if any(stream.stuck for stream in streams)]
            return {"frozen": self.frozen, "stuck": stuck}
        elif name == "flood":
            streams[-1].flood(int(rest[0]))
        elif name == "raw":
            streams[-1].send(Packet(conn_id=int(rest[0]), data=bytes.fromhex(rest[1])))
        elif name == "code":
            number, _, text = rest[1].partition(" ")
            streams[-1].send(Packet(conn_id=int(rest[0]), code=int(number), error_message=text))
        elif name == "message":
            streams[-1].send(bytes.fromhex(rest[0]))
        else:
            return {"unknown command": line}
        return len(streams)


def cluster_of(path: str) -> str:
    return path.lstrip("/").split("/")[0].split("?")[0]


async def read_first_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[str, bytes, bytes] | None:
    """(path, the request as net/http forwards it, bytes behind it). None if the client left first.

    A chunked body is put behind the head as plain bytes, without Content-Length or Transfer-Encoding.
    """
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    head = await read_head(parser, reader)
    if head is None:
        return None
    body = await read_body(parser, reader, writer)
    if body is None:
        return None
    return head.target.decode("latin-1"), rewritten(head, body), parser.trailing_data[0]


async def read_head(parser: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    while (event := parser.next_event()) is h11.NEED_DATA:
        data = await reader.read(65536)
        parser.receive_data(data)
        if not data:
            return None
    return event if isinstance(event, h11.Request) else None


async def read_body(parser: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
    body = bytearray()
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            if parser.they_are_waiting_for_100_continue:
                parser.send(h11.InformationalResponse(status_code=100, headers=[]))
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            parser.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        else:  # the client closed, or wants to switch protocols at once
            return None


def rewritten(head: h11.Request, body: bytes) -> bytes:
    fields = sorted(
        (b"-".join(part.capitalize() for part in name.split(b"-")), value)
        for name, value in head.headers
        if name not in (b"host", b"transfer-encoding")
    )
    host = dict(head.headers).get(b"host", b"")
    lines = [b"%s %s HTTP/%s" % (head.method, head.target, head.http_version), b"Host: " + host]
    lines += [name + b": " + value for name, value in fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def main(pair: tuple[bytes, bytes] | None, life_s: float | None) -> None:
    """pair: private key and certificate chain of the gRPC port, in PEM; None: plaintext. life_s: as in `BaseHub`."""
    hub = BaseHub(life_s)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.stream_stream_rpc_method_handler(
        hub.tunnel,
        request_deserializer=Packet.FromString,
        response_serializer=lambda packet: packet if isinstance(packet, bytes) else packet.SerializeToString(),
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tunnel.v1.TunnelService", {"Tunnel": handler})]
    )
    if pair:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    http = await asyncio.start_server(hub.client, "127.0.0.1", 0, backlog=1024)
    print(f"grpc {port}", flush=True)
    print(f"http {http.sockets[0].getsockname()[1]}", flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        try:
            answer = hub.command(line.decode().strip())
        except Exception as error:  # the test that gave the command sees it
            answer = {"failed": repr(error)}
        print(json.dumps(answer), flush=True)
    http.close()
    await server.stop(None)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    go_life_s = None
    if arguments[:1] == ["--go"]:
        go_life_s, arguments = float(arguments[1]), arguments[2:]
    certificate = [pathlib.Path(path).read_bytes() for path in arguments]
    asyncio.run(main((certificate[1], certificate[0]) if certificate else None, go_life_s))
