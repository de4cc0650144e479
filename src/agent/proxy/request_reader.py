"""Reads the requests of one client connection, up to each one's body. A head that repeats is parsed once."""

from __future__ import annotations

from ..config.limits import ProxyLimits
from .forwarded_fields import receive
from .heads import KEPT_BYTES, Request, bound_upgrade, parse_request
from .origin import HubOrigin, Origin
from .pieces import Piece
from .readers import RequestHeadReader
from .request_id import ID_BYTES

__all__ = ["RequestReader"]

ID_FIELD = b"\r\nX-Request-Id: "
ID_FIELD_BYTES = len(ID_FIELD)
ID_LINE_BYTES = ID_FIELD_BYTES + ID_BYTES + 4
"""The last field of a head from our hub, with the CRLF before it and the end of the head."""


class RequestReader:
    """Finds requests.

    Attributes:
        request, own_target: the last result of `take`: the checked head, and the target that it asked for.
        origin: the other end.
        request_id: the id that a trusted party gave the request, or b"".
        serves_connect: CONNECT is served.
    """

    __slots__ = (
        "_ends_with_id",
        "_heads",
        "_is_base_hubs",
        "_last",
        "_last_head",
        "_last_target",
        "origin",
        "own_target",
        "request",
        "request_id",
        "serves_connect",
    )

    def __init__(self, limits: ProxyLimits, origin: Origin, serves_connect: bool = False) -> None:
        self.request: Request | None = None
        self.own_target = self.request_id = b""
        self.origin = origin
        self._ends_with_id = origin.is_trusted and isinstance(origin, HubOrigin)
        self.serves_connect = serves_connect
        self._heads = RequestHeadReader(limits, serves_connect)
        self._is_base_hubs = isinstance(origin, HubOrigin) and origin.is_base
        self._last: Request | None = None  # the request before, its head, and the target that this asked for
        self._last_head = self._last_target = b""

    def has_begun(self) -> bool:
        """Whether a part of a head is held."""
        return bool(self._heads.begun)

    def take(self, data: Piece, limits: ProxyLimits) -> Piece:
        """Read the next bytes, at least one. Return the bytes after the head. `request` is None until then.

        Raises:
            heads.Fault: no further byte can make it an acceptable head.
        """
        self.request = None
        head, rest = self._heads.take(data)
        if head is None:
            return rest
        last, self.request_id = self._last, b""
        bare = text = head
        if self._ends_with_id:
            end = len(head) - ID_LINE_BYTES
            if end > 0 and text[end : end + ID_FIELD_BYTES] == ID_FIELD:
                found = text[end + ID_FIELD_BYTES : end + ID_FIELD_BYTES + ID_BYTES]
                # Other bytes may be the end of an id and further lines, which must be parsed. A hub that is believed by
                # `trust_hub_fields` passes a user's field on.
                if found.isalnum():
                    # Without its id, a head of our hub is the same as the one before.
                    self.request_id, bare = found, text[:end]
        request, target = last, self._last_target
        if request is None or bare != self._last_head:
            if bare is not head:
                head = bare + b"\r\n\r\n"
            request, target = parse_request(head, limits, request, serves_connect=self.serves_connect)
            if request is not last:
                receive(request, self.origin)
                if request.upgrade and self._is_base_hubs:
                    bound_upgrade(request, 0, "upgrade-base-hub")
            # A long head is not kept, since the connection may idle.
            self._last = request if request.block else None
            is_kept = request.block != b"" and len(bare) <= KEPT_BYTES
            self._last_target, self._last_head = (target, bare) if is_kept else (b"", b"")
        self.request, self.own_target = request, target
        if not self.request_id:
            self.request_id = request.request_id
        return rest
