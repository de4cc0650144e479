"""The door that users come through: from an accepted socket to the proxy, by TLS or plainly.

accepted ──► too many? 503, close
    │ a trusted proxy, with `proxy_protocol` ──► its PROXY header ──► wrong, or late ──► 400, close
    │◄───────────────────────────────────────────────┘
    │ plaintext port ─────────────────────────────────────────────────────────► the proxy's connection
    │ TLS port: first bytes ──► HTTP or a PROXY header ──► 400, close
    └─────────────────────────► handshake ──► no certificate where one is due ──► 400, close
                                    └─────────────────────────────────────────► the proxy's connection
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from ..proxy.liveness import reset_when_closed
from ..proxy.origin import ClientOrigin
from ..proxy.request_id import RequestIds
from ..runtime.acceptor import Acceptor, RateLimitedLog
from ..runtime.handover import HandOver
from ..x509.expiry import has_expired
from .entrance import Abortable, Entrance
from .first_bytes import peek, receive_header
from .http2_answer import Http2Answer
from .origins import Origins
from .proxy_protocol import SIGNATURE, MalformedHeader, ProxyHeader, looks_like_header

__all__ = ["UserDoor"]

logger = logging.getLogger(__name__)

TLS_TIMEOUT_S = 10.0
"""From a connection, or the end of its PROXY header, to the end of its TLS handshake."""

ANSWER_TIMEOUT_S = 5.0
"""Seconds that a refused user has to send a byte, and to read the response."""


def _answer(request_id: str, status: str, text: str, *fields: str) -> bytes:
    body = f"{text}\nrequest id: {request_id}\n".encode()
    head = (
        f"HTTP/1.1 {status}",
        "Content-Type: text/plain; charset=utf-8",
        "X-Content-Type-Options: nosniff",
        f"Content-Length: {len(body)}",
        f"X-Request-Id: {request_id}",
        *fields,
        "Connection: close",
        "",
        "",
    )
    return "\r\n".join(head).encode() + body


TOO_MANY = "503 Service Unavailable", "too many connections", "Retry-After: 1"
NOT_TLS = "400 Bad Request", "the client sent an HTTP request to an HTTPS port"
NO_CERTIFICATE = "400 Bad Request", "the client sent no certificate, and one is required"
EXPIRED = "400 Bad Request", "the client's certificate has expired"
UNASKED = "400 Bad Request", "the hub accepts no PROXY header here (proxy_protocol, trusted_proxies)"

_ids = RequestIds()


def _new_id() -> str:
    return _ids.next().decode()


class UserDoor:
    """Admits users to the HTTP port.

    Args:
        protocol: makes the proxy's protocol for one connection of this origin.
        open_connections: the number of the proxy's connections.
        make_room: closes a connection that was never used. Returns whether it found one.
        max_connections: the limit of the port. Past it a connection gets a 503 at once, or is closed before TLS.
        tls: the port's context, None for plaintext.
        certificate_required: users without a certificate get 400.
        reason_of: describes a failed handshake, None if it needs no log line.
        trusted_proxies: addresses and networks of proxies in front of the hub.
        proxy_protocol: a connection from one of them must begin with a PROXY header.
        header_timeout_s: from a connection to the end of its PROXY header.
        entrance: shared by all doors of a hub. None: the door's own.
        fixed_port: the listener's name in the log, if its clients speak no HTTP. Then a refusal is a reset.

    Attributes:
        refused: connections refused here, by reason. `connections` and `handshakes` are too many, the latter of users
            before the end of TLS or a PROXY header. `no_certificate` includes expired ones. `proxy_header` is a wrong
            one, or none in time, and `unasked_proxy_header` is one from a stranger. The others are `not_tls` and `tls`.
    """

    def __init__(
        self,
        *,
        protocol: Callable[[ClientOrigin], asyncio.Protocol],
        open_connections: Callable[[], int],
        make_room: Callable[[], bool],
        max_connections: int,
        tls: ssl.SSLContext | None,
        certificate_required: bool,
        reason_of: Callable[[BaseException], str | None],
        trusted_proxies: Sequence[str] = (),
        proxy_protocol: bool = False,
        header_timeout_s: float = 10.0,
        entrance: Entrance | None = None,
        fixed_port: str = "",
    ) -> None:
        self._protocol = protocol
        self._open_connections = open_connections
        self._make_room = make_room
        self._max_connections = max_connections
        self._tls = tls
        self._certificate_required = certificate_required
        self._reason_of = reason_of
        self._origins = Origins(trusted_proxies, "http" if tls is None else "https")
        self._proxy_protocol = proxy_protocol
        self._header_timeout_s = header_timeout_s
        self._loop = asyncio.get_running_loop()
        self._acceptor: Acceptor | None = None
        self._entrance = Entrance(max(1, max_connections // 2)) if entrance is None else entrance
        self._fixed_port = fixed_port
        self._where = {"listener": fixed_port} if fixed_port else {}  # fields of log lines
        self.refused: Counter[str] = Counter()
        self._full = RateLimitedLog(logger, logging.WARNING, "too many connections from users, so some are refused")
        self._slow = RateLimitedLog(
            logger, logging.WARNING, "too many users before the end of TLS or a PROXY header: the oldest are closed"
        )

    def open(self, sockets: list[socket.socket]) -> int:
        """Accept on these sockets, which are the door's from now on. Returns the port."""
        refuse = _send_too_many if self._tls is None and not self._fixed_port else lambda sock: None
        name, entrance = self._fixed_port or "http", self._entrance
        self._acceptor = Acceptor(sockets, self._accepted, refuse, name=name, is_busy=lambda: entrance.is_busy)
        self._origins.port = self._acceptor.port
        self._acceptor.start()
        return self._acceptor.port

    def stop(self) -> None:
        """Accept no more. Those that have come are let in. Again is no error."""
        if self._acceptor is not None:
            self._acceptor.close()
        self._full.close()
        self._slow.close()

    async def close(self) -> None:
        """Close all that is not the proxy's yet, at other doors with this entrance too.

        Cancelled: all of it is closed but not waited for.
        """
        self.stop()
        entrance = self._entrance
        tasks = list(entrance.entering)
        while entrance.entering:
            entrance.hang_up_oldest()
        for answer in list(entrance.answering):
            answer.abort()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def refused_descriptors(self) -> int:
        """Connections refused because no descriptor was left."""
        return self._acceptor.refused if self._acceptor is not None else 0

    # -- who comes

    def _has_room(self) -> bool:
        taken = self._open_connections() + len(self._entrance)
        if taken < self._max_connections or self._make_room():
            return True
        self.refused["connections"] += 1
        self._full(limit=self._max_connections, **self._where)
        return False

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        if not self._has_room():
            with sock, contextlib.suppress(OSError):
                if self._fixed_port:
                    _reset(sock)
                elif self._tls is None:
                    _send_too_many(sock)
            return
        origin = self._origins.of_socket(address)
        has_header = self._proxy_protocol and origin.is_trusted
        if self._tls is None and not has_header:
            self._enter(self._loop.connect_accepted_socket(functools.partial(self._protocol, origin), sock), sock)
            return
        if self._entrance.is_full:
            self._entrance.hang_up_oldest()
            self.refused["handshakes"] += 1
            self._slow(limit=self._entrance.most)
        self._enter(self._let_in(sock, address, origin, has_header=has_header), sock)

    def _enter(self, entering: Coroutine[Any, Any, Any], sock: socket.socket) -> None:
        task: asyncio.Task[Any] = self._loop.create_task(entering)
        self._entrance.entering[task] = sock
        task.add_done_callback(self._entered)

    def _entered(self, task: asyncio.Task[Any]) -> None:
        self._entrance.forget(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OSError):  # the peer has left
            logger.debug("a user's connection can't be served", extra={"reason": str(error)})
        elif error is not None:
            raise error

    async def _let_in(self, sock: socket.socket, peer: Any, origin: ClientOrigin, *, has_header: bool) -> None:
        """Let a connection in by its PROXY header, by TLS, or by both. peer: for the log."""
        if has_header:
            header = await self._receive_header(sock, peer)
            if header is None:
                return
            origin = self._origins.of_header(origin, header)
            if header.source:
                peer = (header.source, header.source_port)
        if self._tls is None:
            await self._loop.connect_accepted_socket(functools.partial(self._protocol, origin), sock)
        else:
            await self._let_in_by_tls(sock, peer, origin)

    async def _receive_header(self, sock: socket.socket, peer: Any) -> ProxyHeader | None:
        """The PROXY header of a connection. None: it has none, and the door has closed it or sends a response."""
        found: ProxyHeader | None = None
        reason = limit = ""
        try:
            async with asyncio.timeout(self._header_timeout_s):
                found = await receive_header(sock)
        except TimeoutError:
            limit = "limits.head_timeout_s"
            reason = f"the PROXY header did not arrive within {self._header_timeout_s:g} s ({limit})"
        except MalformedHeader as error:
            reason, limit = f"{error} (proxy_protocol)", error.limit
        except BaseException:
            sock.close()
            raise
        if asyncio.current_task() not in self._entrance.entering:  # it gave way to another, or the door has closed
            sock.close()
            return None
        if reason:
            await self._refuse_header(sock, peer, reason, limit)
        elif found is None:  # a proxy's check of the port
            sock.close()
            logger.debug("a proxy closed a connection before its PROXY header", extra={"peer": peer})
        return found

    async def _refuse_header(self, sock: socket.socket, peer: Any, reason: str, limit: str) -> None:
        self.refused["proxy_header"] += 1
        request_id = _new_id()
        extra = {"request_id": request_id, "peer": peer, "reason": reason, "fault": "client"}
        if limit:
            extra["limit"] = limit
        logger.warning("a trusted proxy sent no valid PROXY header", extra=extra)
        answer = _answer(request_id, "400 Bad Request", reason)
        await self._loop.connect_accepted_socket(lambda: _Answer(self._entrance.answering, answer, at_once=True), sock)

    async def _let_in_by_tls(self, sock: socket.socket, peer: Any, origin: ClientOrigin) -> None:
        protocol: Callable[[], asyncio.BaseProtocol] = functools.partial(self._protocol, origin)
        if self._certificate_required:
            protocol = lambda: HandOver(functools.partial(self._choose_by_certificate, peer, origin))  # noqa: E731
        due_s = self._loop.time() + TLS_TIMEOUT_S
        try:
            async with asyncio.timeout_at(due_s):
                first = await peek(sock, len(SIGNATURE))
            answer = self._answer_to_plaintext(first, peer)
            if answer is not None and self._fixed_port:
                _reset(sock)
                sock.close()
                return
            if answer is not None:
                await self._loop.connect_accepted_socket(lambda: _Answer(self._entrance.answering, answer), sock)
                return
            await self._loop.connect_accepted_socket(
                protocol, sock, ssl=self._tls, ssl_handshake_timeout=max(0.1, due_s - self._loop.time())
            )
        except TimeoutError:
            sock.close()
            self._failed(peer, "no byte came in time")
        except OSError as error:  # ssl.SSLError is one
            sock.close()
            reason = self._reason_of(error)
            if reason is not None:
                self._failed(peer, reason)
        except asyncio.CancelledError:
            sock.close()
            raise

    def _answer_to_plaintext(self, first: bytes, peer: Any) -> bytes | None:
        """The response to a user who begins with HTTP or a PROXY header. None: the handshake decides."""
        if looks_like_header(first):
            self.refused["unasked_proxy_header"] += 1
            extra = {"request_id": _new_id(), "peer": peer, **self._where}
            logger.warning("a user sent a PROXY header, which only trusted proxies may", extra=extra)
            return _answer(extra["request_id"], *UNASKED)
        if first[:1].isalpha() or first[:1] == b"\r":
            self.refused["not_tls"] += 1
            extra = {"request_id": _new_id(), "peer": peer, **self._where}
            logger.info("a user speaks plain HTTP to the TLS port", extra=extra)
            return _answer(extra["request_id"], *NOT_TLS)
        return None

    def _failed(self, peer: Any, reason: str) -> None:
        self.refused["tls"] += 1
        logger.info("a user's TLS handshake failed", extra={"peer": peer, "reason": reason, **self._where})

    def _choose_by_certificate(
        self, peer: Any, origin: ClientOrigin, transport: asyncio.Transport
    ) -> asyncio.BaseProtocol | None:
        """The proxy's protocol for a user who shows a valid certificate, one that sends a 400 for any other.

        TLS also accepts users without a certificate, so that they get the 400. A TLS 1.3 client doesn't wait for the
        server's verdict.
        """
        certificate = transport.get_extra_info("peercert")
        if certificate and not has_expired(certificate):
            return self._protocol(origin)
        self.refused["no_certificate"] += 1
        extra = {"request_id": _new_id(), "peer": peer, **self._where}
        # A certificate can expire after the handshake that this TLS session began with.
        logger.info("a user's certificate has expired" if certificate else "a user showed no certificate", extra=extra)
        if self._fixed_port:
            reset_when_closed(transport, True)
            return None  # which aborts the connection
        answering, (status, text) = self._entrance.answering, EXPIRED if certificate else NO_CERTIFICATE
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
            return Http2Answer(answering, int(status[:3]), text, extra["request_id"], ANSWER_TIMEOUT_S).protocol
        return _Answer(answering, _answer(extra["request_id"], status, text))


class _Answer(asyncio.Protocol):
    """Sends its response to any input, and closes. It also reads the input, so that the client can read the response.

    open: the set that holds this protocol while it is connected. at_once: without waiting for input.
    """

    def __init__(self, open: set[Abortable], answer: bytes, *, at_once: bool = False) -> None:
        self._open = open
        self._answer = answer
        self._at_once = at_once
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self)
        self._timer = asyncio.get_running_loop().call_later(ANSWER_TIMEOUT_S, self.abort)
        if self._at_once:
            self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        answer, self._answer = self._answer, b""
        if answer and self._transport is not None:
            self._transport.write(answer)
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()  # TLS sends its close_notify, and reads the peer's

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _reset(sock: socket.socket) -> None:
    """Have the close of a socket reset the connection. A Unix socket has no reset."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _send_too_many(sock: socket.socket) -> None:
    """Send a 503 at once. The client's bytes are read first, since a close with unread bytes discards the response."""
    with contextlib.suppress(BlockingIOError):
        sock.recv(65536)
    sock.send(_answer(_new_id(), *TOO_MANY))
    sock.shutdown(socket.SHUT_WR)
