"""Has the C library keep the memory of one read for the next one.

A read takes up to 256 KiB, which is freed when its bytes have gone on. glibc gives such a block back to the kernel at
once, or with luck in how the heap lies, doesn't: a download then takes 180 page faults for each MiB, which were 40% of
its CPU time, or none. Elsewhere there is nothing to set.
"""

from __future__ import annotations

import os

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEPT_BYTES = 8 * 1024 * 1024
"""The most that is kept unused at the heap's end."""
_MAPPED_BYTES = 4 * 1024 * 1024
"""Larger blocks than this still come from the kernel and go back to it, each by itself."""


def keep_freed_memory() -> bool:
    """Set glibc's thresholds for the whole process. Returns whether that was done: not elsewhere, nor where whoever
    started the process has set its allocator (`MALLOC_…`, `GLIBC_TUNABLES`)."""
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, TypeError, AttributeError):  # no ctypes, Windows, another C library
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES) and mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES))
