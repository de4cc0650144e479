"""Relays one exchange: a request to its target, the response back, both bodies streamed.

It knows no protocol. Its client is a `ClientSide`, its target an `UpstreamStream`, and these two read and write HTTP.
Everything happens in callbacks of the two sides. A task exists only while the policy or a dial is awaited.

    request    head checked ─► (route, process, connect awaited) ─► head + body as it comes ─► sent whole
    response   AWAITED ──final head──► RELAYED ──body whole──► DONE   (1xx stay in AWAITED; 101 leaves for upgrade.py)

A CONNECT is sent to an agent on a new connection, and a 2xx leaves for upgrade.py too. A raw target gets no head. There
the proxy itself responds with 200.

Both halves run at the same time. A target may stream its response before it has read the whole request.

Invariants:
E1. Nothing of a response is sent before its whole head was checked. The head is sent before its body.
E2. After the first byte of a response head no other response follows. The rest is sent, or the connection is cut.
E3. The stream is finished, rather than aborted, only if the response was read to its end.
E4. A request is sent at most twice. It must be idempotent, without a body, and without a byte of response. And a reused
    connection broke, or the path to its target is probably dead and another path exists.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
from collections.abc import Coroutine
from time import perf_counter
from typing import Any

from ..errors import Party, TargetError
from ..messages import RequestHead, Target
from ..syntax import Address
from .blame import log_fault, read_fault
from .client_side import ClientSide
from .clock import NEVER
from .context import ExchangeContext
from .decision import Decision, PendingDecision, decide
from .grpc import CALL_DEADLINE, SLACK_S, timeout_s
from .head_writer import ESTABLISHED, TargetHead, check_size, head_for_target
from .headers import Fields, check_fields
from .heads import (
    IDEMPOTENT,
    Request,
    Response,
    parse_response,
    response_fields,
    switches_as_asked,
    with_fields,
)
from .metrics import RequestMetrics
from .pieces import Piece
from .refusals import respond_to_policy
from .upgrade import Upgraded
from .upstream_stream import UpstreamStream

__all__ = ["Exchange"]

logger = logging.getLogger(__name__)


class State(enum.Enum):
    """The progress of the response."""

    AWAITED = enum.auto()
    RELAYED = enum.auto()
    DONE = enum.auto()


AWAITED, RELAYED, DONE = State  # looked up once: until Python 3.12 an enum's attribute costs a call


class Exchange:
    """Relays one request and its response. The client side reports what the client does, and gets the response.

    Attributes:
        client: the side that the request came from.
        metrics: counts the request, unless None.
        request, own_target: its checked head.
        target: chosen by the route, None before.
        corked: the head waits for the first piece of body, so that both are sent together.
        deadline: for the target's response head. Of a call: for all of it.
        is_call: it is a gRPC call, without any timeout but its own (grpc.py).
        waits_at: the time to ask whether the path to the target is alive.
        continue_at: the time at which the proxy sends a 100.
    """

    __slots__ = (
        "_began_s",
        "_body_came_later",
        "_context",
        "_head",
        "_mark_s",
        "_received",
        "_request_done",
        "_retried",
        "_state",
        "_status",
        "_task",
        "_unsent",
        "_upstream",
        "client",
        "continue_at",
        "corked",
        "deadline",
        "is_call",
        "metrics",
        "own_target",
        "request",
        "target",
        "waits_at",
    )

    def __init__(
        self,
        client: ClientSide,
        context: ExchangeContext,
        metrics: RequestMetrics | None,
        request: Request,
        own_target: bytes,
    ) -> None:
        self.client = client
        self.metrics = metrics
        self.request = request
        self.own_target = own_target
        self.target: Target | None = None
        self.corked = False
        self.deadline = self.continue_at = self.waits_at = NEVER
        self.is_call = request.is_grpc and client.carries_grpc
        self._context = context
        self._upstream: UpstreamStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._received: RequestHead | None = None
        self._head: TargetHead | None = None
        self._unsent: bytearray | None = None  # body that came before there was a stream to the target
        self._request_done = request.length == 0
        self._retried = False
        self._state = AWAITED
        self._status = 0  # the final response's
        self._body_came_later = False  # than the response's head
        self._began_s = self._mark_s = 0.0  # the start of the exchange and of the current stage, if measured

    @property
    def awaits_continue(self) -> bool:
        """Whether the client may still be waiting for a 100 before it sends its body."""
        return self.continue_at != NEVER

    # -- where the request goes

    def start(self) -> None:
        """Ask the policy where the request goes, and send it there."""
        request, context = self.request, self._context
        if self.metrics is not None:
            self._began_s = self._mark_s = perf_counter()
        if request.expects_continue:
            self.continue_at = context.clock.later(context.limits.expect_timeout_s)
        if self.is_call:
            self.deadline = context.clock.later(timeout_s(request.fields) + SLACK_S)
        version = "1.0" if request.is_1_0 else "1.1"
        fields = request.received.copy()
        self._received = head = RequestHead(
            request.name,
            self.own_target,
            version,
            fields,
            self.client.conn_id,
            context.cluster,
            "",
            request.peer,
            request.scheme,
            request.public_host,
            request.prefix_text,
            self.client.request_id.decode("ascii"),
        )
        try:
            if request.is_connect:
                assert context.connect_route is not None  # without it, the head was refused
                decision = decide(head, context.connect_route, None)
            else:
                decision = decide(head, context.route, context.process)
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
            if self.metrics is not None:
                self.metrics.policy.add(self._lap_s())
        self._task = None
        self._send(decision)

    def _run(self, work: Coroutine[Any, Any, None], pending: PendingDecision | None = None) -> None:
        """Run `work` in a task. Its errors become responses. The task is cancelled if the client leaves."""
        self._task = task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(functools.partial(self._work_done, pending))

    def _work_done(self, pending: PendingDecision | None, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            if pending is not None:
                pending.forget()
            return
        error = task.exception()
        if error is None or self._state is DONE:
            return
        self._task = None
        if isinstance(error, TargetError):
            self.fail(error.status, error.reason, error.stage, fault=error.fault, limit=error.limit)
        else:
            self._policy_failed(error)

    def _policy_failed(self, error: BaseException) -> None:
        self._end_upstream()
        respond_to_policy(self.client, error, self._received)

    # -- the request's way

    def _send(self, decision: Decision) -> None:
        """Check the head for the target and send it on a stream that is there, or dial."""
        target, decided = decision
        request, context = self.request, self._context
        if request.upgrade:
            target = target.for_upgrade()
        self.target = target
        if request.is_connect:
            self._send_connect(target)
            return
        fields = request.fields if context.process is None else decided.headers
        if request.has_urls and target.map_request is not None and self._received is not None:
            fields = target.map_request(self._received, target, fields)
        head = head_for_target(request, self.own_target, fields, target, self.client.request_id)
        if target.bounds_head:
            check_size(head.as_http1(), context.limits)
        if target.answers_expect and self.continue_at != NEVER:
            self._say_continue()
        self._head = head
        self.corked = True
        upstream = context.upstreams.take(target)
        if upstream is None:
            self._run(self._dial(target))
            return
        self._attach(upstream)
        if not self.client.is_delivering:
            self.uncork()

    def _send_connect(self, target: Target) -> None:
        """Open a raw target, or send the CONNECT on a new connection. A pooled one might need a retry."""
        if target.is_raw:
            self._run(self._open_raw(target))
        else:
            request = self.request
            self._head = head_for_target(request, self.own_target, request.fields, target, self.client.request_id)
            self.corked = True
            self._run(self._dial(target))

    async def _open_raw(self, target: Target) -> None:
        upstream = await self._context.upstreams.dial(target)
        self._task = None
        if self.metrics is not None:
            self.metrics.connect.add(self._lap_s())
        self._leave_for_tunnel(upstream, parse_response(ESTABLISHED), b"")

    async def _dial(self, target: Target) -> None:
        upstream = await self._context.upstreams.dial(target)
        self._task = None
        if self.metrics is not None:
            self.metrics.connect.add(self._lap_s())
        self._attach(upstream)
        self.uncork()

    def _lap_s(self) -> float:
        """How long the stage took that ends now."""
        before_s, self._mark_s = self._mark_s, perf_counter()
        return self._mark_s - before_s

    def _attach(self, upstream: UpstreamStream) -> None:
        """Use this stream to the target from now on."""
        if not upstream.start(self, self.request):
            party = self._party
            raise TargetError(502, f"the {party} closed the connection at once", stage="connect", fault=party)
        self._upstream = upstream
        if upstream.path is not None:
            self.waits_at = self._context.clock.later(self._context.limits.unanswered_s)
        if self.client.writing_paused:
            upstream.pause_reading()
        if self._unsent is not None:
            unsent, self._unsent = self._unsent, None
            self._write_upstream([bytes(unsent)] if unsent else [], self._request_done)
            if not upstream.writing_paused:
                self.client.resume_request()
        if self._request_done:
            self._await_response()

    def _await_response(self) -> None:
        if self._state is AWAITED and not self.is_call:
            self.deadline = self._context.clock.later(self._context.limits.first_byte_timeout_s)

    def uncork(self) -> None:
        """Send the request head if it still waits for a first piece of body to go with."""
        if self.corked and self._upstream is not None:
            self._write_upstream([], False)

    def client_data(self, pieces: list[Piece], ended: bool) -> None:
        """Send the next pieces of the request's body. ended: they are the last."""
        self.continue_at = NEVER  # the client sends without waiting for a 100
        if ended:
            self._request_done = True
        if self._upstream is not None:
            self._write_upstream(pieces, ended)
            if ended:
                self._await_response()
        elif self._state is AWAITED:
            # Joined: a client may send it byte by byte, which as pieces would be many times the memory, and time.
            if self._unsent is None:
                self._unsent = bytearray()
            for piece in pieces:
                self._unsent += piece
            if len(self._unsent) > self._context.limits.buffer_bytes:
                self.client.pause_request()

    def _write_upstream(self, pieces: list[Piece], ended: bool) -> None:
        assert self._upstream is not None
        head = self._head if self.corked else None
        self.corked = False
        self._upstream.send(head, pieces, ended)

    # -- either side is full, or empty again

    def pause_sending(self) -> None:
        """The target takes no more for now."""
        if not self._request_done:
            self.client.pause_request()

    def resume_sending(self) -> None:
        """The target takes more."""
        self.client.resume_request()

    def pause_receiving(self) -> None:
        """The client takes no more for now."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_receiving(self) -> None:
        """The client takes more."""
        if self._upstream is not None:
            self._upstream.resume_reading()

    # -- the response's way

    def target_moved(self) -> None:
        """Note the arrival of bytes that are no whole head yet."""
        if self.client.may_have_left:
            self.client.target_moved()

    def informational(self, response: Response) -> bool:
        """Forward a 100 once if the client expects it, and each 103. Drop all others.

        Returns False if the exchange has ended, because the policy could not map the 103.
        """
        self.target_moved()
        if response.status == 100:
            if self.awaits_continue:
                self._say_continue()
        elif response.status == 103:
            mapped = self._mapped(response)
            if mapped is None:
                return False
            self.client.send_informational(mapped)
        if self._request_done:
            self._await_response()
        return True

    def _say_continue(self) -> None:
        self.continue_at = NEVER
        self.client.send_continue()

    def switched(self, response: Response, rest: Piece) -> None:
        """The target has switched protocols: pass it on where it was asked to, to what it was asked to."""
        upstream = self._upstream
        assert upstream is not None
        self.target_moved()
        if response.status == 101 and not switches_as_asked(response, self.request):
            self.fail(502, "the target switched protocols unasked", "response head", rule="switch-unasked")
            return
        mapped = self._mapped(response)
        if mapped is None:
            return
        self._upstream = None
        self._leave_for_tunnel(upstream, mapped, rest)

    def _leave_for_tunnel(self, upstream: UpstreamStream, response: Response, rest: Piece) -> None:
        """From now on all bytes are the tunnel's. rest: the target's first ones."""
        client, context = self.client, self._context
        self._state = DONE
        if self.metrics is not None:
            self.metrics.upgraded += 1
        idle_s = (context.limits.connect_idle_s or NEVER) if self.request.is_connect else NEVER
        upgraded = Upgraded(client, upstream, self._party, context.clock, context.limits, idle_s)
        held = upstream.switch(upgraded)
        client.switch_protocols(response, rest, upgraded)
        if held is not None and held.give_to(upgraded) and not client.writing_paused:
            upstream.resume_reading()

    def response_started(
        self, response: Response, length: int, pieces: list[Piece], ended: bool, trailers: Fields
    ) -> None:
        """Pass on the final response's head, with what has come of its body."""
        client = self.client
        if client.may_have_left:
            client.target_moved()
        if response.status == 405 and self.request.is_connect:  # another session of the cluster took it
            self.fail(501, f"the {self._party} does not serve CONNECT", "response head", fault=self._party)
            return
        if response.has_urls:
            mapped = self._mapped(response)
            if mapped is None:
                return
            response = mapped
        self._state = RELAYED
        self._status = response.status
        self.waits_at = NEVER
        if not self.is_call:
            self.deadline = NEVER
        if response.fault and self._context.party == "hub":
            fault, limit, reason = read_fault(response.fault)
            if response.status >= 500:
                log_fault(client.log_fields(), fault, limit, reason, response.status, self.request.method)
            if self.is_call:
                upstream = self._upstream
                if ended and upstream is not None:
                    self._upstream = None
                    upstream.finish(self._request_done)
                self._end_upstream()
                client.respond_with(response.status, reason, fault=fault, limit=limit)
                return
        client.start_response(response, length, pieces, ended, trailers)
        if self._state is DONE:  # the client side could not relay it
            return
        if ended:
            self._complete()
        elif self.metrics is not None:
            self._body_came_later = True
            self.metrics.head.add(self._lap_s())
            self.metrics.from_target[response.status // 100] += 1

    def _mapped(self, response: Response) -> Response | None:
        """The response with the URLs that the policy maps. None if the policy failed, and the exchange has ended."""
        target, received = self.target, self._received
        if not response.has_urls or target is None or target.map_response is None or received is None:
            return response
        try:
            fields = target.map_response(received, target, response_fields(response))
            check_fields(fields)
        except Exception:
            logger.exception("the response's fields could not be mapped", extra=self.client.log_fields())
            self.fail(502, "the response's fields could not be mapped", "response head", fault="policy")
            return None
        return with_fields(response, fields)

    def response_body(self, pieces: list[Piece], ended: bool, trailers: Fields) -> None:
        """Pass on the next pieces of the response's body."""
        client = self.client
        if client.may_have_left:
            client.target_moved()
        client.send_body(pieces, ended, trailers)
        if ended and self._state is not DONE:
            self._complete()

    def response_failed(self, reason: str, stage: str, limit: str, rule: str) -> None:
        """The target broke its protocol or passed a limit."""
        self.target_moved()
        self.fail(502, reason, stage, limit=limit, rule=rule)

    # -- ends

    def _complete(self) -> None:
        """The response is whole."""
        upstream, self._upstream = self._upstream, None
        self._state = DONE
        assert upstream is not None
        metrics = self.metrics
        if metrics is not None:
            now_s = perf_counter()
            status = self._status
            if self._mark_s == self._began_s and status < 300:
                metrics.at_once.add(now_s - self._began_s)
            else:
                if self._body_came_later:
                    metrics.body.add(now_s - self._mark_s)
                else:
                    metrics.head.add(now_s - self._mark_s)
                    metrics.from_target[status // 100] += 1
                metrics.whole.add(now_s - self._began_s)
        upstream.finish(self._request_done)  # E3
        self.client.response_done()

    def upstream_lost(self, error: Exception | None) -> None:
        """Handle the loss of the connection to the target before the response was whole."""
        upstream = self._upstream
        if upstream is not None and self._may_retry():
            path = upstream.path
            if path is not None and path.waits():
                self._retry("the request goes to another agent, since this one went silent and was lost")
                return
            if upstream.reused:
                self._retry("the target had closed a pooled connection")
                return
        stage = "response head" if self._state is AWAITED else "response body"
        failure = upstream.failure if upstream is not None else None
        if failure is not None:
            self.fail(failure.status, failure.reason, stage, fault=failure.fault, limit=failure.limit)
            return
        party = self._party
        if upstream is not None and upstream.has_answered:
            reason = f"the {party} closed the connection before its response was whole"
        elif error is None:
            reason = f"the {party} closed the connection before it responded"
        else:
            reason = f"the connection to the {party} was lost"
        self.fail(502, reason, stage, fault=party)

    def _may_retry(self) -> bool:
        """Whether the request may be sent again, if there is a reason to (E4)."""
        request = self.request
        return bool(
            self._state is AWAITED
            and self._upstream is not None
            and not self._upstream.has_answered
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
        logger.warning(why, extra={**self.client.log_fields(), "stage": "retry"})
        self._retried = True
        self._upstream = None
        upstream.abort()
        self.corked = True
        self.waits_at = NEVER
        if not self.is_call:
            self.deadline = NEVER
        self._run(self._dial(target))

    @property
    def _party(self) -> Party:
        """The party at the other end of the upstream connection."""
        return "target" if self.target is None else self.target.party

    def client_lost(self) -> None:
        """Stop at once, because the client left."""
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
        """End the exchange: by a response of the proxy if none has begun, and otherwise by cutting the response short.

        The log has the status that the client got. If the response's head was sent, that is the response's status.

        Args:
            reason: names the party to the client. fault: names it in the log.
            limit: the setting that ended the request, or "".
            rule: the rule that the party's head broke (rules.py), or "".
        """
        client, target = self.client, self.target
        extra: dict[str, object] = {
            **client.log_fields(),
            "stage": stage,
            "status": status,
            "fault": fault,
            "method": self.request.method.decode(),
            "target": str(Address(target.host, target.port)) if target is not None else "-",
        }
        if limit:
            extra["limit"] = limit
        if rule:
            extra["rule"] = rule
        extra.update(client.truncation())
        logger.log(logging.WARNING if status >= 500 else logging.INFO, reason, extra=extra)
        self._end_upstream()
        if client.response_begun:
            client.abort_response(reason, limit)
        else:
            client.respond_with(status, reason, close=close, fault=fault, limit=limit)

    def _end_upstream(self) -> None:
        self._state = DONE
        self.deadline = self.waits_at = NEVER
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def look_at_deadlines(self, now: float) -> None:
        """Called by the sweep, with the clock's time."""
        if now >= self.continue_at:
            self._say_continue()
        if now >= self.deadline:
            self.deadline = NEVER
            self._fail_late()
        elif self._upstream is not None and not self.is_call and self._upstream.takes_nothing(now):
            limit, party = "limits.write_timeout_s", self._party
            self.fail(504, f"the {party} takes nothing", "request body", fault=party, limit=limit)
        elif now >= self.waits_at:
            self._look_at_path()

    def _fail_late(self) -> None:
        """The deadline has passed."""
        party = self._party
        if self.is_call:
            stage = "response head" if self._state is AWAITED else "response body"
            self.fail(504, "the call's grpc-timeout passed", stage, fault=party, limit=CALL_DEADLINE)
        else:
            limit = "limits.first_byte_timeout_s"
            self.fail(504, f"the {party} did not respond in time", "response head", fault=party, limit=limit)

    def _look_at_path(self) -> None:
        """No response head yet: is the way to the target dead, and is there another? Each sweep asks."""
        upstream = self._upstream
        if self._state is not AWAITED or upstream is None or upstream.path is None:
            self.waits_at = NEVER
        elif upstream.path.waits() and self._may_retry():
            self._retry("the request goes to another agent, since this one is silent")
