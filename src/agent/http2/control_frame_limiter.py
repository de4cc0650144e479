"""Limits the frames that make a peer's receiver work for nothing: opened and reset streams, PINGs, SETTINGS.

CVE-2023-44487, CVE-2019-9512 and CVE-2019-9515 describe such floods. A frame costs its sender nothing, but its receiver
decodes HPACK, opens a stream, or sends a reply. No window counts these frames, so each kind has an allowance that
refills by the second. Honest peers stay far below it.

Cython compiles this file as it is, with the types of `control_frame_limiter.pxd` (fastpipe/extensions.py).
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import WireError
from .errors import ErrorCode
from .frames import ACK, CONTINUATION, HEADERS, PING, RST_STREAM, SETTINGS, frame_name

__all__ = ["ControlFrameLimiter"]

ALLOWED = {
    HEADERS: (200, 10.0),  # heads: requests, trailers. A gRPC library opens its calls again after their back-off
    CONTINUATION: (1000, 100.0),  # what they are continued in is bounded by size, too
    RST_STREAM: (200, 10.0),
    SETTINGS: (200, 10.0),
    PING: (200, 10.0),
}
"""By frame type: how many at once, and how many more each second."""
_ACKNOWLEDGING, _CLOSED = 0x100, 0x200
OTHERS = (1000, 100.0)  # such as PRIORITY, which is read and ignored


RESETS = 200
"""Resets at once of streams that had no response, if streams are not counted. Each completed stream allows one more."""

# C globals (control_frame_limiter.pxd), since an imported name is a Python number in a dictionary.
_HEADERS = HEADERS
_RST_STREAM = RST_STREAM
_RESETS = RESETS


class ControlFrameLimiter:
    """Counts one connection's control frames.

    Args:
        now_s: the loop's time.
        sent_bytes: the DATA bytes sent so far.
        counts_streams: each HEADERS and RST_STREAM frame counts. If false, a HEADERS frame counts only if its stream is
            refused. An RST_STREAM frame then counts only if its stream had no response.
    """

    def __init__(
        self, now_s: Callable[[], float], sent_bytes: Callable[[], int], *, counts_streams: bool = True
    ) -> None:
        self._now_s = now_s
        self._sent_bytes = sent_bytes
        self._counts_streams = counts_streams
        self._seen_bytes = 0
        self._resets_left = RESETS
        self._left: dict[int, tuple[float, float]] = {}  # by type: how many are left, and when that was so

    def frame(self, kind: int, flags: int) -> None:
        """A frame has come. Raises WireError where it is one too many."""
        if not self._counts_streams and kind in (_HEADERS, _RST_STREAM):
            return
        self._count(kind, flags, ALLOWED.get(kind, OTHERS))

    def stream_refused(self) -> None:
        """A HEADERS frame has opened a stream that is refused. Raises WireError where it is one too many."""
        if not self._counts_streams:
            self._count(HEADERS, 0, ALLOWED[HEADERS])

    def stream_reset(self, *, responded: bool) -> None:
        """The peer has reset a stream. Raises WireError where it is one too many.

        responded: the stream had the head of its response.
        """
        if self._counts_streams or responded:
            return
        self._resets_left -= 1
        if self._resets_left < 0:
            rule = f"more than {RESETS} streams reset before their response"
            raise WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.ENHANCE_YOUR_CALM)

    def closed_stream_reset(self) -> None:
        """The peer has reset a stream that was closed already. Raises WireError where it is one too many."""
        if not self._counts_streams:
            self._count(RST_STREAM, 0, OTHERS)

    def closed_stream_head(self) -> None:
        """The peer has sent a head on a stream that was reset. Raises WireError where it is one too many."""
        if not self._counts_streams:
            self._count(HEADERS | _CLOSED, 0, OTHERS)

    def stream_completed(self) -> None:
        """A stream has ended in order."""
        if self._resets_left < _RESETS:
            self._resets_left += 1

    def _count(self, kind: int, flags: int, limits: tuple[int, float]) -> None:
        if flags & ACK and kind in (PING, SETTINGS):
            kind, limits = kind | _ACKNOWLEDGING, OTHERS  # nothing is to be done for one
        elif kind == PING:
            # gRPC's cores measure the link with a PING for each piece of DATA, so that one is free.
            seen, self._seen_bytes = self._seen_bytes, self._sent_bytes()
            if seen != self._seen_bytes:
                return
        burst, per_second = limits
        now_s = self._now_s()
        left, before_s = self._left.get(kind, (float(burst), now_s))
        left = min(burst, left + (now_s - before_s) * per_second) - 1
        if left < 0:
            rule = f"more than {burst} {frame_name(kind & 0xFF)} frames, and then {per_second:g} a second"
            raise WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.ENHANCE_YOUR_CALM)
        self._left[kind] = left, now_s
