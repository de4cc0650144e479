"""The target's side, as an exchange sees it: one request and its response, whatever carries them.

On HTTP/1.1 the stream is a connection (`upstream.Upstream`). On HTTP/2 it is one stream of a shared connection. Only
the pool knows which of the two it is.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import TargetError
from ..messages import Path
from .head_writer import TargetHead
from .headers import Fields
from .heads import Request, Response
from .pieces import Piece

__all__ = ["HeldTunnel", "StreamUser", "TunnelUser", "UpstreamStream"]


class StreamUser(Protocol):
    """The exchange that uses a stream, as the stream calls it. No call may raise, and none follows `abort`."""

    def response_started(
        self, response: Response, length: int, pieces: list[Piece], ended: bool, trailers: Fields
    ) -> None:
        """A final response's head, with what has come of its body. The arguments are `ClientSide.start_response`'s."""

    def response_body(self, pieces: list[Piece], ended: bool, trailers: Fields) -> None:
        """The next pieces of the body."""

    def response_failed(self, reason: str, stage: str, limit: str, rule: str) -> None:
        """The target broke its protocol or passed a limit. stage, limit, rule: for the log."""

    def target_moved(self) -> None:
        """Note the arrival of bytes that are no whole head yet."""

    def informational(self, response: Response) -> bool:
        """A 1xx, other than a 101. Returns False if the user no longer wants the stream."""

    def switched(self, response: Response, rest: Piece) -> None:
        """A 101, with the bytes behind it."""

    def upstream_lost(self, error: Exception | None) -> None:
        """The stream closed before the response was whole."""

    def pause_sending(self) -> None:
        """The target takes no more for now."""

    def resume_sending(self) -> None:
        """The target takes more."""


class TunnelUser(Protocol):
    """The user of an upgraded stream, as the stream calls it behind a 101. No call may raise."""

    def tunnel_data(self, data: Piece) -> None:
        """Bytes of the tunnel."""

    def tunnel_eof(self) -> bool:
        """The target's end. Returns whether the stream stays open for what is still sent on it."""

    def upstream_lost(self, error: Exception | None) -> None:
        """The stream closed."""

    def pause_sending(self) -> None:
        """The target takes no more for now."""

    def resume_sending(self) -> None:
        """The target takes more."""


class HeldTunnel:
    """Holds the bytes of a raw target that speaks before its tunnel is open: ssh, MySQL, SMTP.

    It is the first `TunnelUser` of such a stream. Reading pauses with the first bytes.
    """

    __slots__ = ("_ended", "_error", "_lost", "_pieces", "_stream")

    def __init__(self, stream: UpstreamStream) -> None:
        self._stream = stream
        self._pieces: list[Piece] = []
        self._ended = self._lost = False
        self._error: Exception | None = None

    def tunnel_data(self, data: Piece) -> None:
        self._pieces.append(data)
        self._stream.pause_reading()

    def tunnel_eof(self) -> bool:
        self._ended = True
        return True

    def upstream_lost(self, error: Exception | None) -> None:
        self._lost, self._error = True, error

    def pause_sending(self) -> None:
        """Nothing was sent."""

    def resume_sending(self) -> None:
        """Nothing was sent."""

    def give_to(self, user: TunnelUser) -> bool:
        """Hand everything to the next user, whose client has its 200.

        Returns whether reading is still paused, and must resume as soon as the client takes further bytes.
        """
        for piece in self._pieces:
            user.tunnel_data(piece)
        if self._lost:
            user.upstream_lost(self._error)
        elif self._ended:
            user.tunnel_eof()
        return bool(self._pieces)


class UpstreamStream:
    """One request's way to a target. A method without an override raises NotImplementedError.

    Attributes:
        user: the current user.
        reused: its connection has served an exchange before, so the target may have closed it.
        path: the path of its connection, if that can fall silent, else None.
        has_answered: a byte of the response arrived.
        writing_paused: the target takes no further bytes for now.
    """

    __slots__ = ("has_answered", "path", "reused", "user", "writing_paused")

    def __init__(self) -> None:
        self.user: StreamUser | None = None
        self.path: Path | None = None
        self.reused = False
        self.has_answered = False
        self.writing_paused = False

    @property
    def failure(self) -> TargetError | None:
        """Why the stream ended, where what carries it knows."""
        return None

    def start(self, user: StreamUser, request: Request) -> bool:
        """Serve `user` from now on. Returns False where the stream has ended already."""
        raise NotImplementedError

    def send(self, head: TargetHead | None, pieces: list[Piece], ended: bool) -> None:
        """Send the request's head, None if it was sent, and the next pieces of its body.

        Args:
            pieces: content, immutable, kept by reference.
            ended: the request is whole.
        """
        raise NotImplementedError

    def pause_reading(self) -> None:
        """Pause the response, because the client takes no further bytes for now."""
        raise NotImplementedError

    def resume_reading(self) -> None:
        """Deliver the response again."""
        raise NotImplementedError

    def takes_nothing(self, now: float) -> bool:
        """Whether the target has taken nothing of what was sent for too long. now: the clock's, in seconds."""
        raise NotImplementedError

    def finish(self, request_done: bool) -> None:
        """The response is whole. The stream ends, and what carried it serves another exchange where it can.

        request_done: the request was sent whole.
        """
        raise NotImplementedError

    def abort(self) -> None:
        """Close the stream at once, and drop unsent bytes. Its user gets no further call."""
        raise NotImplementedError

    # -- a tunnel, behind a 101 or a CONNECT's 200

    def switch(self, user: TunnelUser) -> HeldTunnel | None:
        """From now on `user` gets the target's bytes as they arrive. Returns what a raw target did before, if any."""
        raise NotImplementedError

    def write(self, data: Piece) -> None:
        """Send bytes of the tunnel."""
        raise NotImplementedError

    def write_eof(self) -> bool:
        """Send the tunnel's end. Returns whether what carries it could."""
        raise NotImplementedError

    def is_gone(self) -> bool:
        """Whether a target that has sent its end has left. False if what carries the stream does not show it."""
        return False

    def close(self) -> None:
        """End the stream behind what is unsent, or without it where the target takes nothing."""
        raise NotImplementedError
