"""The client, as an exchange sees it, whichever protocol the client speaks.

    request   ClientSide's owner ──client_data, uncork, client_lost──► Exchange
    response  Exchange ──send_continue | send_informational──► start_response ──send_body──► response_done
                 └── respond_with (no response yet) | abort_response (a response began) | switch_protocols

On HTTP/1.1 the client side is the connection (`server.ClientConnection`). On HTTP/2 it is one stream.
`ClientSide` is a class and no `Protocol`, so that the compiled exchange calls it through a table of C functions.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import Party
from .headers import Fields
from .heads import Response
from .pieces import Piece

__all__ = ["ClientSide", "ClientTunnel"]


class ClientTunnel(Protocol):
    """Takes the exchange's place behind a 101, as the client side calls it."""

    def client_bytes(self, data: Piece) -> None: ...
    def client_eof(self) -> bool: ...
    def client_lost(self) -> None: ...
    def pause_receiving(self) -> None: ...
    def resume_receiving(self) -> None: ...
    def end_if_left(self) -> None: ...
    def look_at_deadlines(self, now: float) -> None: ...


class ClientSide:
    """One request's client. Its exchange calls the methods. A method without an override raises NotImplementedError.

    Attributes:
        conn_id: the connection, for the log.
        request_id: the id of its last request, b"" before the first.
        writing_paused: the client takes no further bytes for now.
        is_delivering: the client side is working on input, and then calls `Exchange.uncork`.
        may_have_left: the client has sent its whole request and its FIN, so `target_moved` must be called.
        response_begun: a byte of the final response's head was sent.
        carries_grpc: a request with gRPC's content type is a call (grpc.py). False: it is ordinary HTTP.
    """

    __slots__ = (
        "carries_grpc",
        "conn_id",
        "is_delivering",
        "may_have_left",
        "request_id",
        "response_begun",
        "writing_paused",
    )

    def __init__(self, conn_id: int) -> None:
        self.conn_id = conn_id
        self.request_id = b""
        self.writing_paused = False
        self.is_delivering = False
        self.may_have_left = False
        self.response_begun = False
        self.carries_grpc = False

    def log_fields(self) -> dict[str, object]:
        """The first fields of a log line about the connection's last request."""
        if not self.request_id:
            return {"conn_id": self.conn_id}
        return {"request_id": self.request_id.decode(), "conn_id": self.conn_id}

    # -- the request's way

    def pause_request(self) -> None:
        """Pause the request's body, because the target takes no further bytes for now. Repeated calls do nothing."""
        raise NotImplementedError

    def resume_request(self) -> None:
        """Deliver the request's body again. Without a pause it does nothing."""
        raise NotImplementedError

    def target_moved(self) -> None:
        """The target has sent something, for a client that may have left."""
        raise NotImplementedError

    # -- the response's way

    def send_continue(self) -> None:
        """Send a 100."""
        raise NotImplementedError

    def send_informational(self, response: Response) -> None:
        """Send a 103, where the client's protocol has it."""
        raise NotImplementedError

    def start_response(
        self, response: Response, length: int, pieces: list[Piece], ended: bool, trailers: Fields
    ) -> None:
        """Send a final response's head, and the body's pieces that are there already.

        Args:
            length: of the body in bytes. heads.CHUNKED: unknown. heads.UNFRAMED: the head has no framing.
            pieces: immutable, kept by reference.
            ended: the body is whole.
            trailers: as received. They are used if `ended`.

        A client side that can't relay the body calls `Exchange.fail`, in here or in `send_body`.
        """
        raise NotImplementedError

    def send_body(self, pieces: list[Piece], ended: bool, trailers: Fields) -> None:
        """Send the next pieces of the body. The arguments are those of `start_response`."""
        raise NotImplementedError

    def response_done(self) -> None:
        """The whole response was sent. The exchange has ended."""
        raise NotImplementedError

    def respond_with(
        self,
        status: int,
        reason: str,
        *,
        close: bool = False,
        fields: Fields | None = None,
        fault: Party | None = None,
        limit: str = "",
    ) -> None:
        """Send a response of the proxy, before any other response has begun. The exchange has ended.

        Args:
            reason: the text that the client gets.
            close: the connection serves no further request.
            fault, limit: whose fault it is, and the setting that ended the request, for a hub that reads them.
        """
        raise NotImplementedError

    def abort_response(self, reason: str, limit: str) -> None:
        """Cut the response short, visibly for the client. The exchange has ended.

        reason, limit: as in `respond_with`, for a client whose protocol has a place for them.
        """
        raise NotImplementedError

    def truncation(self) -> dict[str, int]:
        """Return log fields of an unfinished response (`status`, `truncated`, `sent_bytes`). Empty before its head."""
        raise NotImplementedError

    # -- a tunnel, where the client's protocol has one

    def switch_protocols(self, response: Response, rest: Piece, upgraded: ClientTunnel) -> None:
        """Send a 101 and what the target sent behind it. From now on `upgraded` has the client's bytes."""
        raise NotImplementedError

    def write(self, data: Piece) -> None:
        """Send bytes of the tunnel. Immutable, kept by reference."""
        raise NotImplementedError

    def write_eof(self) -> bool:
        """Send the tunnel's end. Returns whether what carries it could."""
        raise NotImplementedError

    def tunnel_done(self) -> None:
        """Both directions of the tunnel have ended in order."""
        raise NotImplementedError
