"""The Unix socket that the proxy listens on. The whole agent has one, in a private directory that only it can open.

The peer's name identifies a connection that arrives. The manager announces a name with an unguessable part, binds its
socket to that name and then connects. The acceptor drops a peer that was not announced.

    announce(conn_id) ─► name ── bind, connect ──► listening socket ── peer's name ─► announced? ─► proxy's protocol
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable

from ..errors import ConfigError
from ..outcome import Outcome
from ..runtime.handover import HandOver
from ..runtime.unix_sockets import OccupiedError, UnixListener, listen_at, locked, make_room_at
from ..syntax import SOCKET_PATH_BYTES

__all__ = ["PendingPeer", "UDSAcceptor"]

logger = logging.getLogger(__name__)

_BACKLOG = 4096  # cut to net.core.somaxconn by the kernel
_WARNING_INTERVAL_S = 60.0


class PendingPeer:
    """One connection that a manager is about to make, or has made. name: what its socket must be bound to.

    A withdrawn announcement stays known until its peer arrives. The peer may already wait in the backlog, so it is no
    stranger.
    """

    __slots__ = ("_acceptor", "conn_id", "features", "name", "outcome", "transport", "withdrawn")

    def __init__(
        self, acceptor: UDSAcceptor, name: str, conn_id: int, outcome: Outcome, features: frozenset[str]
    ) -> None:
        self._acceptor = acceptor
        self.name = name
        self.conn_id = conn_id
        self.outcome = outcome
        self.features = features
        self.transport: asyncio.Transport | None = None
        self.withdrawn = False

    @property
    def accepted(self) -> bool:
        """Whether a protocol of the proxy's has it."""
        return self.transport is not None

    def withdraw(self, *, dialled: bool) -> None:
        """End the connection, with the proxy's side at once. The socket alone would only signal an end of stream.

        A second call does nothing.

        dialled: the connection's socket had reached the listener, so its peer has arrived or will.
        """
        self.withdrawn = True
        self._acceptor._withdrawn(self, dialled)


class UDSAcceptor:
    """Listens for the connection managers of all sessions, and gives each connection one of the proxy's protocols.

    `start` must have returned before managers are made.

    Args:
        accept: makes the proxy's protocol for one connection.
        accept_for: returns the same by the hub's features, instead of `accept`.
        socket_path: where to listen. A leftover socket of a killed agent of the same user is replaced. "" makes a new
            private directory.
        buffer_bytes: high-water mark of the proxy's side, bytes. It may be changed.
        abstract_names: bind the managers' sockets in Linux's abstract namespace, else in a private directory.
    """

    def __init__(
        self,
        accept: Callable[[int, Outcome], asyncio.Protocol],
        *,
        accept_for: Callable[[frozenset[str]], Callable[[int, Outcome], asyncio.Protocol]] | None = None,
        socket_path: str = "",
        buffer_bytes: int = 65536,
        abstract_names: bool = sys.platform == "linux",
    ) -> None:
        self._accept_for = accept_for or (lambda features: accept)
        self._configured_path = socket_path
        self.buffer_bytes = buffer_bytes
        self._abstract = abstract_names
        self._token = secrets.token_hex(16)
        self._sessions = 0
        self._server: asyncio.AbstractServer | None = None
        self._directory = ""  # private, with everything in it, or "" if none is needed
        self._parent_made = ""  # of a configured path
        self._listener: UnixListener | None = None
        self._announced: dict[str, PendingPeer] = {}  # not arrived yet
        self._accepted: set[PendingPeer] = set()
        self._strangers = 0
        self._warn_again_at_s = 0.0
        self.path = socket_path
        """Where it listens, once started."""

    # -- its own life

    async def start(self) -> None:
        """Make the socket and listen. Raises ConfigError if that fails.

        Nothing is left behind after an error or if cancelled.
        """
        sock: socket.socket | None = None
        try:
            sock = self._listening_socket()
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: HandOver(self._arrived), sock=sock, backlog=_BACKLOG
            )
        except BaseException as error:
            if sock is not None:
                sock.close()
            self._remove_what_we_made()
            if isinstance(error, OSError):
                raise self._unusable(f"a path where a Unix socket can be made ({error.strerror or error})") from error
            raise

    def _unusable(self, expected: str) -> ConfigError:
        return ConfigError("uds_socket_path", self._configured_path or "default", expected)

    def _listening_socket(self) -> socket.socket:
        if not self._configured_path or not self._abstract:
            self._directory = _private_directory()
        self.path = os.path.abspath(self._configured_path or os.path.join(self._directory, "proxy.sock"))
        if len(os.fsencode(self.path)) > SOCKET_PATH_BYTES:
            raise self._unusable(f"a path of at most {SOCKET_PATH_BYTES} bytes, not {self.path}")
        if not self._configured_path:
            return self._bound()
        parent = os.path.dirname(self.path)
        if not os.path.isdir(parent):
            os.mkdir(parent, 0o700)
            self._parent_made = parent
        with locked(parent):
            try:
                make_room_at(self.path)
            except OccupiedError:
                raise self._unusable("a path where nothing is, or no more than a dead agent's socket") from None
            return self._bound()

    def _bound(self) -> socket.socket:
        """A socket that listens at `path`."""
        self._listener = listen_at(self.path, backlog=_BACKLOG)
        return self._listener.sock

    async def close(self) -> None:
        """Stop listening, end what was accepted, and remove what it made. Cancelled: all of it is done but waiting."""
        for announced in list(self._accepted):
            announced.withdraw(dialled=True)
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._remove_what_we_made()
        if server is not None:
            await server.wait_closed()

    def _remove_what_we_made(self) -> None:
        if self._listener is not None:
            self._listener.remove()
            self._listener = None
        for name in self._announced:
            self._remove_name(name)
        self._announced.clear()
        if self._directory:
            with contextlib.suppress(OSError):  # somebody put something there: not ours to remove
                os.rmdir(self._directory)
            self._directory = ""
        if self._parent_made:
            with contextlib.suppress(OSError):  # somebody else uses it
                os.rmdir(self._parent_made)
            self._parent_made = ""

    # -- the managers' side

    def next_session(self) -> int:
        """A number for one more session, so that the same conn_id of two sessions has two names."""
        self._sessions += 1
        return self._sessions

    def announce(
        self, session: int, conn_id: int, outcome: Outcome, features: frozenset[str] = frozenset()
    ) -> PendingPeer:
        """Expect one connection. Its socket must be bound to the result's name before it connects."""
        if self._server is None:
            raise RuntimeError("the acceptor isn't listening")
        if self._abstract:
            name = f"\0fastpipe-agent/{self._token}/{session}/{conn_id}"
        else:
            name = os.path.join(self._directory, f"{session}-{conn_id}")
        announced = self._announced[name] = PendingPeer(self, name, conn_id, outcome, features)
        return announced

    def bind(self, announced: PendingPeer) -> socket.socket:
        """Return a non-blocking socket bound to the announced name. Raises OSError and withdraws the announcement.

        Any process can read the abstract names in use (/proc/net/unix). A stranger may take the next names before they
        are needed. So if a name is taken, it and all later names get another unguessable part.
        """
        sock = None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            self._bound_kernel(sock)
            try:
                sock.bind(announced.name)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not self._abstract:
                    raise
                self._rename(announced)
                sock.bind(announced.name)
        except OSError:
            if sock is not None:
                sock.close()
            self._announced.pop(announced.name, None)
            raise
        return sock

    def _rename(self, announced: PendingPeer) -> None:
        del self._announced[announced.name]
        old, self._token = self._token, secrets.token_hex(16)
        announced.name = announced.name.replace(old, self._token)
        self._announced[announced.name] = announced

    def _withdrawn(self, announced: PendingPeer, dialled: bool) -> None:
        if announced.transport is not None:
            self._accepted.discard(announced)
            if not announced.transport.is_closing():  # else the transport closes by itself, after its peer
                announced.transport.abort()
        elif not dialled and self._announced.pop(announced.name, None) is not None:
            self._remove_name(announced.name)

    def _remove_name(self, name: str) -> None:
        if not self._abstract:
            with contextlib.suppress(OSError):
                os.unlink(name)

    # -- the peers' side

    def _arrived(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """The proxy's protocol for a peer, None where it isn't to be let in."""
        name = transport.get_extra_info("peername")
        if isinstance(name, bytes):
            name = os.fsdecode(name)
        announced = self._announced.pop(name, None) if isinstance(name, str) else None
        if announced is None:
            self._warn_of_stranger()
            return None
        self._remove_name(announced.name)
        if announced.withdrawn:
            return None
        try:
            protocol = self._accept_for(announced.features)(announced.conn_id, announced.outcome)
        except Exception:
            logger.exception("the proxy refused a connection", extra={"conn_id": announced.conn_id})
            return None
        announced.transport = transport
        self._accepted.add(announced)
        self._bound_kernel(transport.get_extra_info("socket"))
        transport.set_write_buffer_limits(high=self.buffer_bytes, low=self.buffer_bytes // 4)
        return protocol

    def _bound_kernel(self, sock: socket.socket) -> None:
        """Have the kernel hold `buffer_bytes` of what this end sends, in place of its 208 KiB.

        Linux doubles what it is given (socket(7)), and a Unix stream's sender is charged until its peer has read.
        """
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.buffer_bytes // 2)

    def _warn_of_stranger(self) -> None:
        self._strangers += 1
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._warn_again_at_s:
            self._warn_again_at_s = now_s + _WARNING_INTERVAL_S
            extra = {"path": self.path, "so_far": self._strangers}
            logger.warning("dropped a peer that is no connection of this agent's", extra=extra)


def _private_directory() -> str:
    """A new directory of mode 0700 whose paths fit a socket's address. Raises OSError."""
    directory = tempfile.mkdtemp(prefix="fastpipe-agent-")
    if len(os.fsencode(directory)) > SOCKET_PATH_BYTES - 32 and os.path.isdir("/tmp"):  # noqa: S108 - made by mkdtemp
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="fastpipe-agent-", dir="/tmp")
    return directory
