"""One exchange: a request to its target, the response back, both bodies streamed.

Everything happens in callbacks of the two transports; a task exists only while the policy or a dial is awaited.

    request    head built ─► (route, process, connect awaited) ─► head + body as it comes ─► sent whole
    response   HEAD ─► SIZED | CHUNKED | UNTIL_EOF ─► done        (1xx stay in HEAD; 101 leaves for upgrade.py)

Both halves run at the same time: a target may answer, and stream its answer, before it has read the request to its end.

Invariants:
E1. Nothing of a response goes out before its head was checked whole; the head goes out before its body.
E2. After the first byte of a response head there is no other answer: the rest follows, or the connection is cut.
E3. The target's connection goes back to the pool only when the request was sent whole and the response read to its end.
E4. A request is sent again once at most, only if it is idempotent, has no body and no byte of a response has come, and
    either a reused connection broke, or the way to its target is suspected to be dead and there is another.
E5. A body of unknown length goes to an HTTP/1.0 client as it comes, ended by closing, where the connection is the
    client's own (RFC 9112, section 6.3); a hub's gets it collected, with its length.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
from collections.abc import Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import Party, PolicyError, Redirected, Refused, TargetError
from ..messages import RequestHead, Target
from ..outcome import Stage
from .blame import read_fault
from .chunked import LAST_CHUNK, ChunkedDecoder, ChunkError, encode_chunk, encode_last
from .clock import NEVER
from .decision import Decision, PendingDecision, decide
from .headers import forwarded_trailers
from .heads import CHUNKED, IDEMPOTENT, UNFRAMED, Request, Response, switches_as_asked
from .readers import Piece
from .responses import CONTINUE
from .rewrite import head_for_client, head_for_target, informational_head, switching_head
from .rules import HeadError
from .upgrade import Upgraded

if TYPE_CHECKING:
    from .server import ClientConnection
    from .upstream import Upstream

__all__ = ["Exchange"]

log = logging.getLogger(__name__)

JOIN_BYTES = 65536
"""Up to this many bytes, pieces are joined into one write: one packet in the tunnel, one system call on a socket."""
# Looked up once: until Python 3.12 an enum's attribute costs a call.
BEFORE_HEAD, IN_SIZED, IN_CHUNKED = Stage.HEAD, Stage.SIZED, Stage.CHUNKED


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

    connection: the client's. request, own_target: its checked head. target: where it goes, once known. stage: how far
    the response has come, for the connection's outcome. corked: the head, while it waits for body to go out with.
    deadline: when the target is late with its response head. waits_at: when the way to it is asked whether it is alive.
    continue_at: when the proxy says 100 itself.
    """

    __slots__ = (
        "_answered",
        "_began_s",
        "_body_came_later",
        "_collected",
        "_decoder",
        "_head",
        "_informational",
        "_left",
        "_mark_s",
        "_mode",
        "_passed_bytes",
        "_request_done",
        "_response",
        "_retried",
        "_task",
        "_unframed",
        "_unsent",
        "_upstream",
        "connection",
        "continue_at",
        "corked",
        "deadline",
        "own_target",
        "request",
        "stage",
        "target",
        "waits_at",
    )

    def __init__(self, connection: ClientConnection, request: Request, own_target: bytes) -> None:
        self.connection = connection
        self.request = request
        self.own_target = own_target
        self.target: Target | None = None
        self.stage = BEFORE_HEAD
        self.corked = b""
        self.deadline = self.continue_at = self.waits_at = NEVER
        self._upstream: Upstream | None = None
        self._task: asyncio.Task[None] | None = None
        self._head = b""  # for the target
        self._unsent: bytearray | None = None  # body that came before there was a connection to the target
        self._request_done = request.length == 0
        self._retried = False
        self._mode = HEAD
        self._answered = False  # the target has sent something
        self._informational = 0
        self._response: Response | None = None
        self._left = 0
        self._passed_bytes = 0  # of a body without Content-Length
        self._unframed = False  # E5: closing ends the body
        self._decoder: ChunkedDecoder | None = None
        self._collected: bytearray | None = None  # the whole body, for an HTTP/1.0 client
        self._body_came_later = False  # than the response's head
        self._began_s = self._mark_s = 0.0  # when it began, and the stage that is on; kept only where measured

    @property
    def awaits_continue(self) -> bool:
        """Whether the client may still be waiting for a 100 before it sends its body."""
        return self.continue_at != NEVER

    # -- where the request goes

    def start(self) -> None:
        """Ask the policy where the request goes, and send it there."""
        request, connection = self.request, self.connection
        proxy = connection.proxy
        if connection.metrics is not None:
            self._began_s = self._mark_s = perf_counter()
        if request.expects_continue:
            self.continue_at = proxy.clock.later(proxy.limits.expect_timeout_s)
        version = "1.0" if request.is_1_0 else "1.1"
        fields = request.received.copy()
        head = RequestHead(request.name, self.own_target, version, fields, connection.conn_id, proxy.cluster)
        try:
            decision = decide(head, proxy.route, proxy.process)
            if isinstance(decision, PendingDecision):
                self._run(self._decided_later(decision), decision)
            else:
                self._send(decision)
        except Exception as error:
            self._policy_failed(error)

    async def _decided_later(self, pending: PendingDecision) -> None:
        try:
            decision = await pending.settle()
        finally:
            if self.connection.metrics is not None:
                self.connection.metrics.policy.add(self._lap_s())
        self._task = None
        self._send(decision)

    def _run(self, work: Coroutine[Any, Any, None], pending: PendingDecision | None = None) -> None:
        """Do `work` in a task: its errors become answers, and it is cancelled when the client goes."""
        self._task = task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(functools.partial(self._work_done, pending))

    def _work_done(self, pending: PendingDecision | None, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            if pending is not None:
                pending.forget()
            return
        error = task.exception()
        if error is None or self._mode is DONE:
            return
        self._task = None
        if isinstance(error, TargetError):
            self.fail(error.status, error.reason, error.stage, fault=error.fault, limit=error.limit)
        else:
            self._policy_failed(error)

    def _policy_failed(self, error: BaseException) -> None:
        self._end_upstream()
        if isinstance(error, Redirected):
            self.connection.respond_with(308, "it is found below", fields=[(b"Location", error.location)])
            return
        extra: dict[str, object] = {"conn_id": self.connection.conn_id, "stage": "policy", "fault": "policy"}
        if isinstance(error, Refused):
            extra.update(status=error.status, fault=error.fault)
            if error.limit:
                extra["limit"] = error.limit
            log.info(error.reason, extra=extra)
            challenge = [(b"WWW-Authenticate", b"Bearer")] if error.status == 401 else None  # RFC 9110, section 15.5.2
            self.connection.respond_with(
                error.status,
                error.reason,
                close=error.status == 421,
                fields=challenge,
                fault=error.fault,
                limit=error.limit,
            )
            return
        extra["status"] = 503
        if isinstance(error, PolicyError):
            log.error(str(error), extra=extra)
        else:
            log.error("the request could not be decided", extra=extra, exc_info=error)
        self.connection.respond_with(503, "the request could not be decided", fault="policy")

    # -- the request's way

    def _send(self, decision: Decision) -> None:
        """Build the head for the target and send it on a pooled connection, or dial one."""
        target, decided = decision
        request, proxy = self.request, self.connection.proxy
        self.target = target
        fields = request.fields if proxy.process is None else decided.headers
        head = head_for_target(request, self.own_target, fields, target)
        if target.answers_expect and self.continue_at != NEVER:
            self._say_continue()
        self._head = self.corked = head
        upstream = proxy.upstreams.take(target)
        if upstream is None:
            self._run(self._dial(target))
            return
        self._attach(upstream)
        if not self.connection.advancing:
            self.uncork()

    async def _dial(self, target: Target) -> None:
        upstream = await self.connection.proxy.upstreams.dial(target)
        self._task = None
        if self.connection.metrics is not None:
            self.connection.metrics.connect.add(self._lap_s())
        self._attach(upstream)
        self.uncork()

    def _body_follows(self) -> None:
        """The response's head has come without the whole of its body."""
        metrics = self.connection.metrics
        if metrics is not None:
            assert self._response is not None
            self._body_came_later = True
            metrics.head.add(self._lap_s())
            metrics.from_target[self._response.status // 100] += 1

    def _lap_s(self) -> float:
        """How long the stage took that ends now."""
        before_s, self._mark_s = self._mark_s, perf_counter()
        return self._mark_s - before_s

    def _attach(self, upstream: Upstream) -> None:
        """Use this connection to the target from now on."""
        if upstream.transport is None or upstream.transport.is_closing():
            party = self._party
            raise TargetError(502, f"the {party} closed the connection at once", stage="connect", fault=party)
        self._upstream = upstream
        upstream.exchange = self
        if upstream.path is not None:
            proxy = self.connection.proxy
            self.waits_at = proxy.clock.later(proxy.limits.unanswered_s)
        if self.connection.writing_paused:
            upstream.pause_reading()
        if self._unsent is not None:
            unsent, self._unsent = self._unsent, None
            self._write_upstream([bytes(unsent)])
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
        if self.corked and self._upstream is not None:
            self._write_upstream([])

    def body_came(self) -> None:
        """The client sends its body without waiting for a 100."""
        self.continue_at = NEVER

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
            # Joined: a client may send it byte by byte, which as pieces would be many times the memory, and time.
            if self._unsent is None:
                self._unsent = bytearray()
            for piece in pieces:
                self._unsent += piece
            if len(self._unsent) > self.connection.proxy.limits.buffer_bytes:
                self.connection.pause_reading()
        if ended:
            self._request_done = True
            if self._upstream is not None:
                self._await_response()

    def _write_upstream(self, pieces: list[Piece]) -> None:
        assert self._upstream is not None
        assert self._upstream.transport is not None
        if self.corked:
            pieces = [self.corked, *pieces]
            self.corked = b""
        write_pieces(self._upstream.transport, pieces)

    # -- either side is full, or empty again

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

    # -- the response's way

    def response_data(self, data: Piece) -> None:
        """The next bytes from the target."""
        mode = self._mode
        if self.connection.may_have_left:
            self.connection.target_moves()
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

    def _read_head(self, data: Piece) -> None:
        """Act on each whole response head."""
        upstream = self._upstream
        assert upstream is not None
        self._answered = True
        while data:
            try:
                response, data = upstream.heads.take(data)
            except HeadError as error:
                limit = "limits.response_head_bytes" if error.rule == "head-size" else ""
                self.fail(502, str(error), "response head", limit=limit, rule=error.rule)
                return
            if response is None:
                return
            if response.status >= 200:
                self._start_response(response, data)
                if self._mode is not DONE:
                    self._body_follows()
                return
            if response.status == 101:
                self._switch(response, data)
                return
            self._informational += 1
            if self._informational > self.connection.proxy.limits.informational_responses:
                limit = "limits.informational_responses"
                self.fail(502, "the target sent too many 1xx responses", "response head", limit=limit)
                return
            self._relay_informational(response)
            if self._request_done:
                self._await_response()

    def _relay_informational(self, response: Response) -> None:
        """100 once, where it is waited for; 103; nothing else, and nothing to HTTP/1.0 clients."""
        if response.status == 100:
            if self.awaits_continue:
                self._say_continue()
        elif response.status == 103 and not self.request.is_1_0:
            self.connection.write(informational_head(response))

    def _say_continue(self) -> None:
        self.continue_at = NEVER
        self.connection.write(CONTINUE)

    def _switch(self, response: Response, rest: Piece) -> None:
        """The target has switched protocols: pass it on where it was asked to, to what it was asked to."""
        upstream, connection = self._upstream, self.connection
        assert upstream is not None
        if not switches_as_asked(response, self.request):
            self.fail(502, "the target switched protocols unasked", "response head", rule="switch-unasked")
            return
        self._upstream = None
        self._mode = DONE
        if connection.metrics is not None:
            connection.metrics.upgraded += 1
        upgraded = Upgraded(connection, upstream, self._party)
        upstream.exchange = upgraded
        head = switching_head(response)
        write_pieces(connection, [head, rest] if rest else [head])
        connection.switch(upgraded)

    def _start_response(self, response: Response, rest: Piece) -> None:
        """Send the head of the final response, with what has come of its body."""
        request, connection = self.request, self.connection
        self._response = response
        self.deadline = self.waits_at = NEVER
        if response.fault and connection.proxy.party == "hub":
            self._log_fault(response)
        length = response.length
        framing = length
        if request.method == b"HEAD" or response.status == 204 or response.status == 304:
            framing = response.content_length if response.content_length >= 0 and response.status != 204 else UNFRAMED
            length = 0
        elif length < 0:
            if length == CHUNKED:
                self._mode = IN_CHUNKS
                self._decoder = ChunkedDecoder(connection.proxy.limits)
            else:
                self._mode = TO_EOF
            if request.is_1_0 and not connection.proxy.owns_clients:
                self._collected = bytearray()
                self._left = connection.proxy.limits.collect_bytes
                self._relay_body(b"", rest)
            elif request.is_1_0:  # E4
                self._unframed = True
                self.stage = IN_CHUNKED
                self._relay_body(self._head_for_client(UNFRAMED), rest)
            else:
                self.stage = IN_CHUNKED
                self._relay_body(self._head_for_client(CHUNKED), rest)
            return
        self._mode = SIZED
        self.stage = IN_SIZED
        head = self._head_for_client(framing)
        left = self._left = length - len(rest)
        body = rest if left >= 0 else rest[:length]
        if type(body) is bytes and len(body) <= JOIN_BYTES:
            connection.write(head + body)
        else:
            write_pieces(connection, [head, body])
        if left <= 0:
            self._complete(left == 0)

    def _log_fault(self, response: Response) -> None:
        """The agent has answered a failure itself, and says whose fault it was."""
        fault, limit, reason = read_fault(response.fault)
        extra: dict[str, object] = {
            "conn_id": self.connection.conn_id,
            "stage": "response head",
            "status": response.status,
            "fault": fault,
            "method": self.request.method.decode(),
            "reason": reason,
        }
        if limit:
            extra["limit"] = limit
        log.warning("the agent answered a failure", extra=extra)

    def _head_for_client(self, framing: int) -> bytes:
        assert self._response is not None
        closing = self.connection.announce_close(None if self._unframed else self.request)
        connection = b"close" if closing else b"keep-alive" if self.request.is_1_0 else b""
        return head_for_client(self._response, framing, connection)

    def _relay_body(self, head: bytes, data: Piece) -> None:
        """Pass on body bytes that have no Content-Length, behind `head` where that is still to go out."""
        decoder = self._decoder
        try:
            pieces = ([data] if decoder is None else decoder.feed(data)) if data else []
        except ChunkError as error:
            if head:
                self.stage = BEFORE_HEAD  # it has not gone out
            self.fail(502, f"the target's body is broken: {error}", "response body", limit=error.limit)
            return
        ended = decoder is not None and decoder.done
        clean = decoder is not None and not decoder.rest
        if self._collected is not None:
            self._collect(pieces)
            if ended and self._collected is not None:
                self._send_collected(clean)
            return
        for piece in pieces:
            self._passed_bytes += len(piece)
        unframed = self._unframed
        out = encode_chunk(pieces) if pieces and not unframed else pieces
        if head:
            out.insert(0, head)
        if decoder is not None and ended and not unframed:
            out.append(encode_last(forwarded_trailers(decoder.trailers)))
        if out:
            write_pieces(self.connection, out)
        if unframed and head:
            self.connection.end_by_closing()
        if ended:
            self._complete(clean)

    def _collect(self, pieces: list[Piece]) -> None:
        """Keep a body for an HTTP/1.0 client, who needs a Content-Length, up to a bound."""
        collected = self._collected
        assert collected is not None
        for piece in pieces:  # joined: sent byte by byte, it would be many times the memory as pieces
            collected += piece
        if len(collected) > self._left:
            self._collected = None
            reason = "the response has no length and is too large for an HTTP/1.0 client"
            self.fail(502, reason, "response body", limit="limits.collect_bytes")

    def _send_collected(self, clean: bool) -> None:
        body = bytes(self._collected or b"")
        self.stage = IN_SIZED
        write_pieces(self.connection, [self._head_for_client(len(body)), body])
        self._complete(clean)

    def response_eof(self) -> bool:
        """The target sends no more. Returns False: the connection to it ends."""
        upstream = self._upstream
        if self._mode is not TO_EOF or (upstream is not None and upstream.failure is not None):
            self.upstream_lost(None)
        elif self._collected is not None:
            self._send_collected(False)
        else:
            if not self._unframed:
                self.connection.write(LAST_CHUNK)
            self._complete(False)
        return False

    # -- ends

    def _complete(self, clean: bool) -> None:
        """The response is whole. clean: it was framed, and nothing followed it on the connection to the target."""
        upstream, self._upstream = self._upstream, None
        self._mode = DONE
        assert upstream is not None
        assert self._response is not None
        metrics = self.connection.metrics
        if metrics is not None:
            now_s = perf_counter()
            status = self._response.status
            if self._mark_s == self._began_s and status < 300:
                metrics.at_once.add(now_s - self._began_s)
            else:
                if self._body_came_later:
                    metrics.body.add(now_s - self._mark_s)
                else:
                    metrics.head.add(now_s - self._mark_s)
                    metrics.from_target[status // 100] += 1
                metrics.whole.add(now_s - self._began_s)
        if clean and self._request_done and self._response.keep_alive:
            self.connection.proxy.upstreams.release(upstream)  # E3
        else:
            upstream.abort()
        self.connection.exchange_done()

    def upstream_lost(self, error: Exception | None) -> None:
        """The connection to the target is gone before the response was whole."""
        upstream = self._upstream
        if upstream is not None and self._may_retry():
            path = upstream.path
            if path is not None and path.waits():
                self._retry("the agent was lost in silence: the request goes to another")
                return
            if upstream.reused:
                self._retry("a pooled connection had gone stale")
                return
        stage = "response body" if self._answered and self._mode is not HEAD else "response head"
        failure = upstream.failure if upstream is not None else None
        if failure is not None:
            self.fail(failure.status, failure.reason, stage, fault=failure.fault, limit=failure.limit)
            return
        party = self._party
        if self._answered:
            reason = f"the {party} closed the connection before its response was whole"
        elif error is None:
            reason = f"the {party} closed the connection before it answered"
        else:
            reason = f"the connection to the {party} was lost"
        self.fail(502, reason, stage, fault=party)

    def _may_retry(self) -> bool:
        """Whether the request may be sent again, if there is a reason to (E4)."""
        request = self.request
        return bool(
            self._mode is HEAD
            and not self._answered
            and not self._retried
            and request.length == 0
            and not request.upgrade
            and request.method in IDEMPOTENT
        )

    def _retry(self, why: str) -> None:
        """Send the request again, on a new connection (E4)."""
        upstream, target = self._upstream, self.target
        assert upstream is not None
        assert target is not None
        log.warning(why, extra={"conn_id": self.connection.conn_id, "stage": "retry"})
        self._retried = True
        self._upstream = None
        upstream.abort()
        self.corked = self._head
        self.deadline = self.waits_at = NEVER
        self._run(self._dial(target))

    @property
    def _party(self) -> Party:
        """Who is at the other end of the connection that the request goes out on."""
        return "target" if self.target is None else self.target.party

    def client_lost(self) -> None:
        """The client is gone: stop at once."""
        self._end_upstream()

    def fail(
        self,
        status: int,
        reason: str,
        stage: str,
        close: bool = False,
        fault: Party = "target",
        limit: str = "",
        rule: str = "",
    ) -> None:
        """End the exchange: with an answer of the proxy's own where none has begun, by cutting it short otherwise.

        fault: the party that the log names; `reason` names it to the client. limit: the setting that ended the request.
        rule: the one that the party's head broke (rules.py).
        The log has the status that the client got, which is the response's own where its head is out.
        """
        connection, target = self.connection, self.target
        extra: dict[str, object] = {
            "conn_id": connection.conn_id,
            "stage": stage,
            "status": status,
            "fault": fault,
            "method": self.request.method.decode(),
            "target": f"{target.host}:{target.port}" if target is not None else "-",
        }
        if limit:
            extra["limit"] = limit
        if rule:
            extra["rule"] = rule
        extra.update(self.truncation())
        log.log(logging.WARNING if status >= 500 else logging.INFO, reason, extra=extra)
        self._end_upstream()
        if self.stage is BEFORE_HEAD:
            connection.respond_with(status, reason, close=close, fault=fault, limit=limit)
        else:
            connection.cut(self.stage)

    def truncation(self) -> dict[str, int]:
        """Log fields of a response that ends here with its head out and its body not whole; none before its head."""
        response = self._response
        if response is None or self.stage is BEFORE_HEAD:
            return {}
        sent_bytes = response.content_length - self._left if self._mode is SIZED else self._passed_bytes
        return {"status": response.status, "truncated": True, "sent_bytes": sent_bytes}

    def _end_upstream(self) -> None:
        self._mode = DONE
        self.deadline = self.waits_at = NEVER
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def look_at_deadlines(self, now: float) -> None:
        """Called by the sweep, with the loop's time."""
        if now >= self.continue_at:
            self._say_continue()
        if now >= self.deadline:
            self.deadline = NEVER
            limit, party = "limits.first_byte_timeout_s", self._party
            self.fail(504, f"the {party} did not answer in time", "response head", fault=party, limit=limit)
        elif self._upstream is not None and self._upstream.takes_nothing(now):
            limit, party = "limits.write_timeout_s", self._party
            self.fail(504, f"the {party} takes nothing", "request body", fault=party, limit=limit)
        elif now >= self.waits_at:
            self._look_at_path()

    def _look_at_path(self) -> None:
        """No response head yet: is the way to the target dead, and is there another? Each sweep asks."""
        upstream = self._upstream
        if self._mode is not HEAD or upstream is None or upstream.path is None:
            self.waits_at = NEVER
        elif upstream.path.waits() and self._may_retry():
            self._retry("the agent is silent: the request goes to another")


def write_pieces(writer: Any, pieces: list[Piece]) -> None:
    """Write pieces in order: joined into one where they are small, each by reference where they are not."""
    if len(pieces) == 1:
        writer.write(pieces[0])
    elif sum(map(len, pieces)) <= JOIN_BYTES:
        writer.write(b"".join(pieces))
    else:
        writer.writelines(pieces)
