"""Reads the requests of one client connection, up to each one's body. A head that repeats is parsed once."""

from __future__ import annotations

from ..config.limits import ProxyLimits
from .forwarded_fields import KEPT_BYTES as REPORT_BYTES
from .forwarded_fields import Report, receive, receive_reported
from .headers import Fields
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

REPORT = b"\r\nX-Forwarded-For: "
"""The beginning of the fields before it, which our hub also writes."""


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
        "_given",
        "_heads",
        "_is_base_hubs",
        "_last",
        "_last_head",
        "_last_is_cut",
        "_last_target",
        "_no_report",
        "_report",
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
        self._last_is_cut = False  # it was read without its report
        self._given: Fields = []  # the fields of the last head that was parsed whole
        self._report: Report | None = None  # the last one that can repeat
        self._no_report = b""  # the end of the last head that has none

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
            if bare is head:
                request, target = self._read(head, limits)
            else:
                request, target = self._read_hubs(bare, limits)
            # A long head is not kept, since the connection may idle.
            self._last = request if request.block else None
            is_kept = request.block != b"" and len(bare) <= KEPT_BYTES
            self._last_target, self._last_head = (target, bare) if is_kept else (b"", b"")
        self.request, self.own_target = request, target
        if not self.request_id:
            self.request_id = request.request_id
        return rest

    def _read(self, head: bytes, limits: ProxyLimits) -> tuple[Request, bytes]:
        """Parse a whole head, unless the last one differs from it by the target alone."""
        last = None if self._last_is_cut else self._last
        self._last_is_cut = False
        result = parse_request(head, limits, last, serves_connect=self.serves_connect)
        request = result[0]
        if request is not last:
            self._given = request.fields
            receive(request, self.origin)
            if request.upgrade and self._is_base_hubs:
                bound_upgrade(request, 0, "upgrade-base-hub")
        return result

    def _read_hubs(self, bare: bytes, limits: ProxyLimits) -> tuple[Request, bytes]:
        """Do the same for a head from our hub. The report behind the user's fields is read once if it repeats.

        bare: the head without its id, and without the CRLFs at its end.
        """
        at = bare.rfind(REPORT)
        ending = bare[at:] if at > 0 else b""
        report = self._report
        if report is not None and ending == report.ending:
            last = self._last if self._last_is_cut else None
            head = bare[:at] + b"\r\n\r\n"
            result = parse_request(head, limits, last, serves_connect=self.serves_connect, known_fields=report.count)
            if result[0] is last or receive_reported(result[0], report):
                self._last_is_cut = True
                return result
        result = self._read(bare + b"\r\n\r\n", limits)
        if ending != self._no_report and 0 < len(ending) <= REPORT_BYTES:
            self._report = Report.of(ending, result[0], self._given)
            self._no_report = ending if self._report is None else b""
        return result
