"""The agent's side of one session: a connection to a hub with one call on it.

             connected: head and probe are sent    the hub replies
    DIALLING ────────────────────────────────► PROBING ───────────────► UP
                                                  │                      │
             status, reset, connection lost, no reply to a probe         │
                                                  ▼                      ▼
                                               ENDED ◄───────────────────┘

After a graceful GOAWAY, a DRAIN or `leave`, a call stays UP until it ends, and `left` is done.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import ssl
from ssl import SSLContext

from ..errors import HubError, WireError
from ..http2.connection import Http2Connection
from ..http2.errors import OtherProtocolError
from ..http2.head_rules import Headers
from ..http2.stream import Http2Stream
from ..runtime.deadlines import CATCH_UP_S, LATE_S
from ..syntax import Address
from ..x509.peer import TIMEOUT_S, fault_of_own, has_wrong_dates, verify_reason, whose_dates
from .budget import SharedBudget, SparedAccount
from .connect import Proxy, connect
from .features import GOAWAY, read_features, write_features
from .grpc import GrpcStatus, Metadata, Status, request_headers, response_status
from .messages import MessageReader, MessageRefused, PacketWriter
from .packet import PROBE_ID, ControlCode
from .session import Tunnel
from .window import WindowBudget

__all__ = ["Call", "HubEndpoint", "ReplacedError"]

_FLOOD_PACKETS = 1000
"""The number of empty packets for id 0 between two probes that makes a flood. A base hub with a newer agent of this
cluster sends it (wire.md, "ids ≤ 0")."""

_MAX_PROBE_S = 60.0
"""The longest wait for a probe's reply while bytes move: 32 MB in a base hub's queue before it, at 0.5 MB/s."""

_REFUSALS = {
    "CERTIFICATE_REQUIRED": "it asks for one",
    "UNKNOWN_CA": "it doesn't know who signed it",
    "CERTIFICATE_EXPIRED": "it has expired",
    "CERTIFICATE_REVOKED": "it was revoked",
    "BAD_CERTIFICATE": "it is bad",
    "UNSUPPORTED_CERTIFICATE": "it is of a kind that isn't supported",
    "CERTIFICATE_UNKNOWN": "it can't be used",
    "HANDSHAKE_FAILURE": "it asks for another, or for other TLS",
    "ACCESS_DENIED": "access denied",
}
"""TLS alerts (RFC 8446, section 6.2) with which a hub rejects our certificate, and their meaning."""

_WRONG_NAME = (62, 64)
"""OpenSSL's codes of a certificate for another name or address (x509_vfy.h)."""

_WRONG_PORT = "perhaps this is the hub's HTTP port (grpc_address of the hub is the agents' port)"
"""The advice if a hub speaks no tunnel on the port that was dialled."""

_ASK_AGAIN_S = 60.0
"""How long a hub isn't asked again for the dates of its certificate: a dial fails each second at first."""

_MOST_ASKED = 100

_asked: dict[tuple[str, str, int], tuple[float, str]] = {}
"""By hub, name and OpenSSL's code: when the hub's certificate was last queried, and the fault of its dates."""

_REJECTED = (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class HubEndpoint:
    """The endpoint of a hub.

    ssl: None for plaintext (h2c). A context must offer ALPN h2.
    server_hostname: the required name in the hub's certificate, if it isn't `host`.
    proxy: an HTTP proxy for the dial, by CONNECT.
    proxy_ssl: the context of a proxy with TLS.
    cert_file: the certificate that `ssl` presents, "" for none. If the hub rejects it, the error has its dates.
    """

    host: str
    port: int
    ssl: SSLContext | None = None
    server_hostname: str | None = None
    proxy: Proxy | None = None
    proxy_ssl: SSLContext | None = None
    cert_file: str = ""

    @property
    def authority(self) -> str:
        """`:authority`: what the hub is called."""
        return str(Address(self.server_hostname or self.host, self.port))

    def __str__(self) -> str:
        return str(Address(self.host, self.port))


class ReplacedError(HubError):
    """The hub has another agent of this cluster: coming back soon would only push that one out again."""

    def __init__(self) -> None:
        reason = "the hub floods id 0: another agent of this cluster has replaced this one"
        super().__init__(reason, retryable=False, cause="replaced")


class Call:
    """One session with a hub.

    features: the extensions offered to the hub.
    ended: done when the session is closed. Its result is None after a requested, orderly end, else a HubError.
    left: done when the session opens nothing new, after GOAWAY, DRAIN or `leave`.
    drained: done when the hub has sent DRAIN, if `goaway` was negotiated.
    closed: done when the transport is closed too.
    vacating: the next session with this hub waits for the end of this one.
    """

    def __init__(
        self,
        endpoint: HubEndpoint,
        metadata: Metadata,
        user_agent: str,
        *,
        window_bytes: int,
        message_bytes: int,
        features: frozenset[str] = frozenset(),
        windows: WindowBudget | None = None,
        messages: SharedBudget | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self.tunnel = Tunnel("agent", self, windows)
        self.connection = Http2Connection(
            self,
            client=True,
            window_bytes=window_bytes,
            checks_alpn=endpoint.ssl is not None,  # TLS with a proxy alone: the hub is spoken to in plaintext
            make_reader=lambda _, window_bytes: MessageReader(
                self.tunnel,
                window=window_bytes,
                max_message_bytes=message_bytes,
                account=None if messages is None else SparedAccount(messages),
            ),
            make_writer=PacketWriter,
        )
        self.ended: asyncio.Future[HubError | None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.left: asyncio.Future[None] = loop.create_future()
        self.drained: asyncio.Future[None] = loop.create_future()
        self.vacating = False
        self._offered = features
        self._metadata = metadata
        self._user_agent = user_agent
        self._drain_said_s = float("inf")
        self._ending = False  # the end of the stream is what we wait for
        self._finished_s = float("inf")
        self._probe: asyncio.Future[None] | None = None
        self._probed_s = 0.0  # when the last probe was sent
        self._for_id_0 = 0  # packets since the last reply to a probe

    # -- what the client calls

    async def dial(self, timeout_s: float, tls_timeout_s: float) -> None:
        """Connect and send the call's head. Raises HubError. If cancelled, nothing stays open.

        timeout_s: for the TCP connection.
        tls_timeout_s: for the TLS handshake after it.
        """
        endpoint = self.endpoint
        through = "" if endpoint.proxy is None else f" through the proxy {endpoint.proxy}"
        try:
            await connect(endpoint, self.connection, dial_timeout_s=timeout_s, tls_timeout_s=tls_timeout_s)
        except HubError as error:
            self.fail(error)
        except ssl.SSLError as error:
            self.fail(self._refused(error) or await self._tls_failed(error, f"TLS with {endpoint}{through}"))
        except (OSError, UnicodeError) as error:  # the latter for a name that DNS can't have
            reason = getattr(error, "strerror", "") or error
            hint = self._tls_hint if isinstance(error, ConnectionResetError) else ""  # in a handshake of TLS 1.2
            # TCP was connected. A hub with a full queue closes before TLS.
            unheard = endpoint.ssl is not None and isinstance(error, ConnectionResetError | ConnectionAbortedError)
            self.fail(HubError(f"no connection to {endpoint}{through}: {reason}{hint}", cause="dial", unheard=unheard))
        except BaseException:
            self.fail(HubError("the dial was cancelled", cause="dial"))
            raise
        finally:
            if not self.connection.was_made and not self.closed.done():
                self.closed.set_result(None)  # no transport will report it
        await self._raise_if_ended()

    async def probe(self, timeout_s: float, *, least_s: float = 0.0) -> None:
        """Probe the tunnel. Returns when the hub has replied.

        Raises HubError without a reply within timeout_s, or if the session closes. While bytes arrive, or the hub's TCP
        acknowledges earlier bytes, the hub gets timeout_s more, up to a minute. If cancelled, the session
        stays open. least_s: the shortest wait in any case.
        """
        await self._raise_if_ended()
        loop = asyncio.get_running_loop()
        self._probe = loop.create_future()
        self.tunnel.send(PROBE_ID, ControlCode.DATA)
        asked_s = looked_s = self._probed_s = loop.time()
        heard_s, (taken_bytes, _) = self.connection.heard_s, self.connection.outgoing()
        wait_s, was_late = timeout_s, False
        while not self._probe.done():
            await asyncio.wait((self._probe, self.ended), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            await self._raise_if_ended()
            if not self._probe.done():
                before_s, looked_s = looked_s, loop.time()
                late_s = looked_s - before_s - wait_s
                was_late = late_s > LATE_S and not was_late  # as for liveness.py's L2
                if was_late:  # the process was stopped, so that time doesn't count, and waiting bytes are read first
                    wait_s = min(timeout_s, late_s) + CATCH_UP_S
                    continue
                wait_s = timeout_s
                heard_before_s, heard_s = heard_s, self.connection.heard_s
                taken_before_bytes = taken_bytes
                taken_bytes, waits = self.connection.outgoing()
                moves = heard_s > heard_before_s or (
                    # The probe alone moves nothing: a stopped hub's kernel acknowledges it.
                    taken_bytes > taken_before_bytes and (waits or self.tunnel.bytes_buffered > 0)
                )
                waited_s = looked_s - asked_s
                if waited_s < least_s:
                    continue
                if not moves or waited_s >= max(_MAX_PROBE_S, timeout_s):
                    limit_s = waited_s if moves else timeout_s
                    error = HubError(f"no reply to a probe within {limit_s:.3g} s", cause="probe")
                    self.fail(error)
                    self.connection.abort()  # the hub reads nothing, so a GOAWAY is useless
                    raise error
        self.tunnel.measured(loop.time() - asked_s)
        self._for_id_0 = 0

    def next_probe_s(self, interval_s: float) -> float:
        """The time of the next probe by the loop's clock, if no further byte arrives.

        A hub with features PINGs a silent agent, so it is probed after interval_s without a byte. A base hub is probed
        interval_s after the last probe (wire.md, "liveness").
        """
        return (self.connection.heard_s if self.tunnel.features else self._probed_s) + interval_s

    def leave(self) -> None:
        """Open nothing further in this session. Open connections continue."""
        if not self.left.done():
            self.left.set_result(None)

    @property
    def drains_first(self) -> bool:
        """Whether DRAIN precedes the end of connections in flight, since `goaway` was negotiated."""
        return GOAWAY in self.tunnel.features

    def drain(self) -> None:
        """Ask the hub to open nothing further here. `drained` is done at its reply. Only if `drains_first`."""
        self.leave()
        if not self.tunnel.drain_sent:
            self._drain_said_s = asyncio.get_running_loop().time()
            self.tunnel.say_drain()

    @property
    def drain_age_s(self) -> float:
        """Seconds since DRAIN was sent, negative before."""
        return asyncio.get_running_loop().time() - self._drain_said_s

    def finish(self) -> None:
        """Close the session in order, after all queued bytes. No connection may be open.

        With `goaway` this side ends the stream, else it sends DRAIN (wire.md, "DRAIN to the hub"). Then the hub ends
        the call.
        """
        if not self._ending and not self.ended.done():
            self._ending = True
            self._finished_s = asyncio.get_running_loop().time()
            if self.drains_first:
                self.tunnel.finish_when_sent()
            else:
                self.tunnel.drain(0, ControlCode.DRAIN)

    @property
    def finish_age_s(self) -> float:
        """Seconds since `finish` was called, negative before."""
        return asyncio.get_running_loop().time() - self._finished_s

    def fail(self, error: HubError | None) -> None:
        """Close the session for this error now. A second call has no effect."""
        if not self.ended.done():
            self.ended.set_result(error)
            self.tunnel.set_lost(error)
            self.connection.close()

    async def wait_closed(self, timeout_s: float = 3.0) -> None:
        """Wait until the transport is closed, and abort it after timeout_s. If cancelled, abort it at once."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self.closed)
        except TimeoutError:
            self.connection.abort()
        except asyncio.CancelledError:
            self.connection.abort()
            raise

    # -- what the connection calls

    def connected(self, connection: Http2Connection) -> None:
        scheme = "http" if self.endpoint.ssl is None else "https"
        head = request_headers(scheme, self.endpoint.authority, self._user_agent, self._metadata)
        self.tunnel.attach(connection.open_stream(self.tunnel, head + write_features(self._offered)))

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        raise WireError("HTTP/2: the hub opened a stream")

    def stream_refused(self, connection: Http2Connection, fault: str) -> None:
        pass  # nor does the hub open a malformed one

    def goaway_received(self, connection: Http2Connection) -> None:
        logger.info("the hub asks for a new session, and this one drains", extra={"hub": str(self.endpoint)})
        self.leave()

    def connection_ended(self, connection: Http2Connection, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        self.fail(self._why(error))

    # -- what the tunnel calls

    def tunnel_packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        if conn_id == PROBE_ID and code == ControlCode.ERROR:
            if self._probe is not None and not self._probe.done():
                self._probe.set_result(None)
            return
        if code == ControlCode.DRAIN and conn_id == 0 and self.drains_first and not self.drained.done():
            self.tunnel.drain_received = True
            self.drained.set_result(None)
            if not self.tunnel.drain_sent:
                logger.info(
                    "the hub is going away, and its open connections continue", extra={"hub": str(self.endpoint)}
                )
            self.drain()  # the reply, if the hub began
            return
        self._for_id_0 += 1
        if self._for_id_0 >= _FLOOD_PACKETS:
            self.fail(ReplacedError())

    def end_call(self) -> None:
        self.tunnel.end_stream()

    def headers_received(self, headers: Headers, ended: bool) -> None:
        self.tunnel.negotiated(read_features(headers) & self._offered)
        status = response_status(headers)
        if status is not None:
            self._status(status, refused=True)
        elif ended:
            self._status(GrpcStatus(Status.UNKNOWN, "the response has no grpc-status"))

    def trailers_received(self, headers: Headers) -> None:
        self._status(response_status(headers) or GrpcStatus(Status.UNKNOWN, "the trailers have no grpc-status"))

    def stream_ended(self, in_message: bool) -> None:
        where = "in the middle of a message" if in_message else "without trailers"
        self.fail(HubError(f"the hub ended the stream {where}"))

    def stream_lost(self, error: Exception) -> None:
        self.fail(self._why(error))

    def message_refused(self, error: MessageRefused) -> None:
        raise error  # an agent skips the message, and its tunnel stays open

    def _why(self, error: Exception | None) -> HubError:
        refused = self._refused(error)
        if refused is None and not self.connection.heard and isinstance(error, ConnectionError):
            if not self._tls_hint:
                reason = f"{_hub_error(error)} before its first byte. If it speaks TLS there, unset insecure"
                return HubError(reason, cause="connection", unheard=True)
            return HubError(f"the hub closed the connection after the TLS handshake{self._tls_hint}", cause="tls")
        return refused or _hub_error(error)

    @property
    def _tls_hint(self) -> str:
        """The probable fault if a hub closes a connection without an alert, as asyncio's servers do."""
        context = self.endpoint.ssl
        if context is None:
            return ""
        own = fault_of_own(self.endpoint.cert_file)
        return f": it may have refused our certificate, or miss one (hub_client_cert_file){own and f'; {own}'}"

    def _refused(self, error: Exception | None) -> HubError | None:
        """The error for a TLS alert about our certificate, None for anything else."""
        said = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
        alert = said.partition("_ALERT_")[2]
        if alert not in _REFUSALS:
            return None
        reason = f"the hub refused our certificate (hub_client_cert_file): {_REFUSALS[alert]}"
        own = fault_of_own(self.endpoint.cert_file)
        return HubError(f"{reason}: {own}" if own else reason, retryable=False, cause="rejected")

    async def _tls_failed(self, error: ssl.SSLError, what: str) -> HubError:
        """A failed handshake in words, with the dates of the hub's certificate where those are wrong."""
        endpoint = self.endpoint

        async def again(reader: asyncio.BufferedProtocol) -> None:
            plain = dataclasses.replace(endpoint, ssl=None)
            await connect(plain, reader, dial_timeout_s=TIMEOUT_S, tls_timeout_s=TIMEOUT_S)

        name, now_s = endpoint.server_hostname or endpoint.host, asyncio.get_running_loop().time()
        key = (str(endpoint), name, getattr(error, "verify_code", 0))
        asked_s, whose = _asked.get(key, (0.0, ""))
        if has_wrong_dates(error) and (key not in _asked or now_s - asked_s >= _ASK_AGAIN_S):
            try:
                whose = await whose_dates(error, "the hub", name, again, ["h2"])
            except asyncio.CancelledError:
                self.fail(HubError("the dial was cancelled", cause="dial"))
                raise
            _asked.pop(key, None)
            if len(_asked) >= _MOST_ASKED:
                del _asked[next(iter(_asked))]
            _asked[key] = now_s, whose
        return HubError(f"{what}: {_tls_reason(error)}{whose and f': {whose}'}", cause="tls")

    def _status(self, status: GrpcStatus, refused: bool = False) -> None:
        """Handle the call's status. refused: the hub ended the call before it accepted it."""
        if status.code == Status.OK or (self._ending and not self.drains_first):  # a Go hub replies UNKNOWN to a DRAIN
            self.fail(None if self._ending or self.drained.done() else HubError("the hub closed the tunnel"))
        else:
            rejected = status.code in _REJECTED
            # Later it is about a message that was too long (wire.md, "agent → hub, DATA").
            full = refused and status.code == Status.RESOURCE_EXHAUSTED
            cause = "rejected" if rejected else "full" if full else "ended"
            hint = f"; {_WRONG_PORT}" if refused and status.code == Status.UNIMPLEMENTED else ""
            self.fail(
                HubError(
                    f"the hub closed the tunnel with {status}{hint}",
                    retryable=not (rejected or full),
                    cause=cause,
                    pushback_s=status.pushback_s if status.code == Status.UNAVAILABLE else None,
                )
            )

    async def _raise_if_ended(self) -> None:
        if self.ended.done():
            await self.wait_closed()
            raise self.ended.result() or HubError("the session is closed")


def _tls_reason(error: ssl.SSLError) -> object:
    """Why a handshake failed, and what may be done about it here."""
    if error.reason == "WRONG_VERSION_NUMBER":
        return f"the hub doesn't speak TLS there (insecure dials in plaintext), or {_WRONG_PORT}"
    reason = verify_reason(error, "hub_ca_file")
    is_wrong_name = isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _WRONG_NAME
    return f"{reason} (hub_server_name sets another name)" if is_wrong_name else reason


def _hub_error(error: Exception | None) -> HubError:
    if isinstance(error, HubError):
        return error
    if isinstance(error, WireError):
        hint = f"; {_WRONG_PORT}" if isinstance(error, OtherProtocolError) else ""
        return HubError(f"the hub broke the protocol: {error}{hint}", cause="protocol")
    if error is None:
        return HubError("the session is closed")
    if isinstance(error, OSError):
        return HubError(f"the connection to the hub dropped: {error.strerror or error}", cause="connection")
    return HubError(str(error) or type(error).__name__)
