"""Finds the party at fault in a failed connection to a target, from the system's error.

A process without free descriptors can't dial any target, and no target is at fault.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Sequence

from ..errors import TargetError
from ..runtime.descriptors import descriptor_limit

__all__ = ["connect_error", "is_shortage", "lacks_descriptors", "most_telling"]

logger = logging.getLogger(__name__)

DESCRIPTORS = "RLIMIT_NOFILE"

SHORTAGES = {
    errno.EMFILE: ("the agent has no descriptor left", DESCRIPTORS),
    errno.ENFILE: ("the agent's system has no descriptor left", "fs.file-max"),
    errno.ENOBUFS: ("the agent's system has no buffer left", ""),
    errno.ENOMEM: ("the agent's system has no memory left", ""),
    errno.EADDRNOTAVAIL: ("the agent has no source address and port for the target", "net.ipv4.ip_local_port_range"),
    errno.EAGAIN: ("the agent's system has no resource left for a connection", ""),
}
"""Resources that ran out here, with their limits. A shortage passes, so the response is 503 with Retry-After."""

FORBIDDEN = {
    errno.EPERM: "the agent's system does not allow the connection",
    errno.EACCES: "the agent's system does not allow the connection",
    errno.EAFNOSUPPORT: "the agent's system has no such addresses as the target's",
}
"""Connections that this machine never allows: a firewall's rule for outgoing traffic, a kernel without IPv6."""

UNREACHED = {
    errno.ECONNREFUSED: (502, "the target refused the connection"),
    errno.EHOSTUNREACH: (502, "the target's host can't be reached"),
    errno.ENETUNREACH: (502, "the target's network can't be reached"),
    errno.ECONNRESET: (502, "the target reset the connection"),
    errno.ETIMEDOUT: (504, "the target took too long (connect)"),
}

_INTERVAL_S = 1.0


class _Complaint:
    """Logs at most once a second that a resource ran out, and how often it did meanwhile."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._unsaid = 0

    def make(self, text: str, limit: str, reason: str) -> None:
        self._unsaid += 1
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _INTERVAL_S
        extra: dict[str, object] = {"stage": "connect", "fault": "agent", "reason": reason, "failures": self._unsaid}
        if limit:
            extra["limit"] = limit
        if limit == DESCRIPTORS:
            extra["descriptors"] = descriptor_limit()
        self._unsaid = 0
        logger.error(text, extra=extra)


_complaints = {number: _Complaint() for number in SHORTAGES}


def is_shortage(error: BaseException) -> bool:
    """Whether this machine ran out of something."""
    return isinstance(error, OSError) and error.errno in SHORTAGES


def connect_error(error: OSError, stage: str = "connect") -> TargetError:
    """Make the TargetError for a failed connection to a target. A shortage of this process is logged as an ERROR."""
    number = error.errno or 0
    if number in SHORTAGES:
        text, limit = SHORTAGES[number]
        _complaints[number].make(text, limit, os.strerror(number))
        return TargetError(503, text, stage=stage, fault="agent", limit=limit)
    if number in FORBIDDEN:
        return TargetError(502, FORBIDDEN[number], stage=stage, fault="agent")
    status, text = UNREACHED.get(number, (502, "the target could not be connected"))
    return TargetError(status, text, stage=stage)


def most_telling(errors: Sequence[BaseException]) -> BaseException:
    """Choose the most specific error of a target's addresses: first a shortage here, then an error of a live peer.

    errors: at least one. The least specific is a family of addresses that this machine lacks (ENETUNREACH,
        EADDRNOTAVAIL).
    """
    return min(errors, key=_rank)


_TELLING = (
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN),
    (errno.ECONNREFUSED, errno.ECONNRESET),
    (errno.ETIMEDOUT,),
    (errno.EHOSTUNREACH,),
    (errno.EPERM, errno.EACCES),
    (errno.ENETUNREACH,),
    (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT),
)


def _rank(error: BaseException) -> int:
    number = getattr(error, "errno", None)
    return next((place for place, numbers in enumerate(_TELLING) if number in numbers), len(_TELLING))


def lacks_descriptors() -> OSError | None:
    """Try to open a descriptor. Returns the error, None without one.

    Without free descriptors, the system's resolver reports an unknown name.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if is_shortage(error) else None
    return None
