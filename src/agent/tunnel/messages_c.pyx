# cython: language_level=3, boundscheck=False, wraparound=False, nonecheck=False, initializedcheck=False
# cython: binding=False, embedsignature=False, freethreading_compatible=True
"""The fast twin of `messages_py`, which explains the code and its reasons. I1 to I3 are `framing_py`'s invariants.

The same bytes make the same calls in the same order, with the same errors. Both twins take their errors from
`message_rules` and `packet`. `packet.decode_packet` reads each packet that isn't plain (an unknown field, a mistake).
The twins differ only in how they keep an unfinished message. This twin keeps it in one buffer, which grows to the
message's size in few steps. So the message is copied once.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcpy

from agent.http2.framing_c cimport copy_part, framing_view, octets

from ..http2 import frames
from . import message_rules
from .packet import MAX_TEXT_BYTES, ControlCode, PacketError, decode_packet as decode_any_packet

__all__ = ["MessageReader", "PacketWriter"]

cdef int WINDOW = ControlCode.WINDOW
cdef Py_ssize_t VIEW_BYTES = frames.VIEW_BYTES, JOIN_BYTES = message_rules.JOIN_BYTES
cdef Py_ssize_t TEXT_BYTES = MAX_TEXT_BYTES
cdef int LARGE_HEAD_BYTES = message_rules.LARGE_HEAD_BYTES
cdef Py_ssize_t FIRST_KEPT_BYTES = 2 ** 20  # set aside for a message before more than its length has come


# ---------------------------------------------------------------- packets

cdef inline int varint(const unsigned char* buffer, Py_ssize_t* position, Py_ssize_t end,
                       unsigned long long* value) noexcept:
    """Read the varint at `position`, and move `position` behind it. Returns -1 if it is cut or exceeds 64 bits."""
    cdef unsigned long long result = 0
    cdef int shift = 0
    cdef unsigned char byte
    while position[0] < end:
        byte = buffer[position[0]]
        position[0] += 1
        if shift == 63 and byte > 1:
            return -1
        result |= <unsigned long long>(byte & 0x7F) << shift
        if byte < 0x80:
            value[0] = result
            return 0
        shift += 7
    return -1


cdef int decode_plain(const unsigned char* buffer, Py_ssize_t position, Py_ssize_t end, Head* head) noexcept:
    """Read a packet of known fields in their shortest tags. Returns -1 for every other, left to the Python codec."""
    cdef unsigned long long value = 0
    cdef unsigned char tag
    head.conn_id = 0
    head.code = 0
    head.window = 0
    head.data_start = head.data_end = position
    head.text_start = head.text_end = position
    while position < end:
        tag = buffer[position]
        position += 1
        if tag != 0x08 and tag != 0x1A and tag != 0x10 and tag != 0x22 and tag != 0x28:
            return -1
        if varint(buffer, &position, end, &value) < 0:
            return -1
        if tag == 0x08:
            head.conn_id = <long long>value
        elif tag == 0x10:
            head.code = <int><unsigned int>value  # protobuf keeps the low 32 bits of both
        elif tag == 0x28:
            head.window = <unsigned int>value
        elif value > <unsigned long long>(end - position):
            return -1
        elif tag == 0x1A:
            head.data_start = position
            head.data_end = position = position + <Py_ssize_t>value
        else:
            head.text_start = position
            head.text_end = position = position + <Py_ssize_t>value
    return 0


@cython.final
cdef class MessageReader(StreamReader):
    """One stream's way in: pieces of DATA frames to packets. See the Python twin."""

    def __init__(self, sink, *, window, max_message_bytes, account=None, ends=False):
        self.window = window
        self.limit = max_message_bytes
        self.account = account
        self.ends = ends
        self.packet = sink.packet
        self.credit = sink.credit
        self.bad_packet = sink.bad_packet
        self.message_refused = sink.message_refused

    @property
    def in_message(self):
        """Whether a message is unfinished, so that an end of the stream would cut it."""
        return self.prefix_size > 0 or self.want > 0

    @property
    def partial_bytes(self):
        """Bytes kept of a message that has not fully arrived."""
        return self.filled

    cpdef close(self):
        """Forget the unfinished message. From now on the sink gets nothing."""
        self.closed = True
        self.whole = None
        self.filled = 0
        self.uncharge()

    cdef int uncharge(self) except -1:
        cdef Py_ssize_t charged = self.charged
        self.charged = 0
        if charged:
            self.account.give_back(charged)
        return 0

    cdef int data(self, Received* received, Py_ssize_t start, Py_ssize_t end) except -1:
        """Take received[start:end], the next bytes of the stream. Raises WireError if gRPC's framing is broken."""
        cdef const unsigned char* source = received.octets
        cdef const unsigned char* prefix
        cdef Py_ssize_t take
        while start < end and not self.closed:
            if self.want:
                take = min(self.want, end - start)
                start += take
                if not self.passed_over and self.account is not None and take < self.want:
                    if not self.account.take(take):
                        self.give_up()
                        if self.closed:
                            return 0
                    else:
                        self.charged += take
                        if self.closed:  # by what the account had to end for it
                            return self.uncharge()
                if self.passed_over:
                    self.pass_over(source + start - take, take)
                else:
                    self.keep(source + start - take, take)
                continue
            if not self.prefix_size and end - start >= 5:
                prefix = source + start
                start += 5
            else:
                take = min(<Py_ssize_t>(5 - self.prefix_size), end - start)
                memcpy(self.prefix + self.prefix_size, source + start, take)
                self.prefix_size += <int>take
                start += take
                if self.prefix_size < 5:
                    return 0
                self.prefix_size = 0
                prefix = self.prefix
            if prefix[0]:
                raise message_rules.message_flags(prefix[0])
            self.length = (<long long>prefix[1] << 24 | <long long>prefix[2] << 16 | <long long>prefix[3] << 8
                           | <long long>prefix[4])
            if self.length > self.limit:
                if self.ends:
                    self.refuse(message_rules.message_refused(self.length, self.limit))
                    return 0
                self.want = self.length
                self.passed_over = True
                self.head_size = 0
            elif self.length <= end - start:
                take = self.length
                start += take
                self.deliver(received, start - take, start)
            else:
                self.want = self.length
        return 0

    cdef int keep(self, const unsigned char* source, Py_ssize_t size) except -1:
        """Take the next bytes of the message in hand, and deliver it when it is whole (I2)."""
        cdef Py_ssize_t room = 0 if self.whole is None else PyBytes_GET_SIZE(self.whole)
        cdef bytes whole
        cdef Received received
        if self.filled + size > room:
            # At most twice the received bytes: a peer that names a length has not sent it.
            room = min(self.length, max(FIRST_KEPT_BYTES, 2 * (self.filled + size)))
            whole = PyBytes_FromStringAndSize(NULL, room)
            if self.filled:
                memcpy(PyBytes_AS_STRING(whole), PyBytes_AS_STRING(self.whole), self.filled)
            self.whole = whole
        memcpy(PyBytes_AS_STRING(self.whole) + self.filled, source, size)
        self.filled += size
        self.want -= size
        if not self.want:
            whole = self.whole  # as large as the message: nobody else has seen it yet
            self.whole = None
            self.filled = 0
            self.uncharge()
            received = Received(<PyObject*>whole, octets(whole), self.length)
            self.deliver(&received, 0, self.length)
        return 0

    cpdef refuse(self, error):
        """Read nothing more of the stream, and give the sink the reason."""
        self.close()
        self.message_refused(error)

    cdef int give_up(self) except -1:
        """There is no room for the message in hand: pass it over."""
        if self.ends:
            self.refuse(message_rules.message_crowded(self.length))
            return 0
        self.head_size = <int>min(self.filled, <Py_ssize_t>LARGE_HEAD_BYTES)
        if self.head_size:
            memcpy(self.head, PyBytes_AS_STRING(self.whole), self.head_size)
        self.whole = None
        self.filled = 0
        self.passed_over = True
        self.uncharge()
        if self.head_size == LARGE_HEAD_BYTES:
            self.say_passed_over()
        return 0

    cdef int say_passed_over(self) except -1:
        head = PyBytes_FromStringAndSize(<char*>self.head, self.head_size)
        self.bad_packet(message_rules.message_passed_over(self.length, self.limit, head))
        return 0

    cdef int pass_over(self, const unsigned char* source, Py_ssize_t size) except -1:
        """Take the next bytes of a message that is not kept. Its head names its connection."""
        cdef int take
        self.want -= size
        if not self.want:
            self.passed_over = False
        if self.head_size < LARGE_HEAD_BYTES:
            take = <int>min(size, <Py_ssize_t>(LARGE_HEAD_BYTES - self.head_size))
            memcpy(self.head + self.head_size, source, take)
            self.head_size += take
            if self.head_size == LARGE_HEAD_BYTES or not self.want:
                self.say_passed_over()
        return 0

    cdef int deliver(self, Received* received, Py_ssize_t start, Py_ssize_t end) except -1:
        """Hand the sink the packet in received[start:end]."""
        cdef const unsigned char* source = received.octets
        cdef Py_ssize_t size
        cdef Head head
        cdef object text = ""
        if decode_plain(source, start, end, &head) == 0:
            if head.text_end > head.text_start:
                size = min(head.text_end - head.text_start, TEXT_BYTES)
                text = PyUnicode_DecodeUTF8(<const char*>source + head.text_start, size, "replace")
        else:
            try:
                head.conn_id, head.code, head.data_start, head.data_end, text, head.window = decode_any_packet(
                    <object>received.owner, start, end)
            except PacketError as error:
                self.bad_packet(error)
                return 0
        if head.code == WINDOW:
            self.credit(head.conn_id, head.window)
            return 0
        size = head.data_end - head.data_start
        if size * 4 >= received.kept_bytes and size > VIEW_BYTES:  # I3
            data = framing_view(<object>received.owner, head.data_start, head.data_end)
        else:
            data = PyBytes_FromStringAndSize(<const char*>source + head.data_start, size)
        self.packet(head.conn_id, head.code, data, text)
        return 0


# ---------------------------------------------------------------- messages, out

cdef bytes joined(const char* head, Py_ssize_t head_size, list pieces, Py_ssize_t size):
    """head and the pieces, of `size` bytes together, in one."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, head_size + size)
    cdef char* target = PyBytes_AS_STRING(out)
    cdef Py_ssize_t position = head_size, length
    memcpy(target, head, head_size)
    for piece in pieces:
        length = copy_part(piece, 0, target + position, head_size + size - position)
        if length < len(piece):
            raise ValueError("the pieces are larger than their size")
        position += length
    if position != head_size + size:
        raise ValueError("the pieces are smaller than their size")
    return out


@cython.final
cdef class PacketWriter(FrameWriter):
    """One stream's way out. See the Python twin."""

    cpdef append_packet(self, bytes field, list pieces, Py_ssize_t size):
        """Queue a DATA packet. field: its connection's `data_field`. size: the bytes of all pieces together."""
        cdef unsigned char head[64]
        cdef Py_ssize_t position = 5 + PyBytes_GET_SIZE(field), length, left = size
        cdef bytes message
        if field is None or pieces is None:
            raise TypeError("field is bytes and pieces a list")
        if position > 50:
            raise ValueError("field is from data_field")
        memcpy(head + 5, PyBytes_AS_STRING(field), position - 5)
        while left >= 0x80:
            head[position] = <unsigned char>(left & 0x7F | 0x80)
            left >>= 7
            position += 1
        head[position] = <unsigned char>left
        position += 1
        length = position - 5 + size
        head[0] = 0
        head[1] = <unsigned char>(length >> 24 & 0xFF)
        head[2] = <unsigned char>(length >> 16 & 0xFF)
        head[3] = <unsigned char>(length >> 8 & 0xFF)
        head[4] = <unsigned char>(length & 0xFF)
        if size <= JOIN_BYTES:
            message = joined(<char*>head, position, pieces, size)
        elif len(pieces) * 1024 > size:  # crumbs
            message = joined(<char*>head, position, pieces, size)
        else:
            self.pieces.append(PyBytes_FromStringAndSize(<char*>head, position))
            self.pieces.extend(pieces)
            self.pending += position + size
            return
        self.pieces.append(message)
        self.pending += position + size
