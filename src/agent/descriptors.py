"""Lets the process open as many descriptors as it may.

A connection is a descriptor, and a shell gives 1,024 of them, with a far higher bound for whoever asks: a hub that may
have 10,000 users would refuse most of them. Go's runtime asks for itself; Python's doesn't.
"""

from __future__ import annotations

__all__ = ["open_more_descriptors"]


def open_more_descriptors() -> int:
    """Raise the soft limit (`ulimit -Sn`) to the hard one. Returns what holds then; 0 where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS: its kernel allows less than the limit says
            return soft
    return hard
