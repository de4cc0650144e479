"""Lets the process open as many descriptors as it may, and keeps the standard ones what they are.

A connection is a descriptor, and a shell gives 1,024 of them, with a far higher bound for whoever asks: a hub that may
have 10,000 users would refuse most of them. Go's runtime asks for itself; Python's doesn't.
"""

from __future__ import annotations

import os

__all__ = ["descriptor_limit", "fill_standard_descriptors", "open_descriptors", "open_more_descriptors"]


def descriptor_limit() -> int:
    """How many descriptors this process may have open at once, as it stands now; 0 where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft


def open_descriptors() -> int:
    """How many are open now; a guess where the system doesn't say."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 16


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


def fill_standard_descriptors() -> None:
    """Open /dev/null where the process began with standard input, output or error closed.

    A socket would get that number otherwise: what libraries print on standard error would go to a client, and uvloop
    ends the process when it closes such a socket.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
