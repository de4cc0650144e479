"""One exchange: a request to its target, the response back, both bodies streamed.

Everything happens in callbacks of the two transports; a task exists only while the policy or a dial is awaited.

    request    head built ─► (route, process, connect awaited) ─► head + body as it comes ─► sent whole
    response   HEAD ─► SIZED | CHUNKED | UNTIL_EOF ─► done        (1xx stay in HEAD; 101 leaves for upgrade.py)

Both halves run at the same time: a target may answer, and stream its answer, before it has read the request to its end.

Invariants:
E1. Nothing of a response goes out before its head was checked whole; the head goes out before its body.
E2. After the first byte of a response head there is no other answer: the rest follows, or the connection is cut.
E3. The target's connection goes back to the pool only when the request was sent whole and the response read to its end.
E4. A request is sent again only if it is idempotent, has no body, and a reused connection broke before any byte came.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import logging
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

from agent.errors import Refused, TargetError
from agent.messages import RequestHead, Target
from agent.outcome import Stage
from agent.proxy.answers import CONTINUE
from agent.proxy.chunked import LAST_CHUNK, ChunkedDecoder, ChunkError, encode_chunk, encode_last
from agent.proxy.clock import NEVER
from agent.proxy.headers import SPECIAL, Fields, forwarded_trailers, serialize
from agent.proxy.heads import CHUNKED, IDEMPOTENT, Request, Response, parse_response
from agent.proxy.upgrade import Upgraded

if TYPE_CHECKING:
    from agent.proxy.server import Connection
    from agent.proxy.upstream import Upstream

__all__ = ["Exchange"]

log = logging.getLogger(__name__)

Piece = bytes | memoryview
JOIN_BYTES = 65536
"""Up to this many bytes, pieces are joined into one write: one packet in the tunnel, one system call on a socket."""
UPGRADE_NAMES = {b"websocket": b"websocket", b"spdy/3.1": b"SPDY/3.1"}
WITH_CONTENT = frozenset({"POST", "PUT", "PATCH"})  # a bodyless one says so (RFC 9110, section 8.6)


class Mode(enum.Enum):
    """What the next byte from the target is."""

    HEAD = enum.auto()
    SIZED = enum.auto()
    CHUNKED = enum.auto()
    UNTIL_EOF = enum.auto()
    DONE = enum.auto()


HEAD, SIZED, IN_CHUNKS, TO_EOF, DONE = Mode


class Exchange:
    """Relays one request and its response. `connection` tells it what the client does; it answers through it.

    connection: the client's. request: its checked head. target: where it goes, once known. deadline: when the target is
    late with its response head.
    """

    __slots__ = (
        "_collected", "_corked", "_decoder", "_head", "_informational", "_left", "_mode", "_partial", "_request_done",
        "_response", "_retried", "_stage", "_task", "_unsent", "_unsent_bytes", "_upstream", "connection",
        "continue_at", "deadline", "request", "target",
    )  # fmt: skip

    def __init__(self, connection: Connection, request: Request) -> None:
        self.connection = connection
        self.request = request
        self.target: Target | None = None
        self.deadline = NEVER
        self.continue_at = NEVER
        self._upstream: Upstream | None = None
        self._task: asyncio.Task[None] | None = None
        self._head = b""  # the head for the target
        self._corked = b""  # the same, until something goes out with it
        self._unsent: list[Piece] | None = None  # body that came before there was a connection to the target
        self._unsent_bytes = 0
        self._request_done = request.length == 0
        self._retried = False
        self._mode = HEAD
        self._partial = b""  # the part of a response head that has come
        self._informational = 0
        self._response: Response | None = None
        self._left = 0
        self._decoder: ChunkedDecoder | None = None
        self._collected: list[Piece] | None = None  # the whole body, for an HTTP/1.0 client
        self._stage = Stage.HEAD

    @property
    def stage(self) -> Stage:
        """How far the response has come, for the connection's outcome."""
        return self._stage

    @property
    def awaits_continue(self) -> bool:
        """Whether the client may still be waiting for a 100 before it sends its body."""
        return self.continue_at != NEVER

    # -- the request's way

    def start(self) -> None:
        """Ask the policy where the request goes, and send it there."""
        request, connection = self.request, self.connection
        fields = request.fields
        if request.host:
            fields = [(b"Host", request.host), *fields]
        version = "1.0" if request.is_1_0 else "1.1"
        proxy = connection.proxy
        if request.expects_continue:
            if proxy.answer_expect:
                connection.write(CONTINUE)
            else:
                self.continue_at = proxy.clock.later(proxy.limits.expect_timeout_s)
        head = RequestHead(request.method, request.target, version, fields, connection.conn_id, proxy.cluster)
        try:
            target = proxy.route(head)
            if isinstance(target, Target):
                self.target = target
                processed = head if proxy.process is None else proxy.process(head, target)
                if isinstance(processed, RequestHead):
                    self._send_head(processed)
                    return
                self._run(self._processed_later(processed), processed)
                return
            self._run(self._routed_later(target, head), target)
        except Exception as error:
            self._policy_failed(error)

    async def _routed_later(self, routing: Awaitable[Target], head: RequestHead) -> None:
        self.target = await routing
        process = self.connection.proxy.process
        processed = head if process is None else process(head, self.target)
        if inspect.isawaitable(processed):
            processed = await processed
        self._task = None
        self._send_head(processed)

    async def _processed_later(self, processing: Awaitable[RequestHead]) -> None:
        head = await processing
        self._task = None
        self._send_head(head)

    def _run(self, work: Coroutine[Any, Any, None], awaited: object = None) -> None:
        """Do `work` in a task: its errors become answers, and it is cancelled when the client goes."""
        self._task = task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(functools.partial(self._work_done, awaited))

    def _work_done(self, awaited: object, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            if inspect.iscoroutine(awaited):
                awaited.close()  # it may never have begun
            return
        error = task.exception()
        if error is None or self._mode is DONE:
            return
        self._task = None
        if isinstance(error, TargetError):
            self.fail(error.status, error.reason, error.stage)
        else:
            self._policy_failed(error)

    def _policy_failed(self, error: BaseException) -> None:
        if isinstance(error, Refused):
            self._end_upstream()
            self.connection.answer(error.status, error.reason, close=error.status == 421)
            return
        log.error("conn_id=%d stage=policy the request could not be decided", self.connection.conn_id, exc_info=error)
        self._end_upstream()
        self.connection.answer(503, "the request could not be decided")

    def _send_head(self, head: RequestHead) -> None:
        """Build the head for the target and send it on a pooled connection, or dial one."""
        target, request, proxy = self.target, self.request, self.connection.proxy
        assert target is not None
        if target.preserve_host and request.host:
            host = request.host
        else:
            host = b"[%b]" % target.host.encode() if ":" in target.host else target.host.encode()
            if target.port != (443 if target.scheme == "https" else 80):
                host += b":%d" % target.port
        fields: Fields = [(b"Host", host)]
        fields += [field for field in head.headers if field[0].lower() not in SPECIAL]
        if request.has_length:
            fields.append((b"Content-Length", b"%d" % request.length))
        elif request.length == CHUNKED:
            fields.append((b"Transfer-Encoding", b"chunked"))
        elif request.method in WITH_CONTENT and not request.upgrade:
            fields.append((b"Content-Length", b"0"))
        if request.upgrade:
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", UPGRADE_NAMES[request.upgrade])]
        elif request.takes_trailers:
            fields += [(b"Connection", b"TE"), (b"TE", b"trailers")]
        if request.expects_continue and not proxy.answer_expect:
            fields.append((b"Expect", b"100-continue"))
        line = b"%b %b HTTP/1.1" % (request.method.encode(), target.path or request.target)
        self._head = self._corked = serialize(line, fields)
        upstream = proxy.upstreams.take(target)
        if upstream is None:
            self._run(self._dial(target))
        else:
            self._attach(upstream)
            if not self.connection.advancing:
                self.uncork()

    async def _dial(self, target: Target) -> None:
        upstream = await self.connection.proxy.upstreams.dial(target)
        self._task = None
        self._attach(upstream)
        self.uncork()

    def _attach(self, upstream: Upstream) -> None:
        """Use this connection to the target from now on."""
        if upstream.transport is None or upstream.transport.is_closing():
            raise TargetError(502, "the target closed the connection at once", stage="connect")
        self._upstream = upstream
        upstream.exchange = self
        if self.connection.writing_paused:
            upstream.pause_reading()
        if self._unsent is not None:
            unsent, self._unsent = self._unsent, None
            self._unsent_bytes = 0
            self._write_upstream(unsent)
            if not upstream.writing_paused:
                self.connection.resume_reading()
        if self._request_done:
            self._await_response()

    def _await_response(self) -> None:
        if self._mode is HEAD:
            proxy = self.connection.proxy
            self.deadline = proxy.clock.later(proxy.limits.first_byte_timeout_s)

    def uncork(self) -> None:
        """Send the request head if it still waits for a first piece of body to go with."""
        if self._corked and self._upstream is not None:
            self._write_upstream([])

    def client_data(self, pieces: list[Piece], ended: bool) -> None:
        """Send the next pieces of the request's body on; `ended`: they are the last."""
        if self.request.length == CHUNKED:
            if pieces:
                pieces = encode_chunk(pieces)
            if ended:
                pieces.append(LAST_CHUNK)
        if self._upstream is not None:
            self._write_upstream(pieces)
        elif self._mode is HEAD:
            if self._unsent is None:
                self._unsent = []
            self._unsent += pieces
            self._unsent_bytes += sum(map(len, pieces))
            if self._unsent_bytes > self.connection.proxy.limits.buffer_bytes:
                self.connection.pause_reading()
        if ended:
            self._request_done = True
            if self._upstream is not None:
                self._await_response()

    def _write_upstream(self, pieces: list[Piece]) -> None:
        assert self._upstream is not None
        assert self._upstream.transport is not None
        if self._corked:
            pieces = [self._corked, *pieces]
            self._corked = b""
        write_pieces(self._upstream.transport, pieces)

    def pause_sending(self) -> None:
        """The target takes no more for now."""
        if not self._request_done:
            self.connection.pause_reading()

    def resume_sending(self) -> None:
        """The target takes more."""
        self.connection.resume_reading()

    def pause_receiving(self) -> None:
        """The client takes no more for now."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_receiving(self) -> None:
        """The client takes more."""
        if self._upstream is not None:
            self._upstream.resume_reading()

    def client_lost(self) -> None:
        """The client is gone: stop at once."""
        self._end_upstream()

    def look_at_deadlines(self, now: float) -> None:
        """Called by the sweep, with the loop's time."""
        if now >= self.continue_at:
            self._say_continue()
        if now >= self.deadline:
            self.deadline = NEVER
            self.fail(504, "the target did not answer in time", "response head")
        elif self._upstream is not None and self._upstream.takes_nothing(now):
            self.fail(504, "the target takes nothing", "request body")

    def body_came(self) -> None:
        """The client sends its body without waiting for a 100."""
        self.continue_at = NEVER

    def _say_continue(self) -> None:
        self.continue_at = NEVER
        self.connection.write(CONTINUE)

    # -- the response's way

    def response_data(self, data: bytes | memoryview) -> None:
        """The next bytes from the target."""
        mode = self._mode
        if mode is SIZED:
            left = self._left - len(data)
            if left > 0:
                self._left = left
                self.connection.write(data)
            else:
                self.connection.write(data if left == 0 else data[: self._left])
                self._complete(left == 0)
        elif mode is HEAD:
            self._read_head(data)
        else:
            self._relay_body(b"", data)

    def _read_head(self, data: bytes | memoryview) -> None:
        """Look for the end of a response head, and act on each whole one."""
        limit = self.connection.proxy.limits.response_head_bytes
        rest: bytes | memoryview
        while True:
            seen = len(self._partial)
            if type(data) is bytes and not seen:
                raw = data
            else:
                raw = self._partial + bytes(data[: limit + 4])
            end = raw.find(b"\r\n\r\n", max(0, seen - 3), limit)
            if end < 0:
                if not raw.startswith(b"HTTP/1."[: len(raw)]):
                    self.fail(502, "the target answered with something else than HTTP/1", "response head")
                elif len(raw) > limit:
                    self.fail(502, "the target's response head is too large", "response head")
                else:
                    self._partial = raw
                return
            self._partial = b""
            rest = data[end + 4 - seen :]
            try:
                response = parse_response(raw[: end + 4])
            except ValueError as error:
                self.fail(502, f"the target sent a {error}", "response head")
                return
            if response.status >= 200:
                self._start_response(response, rest)
                return
            if response.status == 101:
                self._switch(response, rest)
                return
            self._informational += 1
            if self._informational > self.connection.proxy.limits.informational_responses:
                self.fail(502, "the target sent too many 1xx responses", "response head")
                return
            self._relay_informational(response)
            if self._request_done:
                self._await_response()
            if not rest:
                return
            data = rest

    def _relay_informational(self, response: Response) -> None:
        """100 once, where it is waited for; 103; nothing else, and nothing to HTTP/1.0 clients."""
        if response.status == 100:
            if self.awaits_continue:
                self._say_continue()
        elif response.status == 103 and not self.request.is_1_0:
            self.connection.write(serialize(b"HTTP/1.1 103 Early Hints", response.fields))

    def _switch(self, response: Response, rest: bytes | memoryview) -> None:
        """The target has switched protocols: pass it on where it was asked to, to what it was asked to."""
        upstream, connection = self._upstream, self.connection
        assert upstream is not None
        if not self.request.upgrade or response.upgrade != self.request.upgrade:
            self.fail(502, "the target switched protocols unasked", "response head")
            return
        name = (b"Upgrade", UPGRADE_NAMES[response.upgrade])
        fields = [*response.fields, (b"Connection", b"Upgrade"), name]
        self._upstream = None
        self._mode = DONE
        self._stage = Stage.UPGRADED
        upgraded = Upgraded(connection, upstream, self.target)
        upstream.exchange = upgraded
        connection.write(serialize(b"HTTP/1.1 101 Switching Protocols", fields))
        connection.switch(upgraded)
        if rest:
            upgraded.response_data(rest)

    def _start_response(self, response: Response, rest: bytes | memoryview) -> None:
        """Send the head of the final response, with what has come of its body."""
        request, connection = self.request, self.connection
        self._response = response
        self.deadline = NEVER
        fields = response.fields
        length = response.length
        if request.method == "HEAD" or response.status in (204, 304):
            if response.content_length >= 0 and response.status != 204:
                fields.append((b"Content-Length", b"%d" % response.content_length))
            self._mode = DONE
        elif length >= 0:
            fields.append((b"Content-Length", b"%d" % length))
            self._mode = SIZED
            self._left = length
            self._stage = Stage.SIZED
        else:
            self._mode = IN_CHUNKS if length == CHUNKED else TO_EOF
            if length == CHUNKED:
                self._decoder = ChunkedDecoder(connection.proxy.limits)
            if request.is_1_0:
                self._collected = []
                self._left = connection.proxy.limits.collect_bytes
                self._relay_body(b"", rest)
                return
            fields.append((b"Transfer-Encoding", b"chunked"))
            self._stage = Stage.CHUNKED
        head = self._head_for_client(response, fields)
        if self._mode is DONE or (self._mode is SIZED and len(rest) >= self._left):
            body = rest[: self._left]
            clean = len(rest) == self._left
            if body:
                write_pieces(connection, [head, body])
            else:
                connection.write(head)
            self._complete(clean)
        elif self._mode is SIZED:
            self._left -= len(rest)
            write_pieces(connection, [head, rest] if rest else [head])
        else:
            self._relay_body(head, rest)

    def _head_for_client(self, response: Response, fields: Fields) -> bytes:
        connection = self.connection
        if connection.announce_close(self.request):
            fields.append((b"Connection", b"close"))
        elif self.request.is_1_0:
            fields.append((b"Connection", b"keep-alive"))
        return serialize(b"HTTP/1.1 %d %b" % (response.status, response.reason), fields)

    def _relay_body(self, head: bytes, data: bytes | memoryview) -> None:
        """Pass on body bytes that have no Content-Length, behind `head` where that is still to go out."""
        decoder = self._decoder
        if self._mode is TO_EOF:
            pieces: list[Piece] = [data] if data else []
        else:
            assert decoder is not None
            try:
                pieces = decoder.feed(data) if data else []
            except ChunkError as error:
                if head:
                    self._stage = Stage.HEAD  # it has not gone out
                self.fail(502, f"the target's body is broken: {error}", "response body")
                return
        ended = decoder is not None and decoder.done
        if self._collected is not None:
            self._collect(pieces)
            if ended and self._collected is not None:
                self._send_collected(decoder is not None and not decoder.rest)
            return
        out = encode_chunk(pieces) if pieces else []
        if head:
            out.insert(0, head)
        if ended:
            assert decoder is not None
            out.append(encode_last(forwarded_trailers(decoder.trailers)))
        if out:
            write_pieces(self.connection, out)
        if ended:
            assert decoder is not None
            self._complete(not decoder.rest)

    def _collect(self, pieces: list[Piece]) -> None:
        """Keep a body for an HTTP/1.0 client, who needs a Content-Length, up to a bound."""
        assert self._collected is not None
        self._collected += pieces
        self._left -= sum(map(len, pieces))
        if self._left < 0:
            self._collected = None
            self.fail(502, "the response has no length and is too large for an HTTP/1.0 client", "response body")

    def _send_collected(self, clean: bool) -> None:
        response, body = self._response, b"".join(self._collected or [])
        assert response is not None
        response.fields.append((b"Content-Length", b"%d" % len(body)))
        self._stage = Stage.SIZED
        write_pieces(self.connection, [self._head_for_client(response, response.fields), body])
        self._complete(clean)

    def response_eof(self) -> bool:
        """The target sends no more. Returns False: the connection to it ends."""
        if self._mode is TO_EOF:
            if self._collected is not None:
                self._send_collected(False)
            else:
                self.connection.write(LAST_CHUNK)
                self._complete(False)
        else:
            self.upstream_lost(None)
        return False

    def upstream_lost(self, error: Exception | None) -> None:
        """The connection to the target is gone before the response was whole."""
        upstream, request = self._upstream, self.request
        nothing_came = self._mode is HEAD and not self._partial and self._informational == 0
        if (
            upstream is not None
            and upstream.reused
            and nothing_came
            and not self._retried
            and request.length == 0
            and not request.upgrade
            and request.method in IDEMPOTENT
        ):  # E4
            log.warning("conn_id=%d stage=retry a pooled connection had gone stale", self.connection.conn_id)
            assert self.target is not None
            self._retried = True
            self._upstream = None
            upstream.abort()
            self._corked = self._head
            self.deadline = NEVER
            self._run(self._dial(self.target))
            return
        if error is None:
            reason = "the target closed the connection before it answered"
        else:
            reason = "the connection to the target was lost"
        if not nothing_came:
            reason = "the target closed the connection before its response was whole"
        self.fail(502, reason, "response head" if self._mode is HEAD else "response body")

    def _complete(self, clean: bool) -> None:
        """The response is whole. clean: it was framed, and nothing followed it on the connection to the target."""
        upstream, self._upstream = self._upstream, None
        self._mode = DONE
        assert upstream is not None
        assert self._response is not None
        if clean and self._request_done and self._response.keep_alive:
            self.connection.proxy.upstreams.release(upstream)  # E3
        else:
            upstream.abort()
        self.connection.exchange_done()

    def fail(self, status: int, reason: str, stage: str, *, close: bool = False) -> None:
        """End the exchange: with an answer of the proxy's own where none has begun, by cutting it short otherwise."""
        connection = self.connection
        log.warning(
            "conn_id=%d stage=%r status=%d method=%s target=%s %s",
            connection.conn_id, stage, status, self.request.method,
            f"{self.target.host}:{self.target.port}" if self.target is not None else "-", reason,
        )  # fmt: skip
        self._end_upstream()
        if self._stage is Stage.HEAD:
            connection.answer(status, reason, close=close)
        else:
            connection.cut(self._stage)

    def _end_upstream(self) -> None:
        self._mode = DONE
        self.deadline = NEVER
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()


def write_pieces(writer: Any, pieces: list[Piece]) -> None:
    """Write pieces in order: joined into one where they are small, each by reference where they are not."""
    if len(pieces) == 1:
        writer.write(pieces[0])
    elif sum(map(len, pieces)) <= JOIN_BYTES:
        writer.write(b"".join(pieces))
    else:
        writer.writelines(pieces)
