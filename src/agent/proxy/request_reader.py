"""Reads the requests of one client connection, up to each one's body. A head that repeats is parsed once."""

from __future__ import annotations

from ..config.limits import ProxyLimits
from .heads import Request, bound_upgrade, parse_request
from .pieces import Piece
from .readers import RequestHeadReader

__all__ = ["RequestReader"]


class RequestReader:
    """request, own_target: what `take` has found last, the checked head and the target that it asked for.

    is_base_hubs: the connection comes from a hub without features. No upgrade follows a body there.
    """

    __slots__ = ("_heads", "_is_base_hubs", "_last", "_last_head", "_last_target", "own_target", "request")

    def __init__(self, limits: ProxyLimits, is_base_hubs: bool) -> None:
        self.request: Request | None = None
        self.own_target = b""
        self._heads = RequestHeadReader(limits)
        self._is_base_hubs = is_base_hubs
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
        request, target = self._last, self._last_target
        if request is None or head != self._last_head:
            request, target = parse_request(head, limits, request)
            if request.upgrade and self._is_base_hubs:
                bound_upgrade(request, 0, "upgrade-base-hub")
            if request.block:
                self._last, self._last_target, self._last_head = request, target, head
            else:  # a long one would be held while the connection idles
                self._last, self._last_target, self._last_head = None, b"", b""
        self.request, self.own_target = request, target
        return rest
