"""The limits of a proxy as one frozen value, with their defaults. The schema takes its defaults from here."""

from __future__ import annotations

import dataclasses

__all__ = ["ProxyLimits"]

KIB = 1024

ADDED_TARGET_BYTES = 64
ADDED_HEAD_BYTES = 16 * KIB
ADDED_FIELDS = 32
"""The allowance for fields that a hub adds. An agent with `forwarded` accepts requests larger by this."""

NEARER_FIRST_S = 2.0
"""How much later the farther of two chained proxies times out: a round trip of the link, and both sweeps."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyLimits:
    """Sizes in bytes, times in seconds, numbers as counts. Raises ValueError unless all are positive.

    Requests:
        target_bytes: size of a request target, else 414.
        request_head_bytes: size of a request's head, else 431.
        request_fields: header lines of a request, else 431.
        leading_blank_lines: CRLFs before a request line.
        chunk_line_bytes, trailer_bytes, trailer_fields: of chunked bodies, in both directions.
        grpc_trailer_bytes, grpc_trailer_fields: of the response to a gRPC call, instead of these two.
        pipelined_bytes: unread bytes behind the request in flight, before reading pauses.
    Responses:
        response_head_bytes: size of one response head.
        informational_responses: 1xx before a final response.
        collect_bytes: size of a body without Content-Length for an HTTP/1.0 client, else 502.
    Clients:
        head_timeout_s: from a head's first byte to its last, else 408.
        body_timeout_s: without a byte of an expected body before the response head, else 408.
        keep_alive_s: idle time between requests.
        write_timeout_s: a write without progress, in either direction.
        drain_bytes, drain_s: how much of a request's body is read after its response, before the connection closes.
        half_closed_s: time without a byte from the target, after a client without TLS has sent its request and its FIN.
        linger_s: how long the proxy reads and ignores a client after its last response. Then the client can read it.
        expect_timeout_s: time for a target to send 100. Then the proxy sends it.
        retry_after_s: the Retry-After of a 503.
    Targets:
        connect_timeout_s, tls_timeout_s: else 504.
        first_byte_timeout_s: from the request's end to the whole response head, else 504.
        unanswered_s: time without a response head before the proxy probes the path to the target. Some paths support
            no probe (`messages.Path`).
        upstream_idle_s: idle time of a connection before it closes.
        idle_upstreams_per_target: idle connections kept, by default as many as there may be clients. With fewer, the
            end of a burst closes connections that the next burst dials again.
        half_closed_idle_s: silence before an upgraded connection closes whose client has sent its FIN. It applies if
            TLS could not pass the FIN on.
        connect_idle_s: silence of both sides before a CONNECT's connection closes. None: no limit.
    buffer_bytes: bytes in a transport's write buffer before the other side's reading pauses.
    """

    target_bytes: int = 16 * KIB
    request_head_bytes: int = 64 * KIB
    request_fields: int = 256
    leading_blank_lines: int = 8
    chunk_line_bytes: int = 4 * KIB
    trailer_bytes: int = 8 * KIB
    trailer_fields: int = 64
    grpc_trailer_bytes: int = 64 * KIB
    grpc_trailer_fields: int = 256
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
    connect_idle_s: float | None = None
    buffer_bytes: int = 256 * KIB

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise ValueError(f"{field.name} must be positive, not {value!r}")

    def later(self, *names: str) -> ProxyLimits:
        """Return a copy with these times a little longer.

        Another proxy in the chain has the same times and is nearer to the silent party. So that proxy times out first,
        and names the party.
        """
        return dataclasses.replace(self, **{name: getattr(self, name) + NEARER_FIRST_S for name in names})

    def widened(self) -> ProxyLimits:
        """Return a copy with room in a request's head for what a hub adds to it (wire.md, `forwarded`)."""
        return dataclasses.replace(
            self,
            target_bytes=self.target_bytes + ADDED_TARGET_BYTES,
            request_head_bytes=self.request_head_bytes + ADDED_HEAD_BYTES,
            request_fields=self.request_fields + ADDED_FIELDS,
        )

    @property
    def tick_s(self) -> float:
        """The interval between checks of deadlines: short enough for the shortest deadline, at least 10 ms."""
        times = (getattr(self, field.name) for field in dataclasses.fields(self) if field.name.endswith("_s"))
        shortest: float = min(time_s for time_s in times if time_s is not None)
        return max(0.01, min(0.25, shortest / 4))
