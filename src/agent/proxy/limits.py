"""What the proxy lets pass and how long it waits: one frozen value, with the defaults of the rules it keeps."""

from __future__ import annotations

import dataclasses

__all__ = ["ProxyLimits"]

KIB = 1024

NEARER_FIRST_S = 2.0
"""By how much the farther of two proxies in a row is later: a link's round trip, and both sweeps."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyLimits:
    """Sizes in bytes, times in seconds, numbers as counts. Raises ValueError where one isn't positive.

    Requests:
        target_bytes: a request target; past it 414. request_head_bytes, request_fields: a request's head and its
        header lines; past them 431. leading_blank_lines: CRLFs before a request line. chunk_line_bytes, trailer_bytes,
        trailer_fields: of chunked bodies, both ways. pipelined_bytes: what may wait, unread, behind the request in
        flight before reading pauses.
    Responses:
        response_head_bytes: of one response head. informational_responses: 1xx before a final response.
        collect_bytes: a body without Content-Length that is collected for an HTTP/1.0 client; past it 502.
    Clients:
        head_timeout_s: from a head's first byte to its last (408). body_timeout_s: without a byte of a body that is due
        (408). keep_alive_s: idle between requests. write_timeout_s: a write that makes no progress, either way.
        drain_bytes, drain_s: what is read of a request's body after its response, before the connection is closed.
        half_closed_s: how long a target may send nothing once a client without TLS has sent its request and its end.
        linger_s: how long an answered client that still sends is read and ignored, so that it can read its answer.
        expect_timeout_s: how long a target may take to say 100 before the proxy does. retry_after_s: told with a 503.
    Targets:
        connect_timeout_s, tls_timeout_s, first_byte_timeout_s (the whole response head, from the request's end): 504.
        unanswered_s: after so long without a response head the way to the target is asked whether it is alive, where it
        can tell (`messages.Path`).
        upstream_idle_s, idle_upstreams_per_target: how long, and how many, unused connections are kept (as many as
        there may be clients: fewer, and a burst's end closes what its next moment dials, a quarter of an agent's CPU).
        half_closed_idle_s: silence after which an upgraded connection ends whose client has sent its end and whose
        carrier could not pass it on (TLS).
    buffer_bytes: what may wait in a transport's write buffer before the other side's reading pauses.
    """

    target_bytes: int = 16 * KIB
    request_head_bytes: int = 64 * KIB
    request_fields: int = 256
    leading_blank_lines: int = 8
    chunk_line_bytes: int = 4 * KIB
    trailer_bytes: int = 8 * KIB
    trailer_fields: int = 64
    pipelined_bytes: int = 64 * KIB
    response_head_bytes: int = 256 * KIB
    informational_responses: int = 5
    collect_bytes: int = 1024 * KIB
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    write_timeout_s: float = 60.0
    drain_bytes: int = 256 * KIB
    drain_s: float = 1.0
    linger_s: float = 2.0
    expect_timeout_s: float = 1.0
    retry_after_s: int = 1
    connect_timeout_s: float = 10.0
    tls_timeout_s: float = 10.0
    first_byte_timeout_s: float = 60.0
    unanswered_s: float = 1.5
    upstream_idle_s: float = 60.0
    idle_upstreams_per_target: int = 1000
    half_closed_s: float = 5.0
    half_closed_idle_s: float = 10.0
    buffer_bytes: int = 256 * KIB

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, not {getattr(self, field.name)!r}")

    def later(self, *names: str) -> ProxyLimits:
        """The same, with these times a little longer: another proxy in the row has them too, and is nearer to the party
        that is waited for. It ends the request first, and names that party."""
        return dataclasses.replace(self, **{name: getattr(self, name) + NEARER_FIRST_S for name in names})

    @property
    def tick_s(self) -> float:
        """How often deadlines are looked at: fine enough for the shortest of them, at most every 10 ms."""
        shortest: float = min(getattr(self, f.name) for f in dataclasses.fields(self) if f.name.endswith("_s"))
        return max(0.01, min(0.25, shortest / 4))
