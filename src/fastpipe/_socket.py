"""The object behind `get_extra_info("socket")`: a socket's addresses without a socket.

Libraries read the peer's address from a transport's socket and set TCP options on it. They do not expect None.
"""

from __future__ import annotations

import socket
from asyncio import constants
from typing import Any, Final

SENDFILE_FALLBACK: Final = constants._SendfileMode.FALLBACK  # the mode of a transport without sendfile(2)


class PipeSocket:
    """A stand-in for a connected stream socket. It has addresses, family and options, but no descriptor or bytes."""

    __slots__ = ("_peername", "_sockname")

    type = socket.SOCK_STREAM
    proto = 0
    timeout = 0.0

    def __init__(self, sockname: Any, peername: Any) -> None:
        self._sockname = sockname
        self._peername = peername

    @property
    def family(self) -> int:
        """The family whose addresses look like this one's: AF_UNIX for text, AF_INET or AF_INET6 for tuples."""
        if isinstance(self._sockname, tuple):
            return socket.AF_INET6 if len(self._sockname) == 4 else socket.AF_INET
        return getattr(socket, "AF_UNIX", socket.AF_INET)

    def getsockname(self) -> Any:
        """Return this end's address. Without one from the creator: '', as for an unnamed Unix socket."""
        return self._sockname

    def getpeername(self) -> Any:
        """Return the other end's address. Without one from the creator: '', as for an unnamed Unix socket."""
        return self._peername

    def fileno(self) -> int:
        """Return -1, like a closed socket."""
        return -1

    def setsockopt(self, *_: object) -> None:
        """Accept any option without an effect."""

    def getsockopt(self, level: int, option: int, length: int = 0) -> int | bytes:
        """0, or `length` zero bytes: every option is off."""
        return bytes(length) if length else 0

    def setblocking(self, flag: bool) -> None:
        """As asyncio's TransportSocket: a transport's socket doesn't block. Raises ValueError for True."""
        if flag:
            raise ValueError("setblocking(): transport sockets cannot be blocking")

    def settimeout(self, value: float | None) -> None:
        """As asyncio's TransportSocket. Raises ValueError for anything but 0."""
        if value != 0:
            raise ValueError("settimeout(): only 0 timeout is allowed on transport sockets")

    def gettimeout(self) -> float:
        """0.0: it doesn't block."""
        return self.timeout

    def get_inheritable(self) -> bool:
        """False: there is no descriptor to inherit."""
        return False

    def __repr__(self) -> str:
        return f"<fastpipe.PipeSocket {self._sockname!r} -> {self._peername!r}>"
