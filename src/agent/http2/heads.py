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

import hpack
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.struct import HeaderTuple

from ..errors import WireError
from .errors import ErrorCode
from .head_rules import Headers, HeadKind, fault_of

__all__ = ["Decoder", "HeadKind", "Headers", "fault_of"]


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
