"""Reads the head of a request by HTTP/2: as the HTTP/1.1 head of the same meaning, which heads.py then checks.

One set of rules holds for both versions, since both pass the same parser. This module adds what only HTTP/2 has
(RFC 9113, section 8.3, and RFC 8441):

    :method :path          the request line
    :authority             Host. A Host field must be the same
    cookie crumbs          one Cookie field, joined by "; "
    no END_STREAM          Content-Length, or else chunked
    CONNECT, :protocol     GET with an Upgrade to websocket

http2/head_rules.py has checked names, values and pseudo-fields before, so no byte here can end a line.
"""

from __future__ import annotations

import base64
import hashlib
import os

from ..config.limits import ProxyLimits
from ..errors import AgentError
from .forwarded_fields import receive
from .headers import Fields
from .heads import Fault, Request, malformed_head, parse_request
from .origin import Origin
from .rules import RULES

__all__ = ["Http2RequestReader", "MalformedStream", "accept_of"]

WEBSOCKET = b"websocket"
ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
COLON = b":"[0]
SCHEMES = frozenset((b"http", b"https"))


class MalformedStream(AgentError):
    """A head that is malformed by HTTP/2's own rules: a stream error PROTOCOL_ERROR. reason: for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def accept_of(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept that belongs to a key (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + ACCEPT_GUID, usedforsecurity=False).digest())


class Http2RequestReader:
    """Reads the requests of one connection. A head that repeats is parsed once.

    Attributes:
        request, own_target: the last result of `take`: the checked head, and the target that it asked for.
        request_id: the id that a trusted party gave the request, or b"".
        websocket_key: the key that was made for an extended CONNECT, or b"".
        has_length: the head has a Content-Length.
    """

    __slots__ = (
        "_last",
        "_last_ended",
        "_last_fields",
        "_last_limits",
        "_origin",
        "_serves_connect",
        "has_length",
        "own_target",
        "request",
        "request_id",
        "websocket_key",
    )

    def __init__(self, origin: Origin, serves_connect: bool) -> None:
        self._origin = origin
        self._serves_connect = serves_connect
        self._last: Request | None = None
        self._last_fields: Fields | None = None  # those of `request`, if they may repeat
        self._last_ended = False
        self._last_limits: ProxyLimits | None = None
        self.request: Request | None = None
        self.own_target = self.request_id = self.websocket_key = b""
        self.has_length = False

    def take(self, fields: Fields, ended: bool, limits: ProxyLimits) -> None:
        """Read a head. `request` and `own_target` have the result.

        Args:
            fields: as decoded, checked by `http2.head_rules.fault_of`. The list never changes.
            ended: the head has END_STREAM.

        Raises:
            MalformedStream: HTTP/2's rules forbid the head.
            heads.Fault: the response to another head that can't be served.
        """
        if fields is self._last_fields and ended == self._last_ended and limits is self._last_limits:
            return  # the decoder gives the same list for a head that repeats
        self.request = self._last_fields = None
        self.websocket_key = b""
        method = path = authority = protocol = b""
        crumbs: list[bytes] | None = None
        hosts: list[bytes] | None = None
        has_length = False
        out: list[bytes] = []
        for name, value in fields:
            if name[0] == COLON:
                if name == b":method":
                    method = value
                elif name == b":path":
                    path = value
                elif name == b":authority":
                    authority = value
                elif name == b":protocol":
                    protocol = value
                elif value not in SCHEMES:
                    raise MalformedStream("the scheme is neither http nor https")
            elif name == b"cookie":
                if crumbs is None:
                    crumbs = [value]
                else:
                    crumbs.append(value)
            elif name == b"host":
                if hosts is None:
                    hosts = [value]
                else:
                    hosts.append(value)
            else:
                if name == b"content-length":
                    has_length = True
                out.append(name)
                out.append(b": ")
                out.append(value)
                out.append(b"\r\n")
        if crumbs is not None:
            out.append(b"cookie: " + b"; ".join(crumbs) + b"\r\n")
        if not authority and hosts is not None:
            authority = hosts[0]
        if hosts is not None and (len(hosts) > 1 or hosts[0].lower() != authority.lower()):
            raise MalformedStream(":authority and Host differ")
        framing = self._framing(method, protocol, has_length, ended, out)
        if method == b"CONNECT":
            if protocol:
                method = b"GET"
            else:
                path = authority
        host = b"Host: " + authority + b"\r\n" if authority else b""
        block = b"".join(out)
        size = len(method) + len(path) + len(host) + len(block) + 14  # with the rest of the line, and the end
        if size > limits.request_head_bytes:
            raise Fault(431, "request head too large", limit="limits.request_head_bytes")
        head = b"".join((method, b" ", path, b" HTTP/1.1\r\n", host, block, framing, b"\r\n"))
        if head.find(b"\r\n") < len(method) + len(path) + 10:  # checked before. If not, nothing may pass
            raise MalformedStream("the request line has a line end")
        request, target = parse_request(head, limits, self._last, serves_connect=self._serves_connect)
        if request is not self._last:
            receive(request, self._origin)
            self._last = request if request.block and not protocol else None
        self.request, self.own_target = request, target
        self.request_id = request.request_id
        self.has_length = has_length
        if not protocol and request.block:
            self._last_fields, self._last_ended, self._last_limits = fields, ended, limits

    def _framing(self, method: bytes, protocol: bytes, has_length: bool, ended: bool, out: list[bytes]) -> bytes:
        """The lines that HTTP/1.1 needs for the same message."""
        if protocol:
            if protocol.lower() != WEBSOCKET:
                raise Fault(501, "the only protocol of an extended CONNECT here is websocket")
            if has_length:
                raise malformed_head(RULES["connect-body"])
            self._drop_key(out)
            self.websocket_key = base64.b64encode(os.urandom(16))
            return b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: %b\r\n" % self.websocket_key
        if ended or has_length or method == b"CONNECT":
            return b""
        return b"Transfer-Encoding: chunked\r\n"

    def _drop_key(self, out: list[bytes]) -> None:
        """Leave out a key of the client's. RFC 8441, section 5, has none."""
        for at in range(len(out) - 4, -1, -4):
            if out[at] == b"sec-websocket-key":
                del out[at : at + 4]
