"""Makes the C library keep the memory of one read for the next.

A read takes up to 256 KiB, which is freed after its bytes are sent. glibc often returns such a block to the kernel at
once. Then a download takes 180 page faults for each MiB, and spends 40% of its CPU time on them. Other C libraries need
no setting.
"""

from __future__ import annotations

import os

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEPT_BYTES = 8 * 1024 * 1024
"""The most that is kept unused at the heap's end."""
_MAPPED_BYTES = 4 * 1024 * 1024
"""Larger blocks still come directly from the kernel."""


def keep_freed_memory() -> bool:
    """Set glibc's thresholds for the whole process. Returns whether that was done.

    It does nothing without glibc, or if the environment sets the allocator (`MALLOC_…`, `GLIBC_TUNABLES`).
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, TypeError, AttributeError):  # no ctypes, Windows, another C library
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES) and mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES))
