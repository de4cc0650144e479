"""Unix sockets that listen at a path: only their owner can connect, and a dead process leaves no obstacle.

lock the directory ──► what is at the path?
    nothing                          bind, mode 0600, listen
    a socket that nobody listens on  remove it, then the same
    anything else                    OccupiedError
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import AgentError

__all__ = ["OccupiedError", "UnixListener", "listen_at", "locked", "make_room_at"]

logger = logging.getLogger(__name__)


class OccupiedError(AgentError, OSError):
    """The path has a socket that a process listens on, or no socket."""

    def __init__(self) -> None:
        super().__init__(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


class UnixListener(NamedTuple):
    """A listening socket and the file that it made."""

    sock: socket.socket
    path: str
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the file, unless another one has its place. A removed file is no error."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if stat.S_ISSOCK(found.st_mode) and (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


def listen_at(path: str, *, backlog: int) -> UnixListener:
    """Listen at a path, with mode 0600. The caller holds `locked`, or made the directory. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made: UnixListener | None = None
    try:
        sock.setblocking(False)
        sock.bind(path)
        found = os.stat(path)
        made = UnixListener(sock, path, found.st_dev, found.st_ino)
        os.chmod(path, 0o600)  # nobody can connect before `listen`
        sock.listen(backlog)
    except BaseException:
        sock.close()
        if made is not None:
            made.remove()
        raise
    return made


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Within the block, no other agent or hub looks at or makes a socket in this directory. Raises OSError.

    Of two processes that start at once, one could otherwise remove the other's new socket.
    """
    import fcntl  # not on Windows, where there are no Unix sockets either

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which unlocks it


def make_room_at(path: str) -> None:
    """Remove the socket of a dead process. The caller holds `locked`. Raises OccupiedError, OSError."""
    if os.path.lexists(path):
        if not _is_left_behind(path):
            raise OccupiedError
        os.unlink(path)
        logger.warning("replaced a socket that nobody listened on", extra={"path": path})


def _is_left_behind(path: str) -> bool:
    """Whether a socket of our user exists without a listening process, since that process was killed."""
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED  # a full backlog is EAGAIN
