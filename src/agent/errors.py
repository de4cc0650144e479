"""The errors, with the party at fault. There is one class for each action that a caller can take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

__all__ = [
    "AgentError",
    "ConfigError",
    "ForwardError",
    "HubError",
    "ListenError",
    "Party",
    "PolicyError",
    "Redirected",
    "Refused",
    "Responded",
    "TargetError",
    "WireError",
    "listening",
]

Party = Literal["client", "target", "agent", "hub", "policy"]
"""The party at fault in a failed request, the value of the log field `fault`. The response names the same party."""


class AgentError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(AgentError):
    """A configured value is wrong. Change it at `source` and start again (exit code 2).

    field: the configuration field's name.
    source: where the value came from: a flag, a variable, a file's name, or "argument".
    expected: the right values, with range and unit.
    """

    def __init__(self, field: str, source: str, expected: str) -> None:
        super().__init__(f"{field} (from {source}): {expected}")
        self.field = field
        self.source = source
        self.expected = expected


class ListenError(AgentError, OSError):
    """The process can't listen on an address, because it is in use, or is not this machine's.

    field: the configuration field's name.
    address: HOST:PORT.
    errno: the system's error number.
    """

    def __init__(self, field: str, address: str, error: OSError) -> None:
        known = error.errno is not None and error.errno > 0  # a name that isn't resolved has another kind of number
        reason = os.strerror(error.errno) if known and error.errno is not None else error.strerror or str(error)
        super().__init__(f"{field}: {address} can't be listened on: {reason}")
        self.errno = error.errno
        self.field = field
        self.address = address


@contextlib.contextmanager
def listening(field: str, address: object) -> Iterator[None]:
    """Within the block an OSError is that of listening on this address, and raised as ListenError."""
    try:
        yield
    except OSError as error:
        raise ListenError(field, str(address), error) from error


class WireError(AgentError):
    """The peer broke the format of HTTP/2, of gRPC's framing or of the packet message. The session closes.

    rule: the broken rule, with its frame or field.
    http2_code: the HTTP/2 error code (RFC 9113, section 7) to send, if the peer broke HTTP/2.
    """

    def __init__(self, rule: str, *, http2_code: int = 0x1) -> None:
        super().__init__(rule)
        self.rule = rule
        self.http2_code = http2_code


class HubError(AgentError):
    """A session with the hub failed to open, or closed.

    retryable: False if an immediate retry can't help, as with a rejected identity. The agent then logs an error and
        retries slowly.
    cause: one word for metrics: `dial`, `tls`, `probe`, `connection`, `protocol`, `ended` by the hub, `rejected`,
        `full` or `replaced`.
    pushback_s: the wait that the hub requested, None without a request.
    unheard: the hub closed the connection before its first byte, or before the TLS handshake finished.
    """

    def __init__(
        self,
        reason: str,
        *,
        retryable: bool = True,
        cause: str = "ended",
        pushback_s: float | None = None,
        unheard: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause
        self.retryable = retryable
        self.pushback_s = pushback_s
        self.unheard = unheard


class TargetError(AgentError):
    """A target was unreachable or broke HTTP.

    status: 502, 503 or 504, the status of the client's response.
    reason: the kind of failure, in words for the client. It names the party at fault.
    stage: the place of the failure (`connect`, `tls`, `response head`, …), for the log.
    fault: the party, for the log.
    limit: the setting that bounds the wait (`limits.connect_timeout_s`), for the log. "" for none.
    """

    def __init__(self, status: int, reason: str, *, stage: str = "", fault: Party = "target", limit: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.stage = stage
        self.fault: Party = fault
        self.limit = limit


class ForwardError(AgentError):
    """A forwarded connection could not be opened (`fastpipe-agent forward`).

    status: of the hub's response, 0 without one.
    fault: the party, for the log.
    request_id: of the hub's response, "" for none. The hub's log has it.
    """

    def __init__(self, reason: str, *, fault: Party, status: int = 0, request_id: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.fault: Party = fault
        self.status = status
        self.request_id = request_id

    @classmethod
    def of_response(cls, status: int, reason: str, request_id: str = "") -> ForwardError:
        """Return the error for a hub's response. reason: its text, which names the rule."""
        kinds: dict[int, tuple[str, Party]] = {
            401: ("the hub did not accept the credentials (token_file, FORWARD_TOKEN)", "client"),
            403: ("the target is not allowed", "policy"),
            404: ("the hub does not know the cluster", "client"),
            407: ("the hub did not accept the credentials (token_file, FORWARD_TOKEN)", "client"),
            421: ("the agent serves another cluster", "agent"),
            501: ("the agent serves no CONNECT", "agent"),
            502: ("the target was not reached", "target"),
            503: ("no agent serves the cluster now", "agent"),
            504: ("the target did not respond in time", "target"),
        }
        what, fault = kinds.get(status, ("the hub refused the connection", "client" if status < 500 else "hub"))
        return cls(f"{what}: {status} {reason}".rstrip(), fault=fault, status=status, request_id=request_id)


class PolicyError(AgentError):
    """A user's own policy returned a wrong value: the fault of its author. The client gets a 503.

    method: a Router's `route`, a RequestProcessor's `process`, a CertificateProvider's `ssl_context`, or a hub's
    `cluster_parser`. expected: what the method must return. given: the kind of the value, never the value itself: it
    may hold a token.
    """

    def __init__(self, method: str, expected: str, given: str) -> None:
        super().__init__(f"{method} must give {expected}, not {given}")
        self.method = method
        self.expected = expected
        self.given = given


class Redirected(AgentError):
    """Raised by our own routers: nobody's fault. The client gets a 308 to `location`, a path with its query."""

    def __init__(self, location: bytes) -> None:
        super().__init__("redirected")
        self.location = location


class Refused(AgentError):
    """Raised by a Router or a RequestProcessor. The client gets `status` with `reason` as text/plain.

    status: 400 to 599.
    reason: shown to the client, so without secrets.
    fault, limit: for the log, as in TargetError. The default fault is the client's below 500, else the policy's.
    cluster: the cluster of the request, for a hub's log.
    """

    def __init__(
        self, status: int, reason: str, *, fault: Party | None = None, limit: str = "", cluster: str = ""
    ) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"status must be from 400 to 599, not {status}")
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason
        self.fault: Party = fault or ("client" if status < 500 else "policy")
        self.limit = limit
        self.cluster = cluster


class Responded(AgentError):
    """Raised by the hub's own router: nobody's fault. The client gets this page, and nothing is logged.

    body: the text, shown to the client with a line's end behind it.
    fields: the response's, with its Content-Type.
    """

    def __init__(self, body: str, fields: list[tuple[bytes, bytes]]) -> None:
        super().__init__("responded")
        self.body = body
        self.fields = fields
