"""The rules of a head (RFC 9113, section 8.1.1). A malformed head ends its stream, never the connection.

h2 closes the connection, with all its streams, for each of these faults. So h2 checks no fields here. `Decoder`
replaces its HPACK decoder, and hides content-length from it. Every header block is decoded, even of a closed stream,
since HPACK's state belongs to the connection.

The errors that h2 still raises, by class, with their scope in the RFC:

    raised by h2                scope         code                 section
    ------------------------    ----------    -----------------    ----------------------------------------------
    ProtocolError (HPACK)       connection    COMPRESSION_ERROR    4.3, never, `Decoder` raises with the right code
    DenialOfServiceError        connection    ENHANCE_YOUR_CALM    4.3, 10.5.1, never, likewise
    FrameTooLargeError          connection    FRAME_SIZE_ERROR     4.2, never, `frames` has checked the header
    FrameDataMissingError       connection    FRAME_SIZE_ERROR     4.2, never, likewise
    InvalidSettingsValueError   connection    its own              6.5.2, PROTOCOL_ERROR or FLOW_CONTROL_ERROR
    StreamIDTooLowError         connection    PROTOCOL_ERROR       5.1.1
    StreamClosedError           stream        STREAM_CLOSED        5.1, half-closed (remote), h2 resets it itself
    StreamClosedError           connection    STREAM_CLOSED        5.1, HEADERS behind both ends' END_STREAM
    NoSuchStreamError           connection    PROTOCOL_ERROR       5.1, idle
    FlowControlError            connection    FLOW_CONTROL_ERROR   never, `data_plane` has the windows
    TooManyStreamsError         stream        REFUSED_STREAM       5.1.2, never, `connection` counts
    InvalidBodyLengthError      stream        PROTOCOL_ERROR       8.1.1, never, `Decoder` hides content-length
    ProtocolError (fields)      stream        PROTOCOL_ERROR       8.2, 8.3, never, `fault_of` checks
    UnsupportedFrameError       connection    PROTOCOL_ERROR       never, unknown types are skipped
    ProtocolError (else)        connection    PROTOCOL_ERROR       5.1, a frame that its state doesn't allow
"""

from __future__ import annotations

import re
from typing import Literal

import hpack
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.struct import HeaderTuple

from ..errors import WireError
from .errors import ErrorCode

__all__ = ["Decoder", "HeadKind", "Headers", "fault_of"]

Headers = list[tuple[bytes, bytes]]
"""A head's fields in their order, with names in lower case."""

HeadKind = Literal["request", "extended request", "response", "trailers"]
"""An extended request may be an extended CONNECT (RFC 8441), which SETTINGS_ENABLE_CONNECT_PROTOCOL allows."""

_NAME = re.compile(rb":?[!#-9;-@\[-~]+")  # section 8.2.1: visible ASCII, no capitals, no colon but a pseudo-field's
_VALUE = re.compile(rb"(?![ \t])[^\0\r\n]*(?<![ \t])")
_OF_THE_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"http2-settings")
)
_PSEUDO: dict[HeadKind, frozenset[bytes]] = {
    "request": frozenset((b":method", b":scheme", b":path", b":authority")),
    "extended request": frozenset((b":method", b":scheme", b":path", b":authority", b":protocol")),
    "response": frozenset((b":status",)),
    "trailers": frozenset(),
}
_REQUIRED: dict[HeadKind, tuple[bytes, ...]] = {
    "request": (b":method", b":scheme", b":path"),
    "extended request": (b":method", b":scheme", b":path"),
    "response": (b":status",),
    "trailers": (),
}


class Decoder(hpack.Decoder):
    """An HPACK decoder that keeps the last decoded fields, and hides content-length from h2.

    Raises WireError for a block that it can't decode, since the connection has lost HPACK's state.
    """

    fields: Headers

    def decode(self, data: bytes, raw: bool = False) -> list[HeaderTuple]:
        try:
            decoded = list(super().decode(data, raw=True))
        except OversizedHeaderListError:
            rule = f"a head of more than {self.max_header_list_size} bytes"
            raise WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.ENHANCE_YOUR_CALM) from None
        except (HPACKError, IndexError, TypeError, UnicodeDecodeError) as error:  # as h2 has them
            raise WireError(f"HTTP/2: HPACK: {error}", http2_code=ErrorCode.COMPRESSION_ERROR) from error
        self.fields = [(bytes(name), bytes(value)) for name, value in decoded]
        return [each for each in decoded if each[0] != b"content-length"]


def fault_of(fields: Headers, kind: HeadKind) -> str:
    """The rule of RFC 9113, sections 8.2 and 8.3, that a head breaks, or "". fields: as decoded."""
    seen: set[bytes] = set()
    regular = False
    for name, value in fields:
        if not _NAME.fullmatch(name):
            return "a field's name has a character that it must not have (section 8.2.1)"
        if not _VALUE.fullmatch(value):
            return f"the value of {name.decode()} has a character that it must not have (section 8.2.1)"
        if name.startswith(b":"):
            if regular:
                return f"{name.decode()} comes behind other fields (section 8.3)"
            if name not in _PSEUDO[kind]:
                return f"{name.decode()} is no field of a {kind.removesuffix('s')} (section 8.3)"
            if name in seen:
                return f"{name.decode()} is there twice (section 8.3)"
            seen.add(name)
        else:
            regular = True
            if name in _OF_THE_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
                return f"{name.decode()} is a field of HTTP/1.1's connections (section 8.2.2)"
    is_connect = kind.endswith("request") and (b":method", b"CONNECT") in fields
    if b":protocol" in seen:
        if not is_connect or b":authority" not in seen:
            return ":protocol is there without CONNECT and :authority (RFC 8441, section 4)"
    elif is_connect:
        wrong = seen & {b":scheme", b":path"} or b":authority" not in seen
        return "CONNECT has :authority and neither :scheme nor :path (section 8.5)" if wrong else ""
    for name in _REQUIRED[kind]:
        if name not in seen:
            return f"{name.decode()} is missing (section 8.3.1)"
    return ":path is empty (section 8.3.1)" if (b":path", b"") in fields else ""
