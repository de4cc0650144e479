# cython: language_level=3, boundscheck=False, wraparound=False, nonecheck=False, initializedcheck=False
# cython: binding=False, embedsignature=False, freethreading_compatible=True
"""The fast twin of `framing_py`, which explains what happens here and why; the names I1 to I6 are its invariants.

The same bytes make the same calls in the same order, with the same errors: those stand in `frames` and `packet`, for
both. A packet that isn't plain (a field not known, a mistake) is read by `packet.decode_packet`. What differs is how an
unfinished message is kept: in one place, made as large as the message in few steps, so it is copied once.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcmp, memcpy

from ..errors import WireError
from . import frames
from .packet import MAX_TEXT_BYTES, ControlCode, PacketError, decode_packet as decode_any_packet

cdef extern from *:
    """
    /* bytes[start:end] and memoryview[start:end] without the slice's numbers on the way twice */
    static CYTHON_INLINE PyObject *framing_view(PyObject *whole, Py_ssize_t start, Py_ssize_t end) {
        PyObject *view = PyMemoryView_FromObject(whole), *part;
        if (view == NULL) return NULL;
        part = PySequence_GetSlice(view, start, end);
        Py_DECREF(view);
        return part;
    }
    """
    object framing_view(object whole, Py_ssize_t start, Py_ssize_t end)

__all__ = ["FrameReader", "FrameWriter", "MessageReader"]

cdef int DATA = frames.DATA, HEADERS = frames.HEADERS, SETTINGS = frames.SETTINGS, PUSH_PROMISE = frames.PUSH_PROMISE
cdef int WINDOW_UPDATE = frames.WINDOW_UPDATE, CONTINUATION = frames.CONTINUATION
cdef int END_STREAM = frames.END_STREAM, ACK = frames.ACK, END_HEADERS = frames.END_HEADERS, PADDED = frames.PADDED
cdef int WINDOW = ControlCode.WINDOW
cdef bytes PREFACE = frames.PREFACE
cdef Py_ssize_t MAX_HEADER_BLOCK_BYTES = frames.MAX_HEADER_BLOCK_BYTES
cdef Py_ssize_t VIEW_BYTES = frames.VIEW_BYTES, JOIN_BYTES = frames.JOIN_BYTES
cdef Py_ssize_t TEXT_BYTES = MAX_TEXT_BYTES
cdef int LARGE_HEAD_BYTES = frames.LARGE_HEAD_BYTES
cdef Py_ssize_t FIRST_KEPT_BYTES = 2 ** 20  # set aside for a message before more than its length has come
cdef int SPENT_PIECES = 64                  # that may stand in front of a writer's list


cdef inline const unsigned char* octets(bytes buffer) noexcept:
    return <const unsigned char*>PyBytes_AS_STRING(buffer)


cdef inline unsigned int big_endian(const unsigned char* source) noexcept:
    """The lower 31 bits of four bytes."""
    return (<unsigned int>(source[0] & 0x7F) << 24 | <unsigned int>source[1] << 16 | <unsigned int>source[2] << 8
            | <unsigned int>source[3])


# ---------------------------------------------------------------- packets

cdef inline int varint(const unsigned char* buffer, Py_ssize_t* position, Py_ssize_t end,
                       unsigned long long* value) noexcept:
    """The varint at `position`, which moves behind it; -1 for one that is cut or has more than 64 bits."""
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
    """Read a packet of known fields in their shortest tags; -1 for every other, which the Python codec judges."""
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
cdef class MessageReader:
    """One stream's way in: pieces of DATA frames to packets. See the Python twin."""

    def __init__(self, sink, *, window, max_message_bytes, account=None, ends=False):
        self.window = window
        self.limit = max_message_bytes
        self.account = account
        self.ends = ends
        self.packet = sink.packet
        self.credit = sink.credit
        self.bad_packet = sink.bad_packet

    @property
    def in_message(self):
        """Whether a message has begun and not ended: the end of the stream now would cut it."""
        return self.prefix_size > 0 or self.want > 0

    @property
    def partial_bytes(self):
        """Bytes kept of a message that has not fully arrived."""
        return self.filled

    def close(self):
        """Forget the unfinished message; nothing goes to the sink from now on."""
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
        """Take received[start:end], the next bytes of the stream. Raises WireError where gRPC's framing is broken."""
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
                raise frames.message_flags(prefix[0])
            self.length = (<long long>prefix[1] << 24 | <long long>prefix[2] << 16 | <long long>prefix[3] << 8
                           | <long long>prefix[4])
            if self.length > self.limit:
                if self.ends:
                    raise frames.message_refused(self.length, self.limit)
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
            # What has come, at most doubled: a peer that names a length has not sent it.
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

    cdef int give_up(self) except -1:
        """There is no room for the message in hand: pass it over."""
        if self.ends:
            raise frames.message_crowded(self.length)
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
        self.bad_packet(frames.message_passed_over(self.length, self.limit, head))
        return 0

    cdef int pass_over(self, const unsigned char* source, Py_ssize_t size) except -1:
        """Take the next bytes of a message that is not kept; its head says whose it was."""
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


# ---------------------------------------------------------------- frames, in

@cython.final
cdef class FrameReader:
    """The connection's way in. See the Python twin."""

    def __init__(self, handler, *, expect_preface):
        self.streams = {}
        self.window = frames.DEFAULT_WINDOW
        self.max_frame_size = frames.MIN_MAX_FRAME_SIZE
        self.handler = handler
        self.preface = PREFACE if expect_preface else b""

    cpdef feed(self, data, Py_ssize_t kept_bytes=0):
        """Take the next bytes received. Raises WireError where the connection is beyond repair."""
        cdef Py_buffer view
        cdef Received received
        if PyBytes_CheckExact(data):
            received = Received(<PyObject*>data, octets(data), max(kept_bytes, PyBytes_GET_SIZE(data)))
            self.take(&received, PyBytes_GET_SIZE(data))
            return
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            received = Received(<PyObject*>data, <const unsigned char*>view.buf, max(kept_bytes, view.len))
            self.take(&received, view.len)
        finally:
            PyBuffer_Release(&view)

    cpdef feed_part(self, buffer, Py_ssize_t size):
        """Take buffer[:size], the next bytes received, of which nothing is kept: they may change after the call."""
        cdef Py_buffer view
        cdef Received received
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            if not 0 <= size <= view.len:
                raise ValueError(f"the buffer has {view.len} bytes, not {size}")
            received = Received(<PyObject*>buffer, <const unsigned char*>view.buf, PY_SSIZE_T_MAX)  # I3: no views
            self.take(&received, size)
        finally:
            PyBuffer_Release(&view)

    cdef int take(self, Received* received, Py_ssize_t end) except -1:
        cdef const unsigned char* source = received.octets
        cdef Py_ssize_t position = 0, take
        if PyBytes_GET_SIZE(self.preface):
            position = min(PyBytes_GET_SIZE(self.preface), end)
            if memcmp(source, octets(self.preface), position):
                raise frames.no_preface()
            self.preface = self.preface[position:]
        while position < end and not self.stopped:
            if self.left:
                if self.control is None:
                    position = self.payload(received, position, end)
                    continue
                take = min(self.left, end - position)
                memcpy(PyBytes_AS_STRING(self.control) + self.control_filled, source + position, take)
                self.control_filled += take
                self.left -= take
                position += take
                if not self.left:
                    self.control_done()
                continue
            if not self.stash_size and end - position >= 9:
                if (end - position >= 13 and source[position + 3] == WINDOW_UPDATE and self.settings_seen
                        and not self.block_stream and not source[position] and not source[position + 1]
                        and source[position + 2] == 4):  # the most frequent frame besides DATA: not collected first
                    position += 13
                    self.credited(source + position - 13)
                    continue
                position += 9
                self.begin(source + position - 9)
            else:
                take = min(<Py_ssize_t>(9 - self.stash_size), end - position)
                memcpy(self.stash + self.stash_size, source + position, take)
                self.stash_size += <int>take
                position += take
                if self.stash_size < 9:
                    break
                self.stash_size = 0
                self.begin(self.stash)
        return 0

    def stop(self):
        """Look at no further byte, whatever is fed (I6), and forget unfinished frames and messages."""
        self.stopped = True
        for reader in self.streams.values():
            reader.close()

    cdef int begin(self, const unsigned char* header) except -1:
        """Check a frame's header, and choose where its payload goes."""
        cdef Py_ssize_t length = <Py_ssize_t>header[0] << 16 | <Py_ssize_t>header[1] << 8 | <Py_ssize_t>header[2]
        cdef int kind = header[3], flags = header[4]
        cdef unsigned int stream_id = big_endian(header + 5)
        if not self.settings_seen:
            if kind != SETTINGS or flags & ACK:
                raise frames.no_settings(kind)
            self.settings_seen = True
        if length > self.max_frame_size:
            raise frames.frame_too_large(kind, length, self.max_frame_size)
        if self.block_stream and (kind != CONTINUATION or stream_id != self.block_stream):
            raise frames.inside_header_block(kind, self.block_stream)  # I5
        self.left = length
        self.stream_id = stream_id
        self.flags = flags
        self.control = None
        self.reader = None
        self.padding = 0
        if kind == DATA:
            return self.begin_data(length)
        if kind > CONTINUATION:  # types not known are ignored (section 5.5)
            return 0
        if kind == HEADERS or kind == PUSH_PROMISE or kind == CONTINUATION:
            if kind == CONTINUATION:
                if not self.block_stream:
                    raise frames.stray_continuation()
                self.block_bytes += length
            else:
                self.block_bytes = length
            if self.block_bytes > MAX_HEADER_BLOCK_BYTES:
                raise frames.header_block_too_large()
            self.block_stream = 0 if flags & END_HEADERS else stream_id
        frames.check_control(kind, flags, stream_id, length)
        self.control = PyBytes_FromStringAndSize(NULL, 9 + length)
        memcpy(PyBytes_AS_STRING(self.control), header, 5)
        PyBytes_AS_STRING(self.control)[5] = <char>(header[5] & 0x7F)
        memcpy(PyBytes_AS_STRING(self.control) + 6, header + 6, 3)
        self.control_filled = 9
        if not length:
            self.control_done()
        return 0

    cdef int begin_data(self, Py_ssize_t length) except -1:
        """A DATA frame's header: the windows are charged with all of it (I4)."""
        cdef MessageReader reader
        if not self.stream_id:
            raise frames.data_on_stream_0()
        if length > self.window:
            raise frames.beyond_connection_window(length, self.window)
        self.window -= length
        self.unreturned += length
        if self.flags & PADDED:
            if not length:
                raise frames.no_pad_length()
            self.padding = -1
        reader = self.streams.get(self.stream_id)
        if reader is None or reader.ended or reader.closed:
            self.handler.stray_data(self.stream_id)
            return 0
        if length > reader.window:
            return self.fail_stream(reader, frames.beyond_stream_window(length, reader.window, self.stream_id))
        reader.window -= length
        reader.unreturned += length
        self.reader = reader
        if not length:
            self.data_done(reader)
        return 0

    cdef Py_ssize_t payload(self, Received* received, Py_ssize_t position, Py_ssize_t end) except -1:
        """Take what received[position:end] has of the frame in hand's payload; the position behind it."""
        cdef MessageReader reader = self.reader
        cdef Py_ssize_t take
        if self.padding < 0:
            self.padding = received.octets[position]
            position += 1
            self.left -= 1
            if self.padding > self.left:
                raise frames.padding_too_long(self.padding, self.left)
        elif reader is not None and self.left > self.padding:
            take = min(self.left - self.padding, end - position)
            self.left -= take
            try:
                reader.data(received, position, position + take)
            except WireError as error:
                self.fail_stream(reader, error)
            position += take
        else:
            take = min(self.left, end - position)
            self.left -= take
            position += take
        if not self.left and reader is not None:
            self.data_done(reader)
        return position

    cdef int data_done(self, MessageReader reader) except -1:
        """The DATA frame in hand is whole."""
        if self.flags & END_STREAM and not reader.closed and not reader.ended:
            reader.ended = True
            self.handler.data_ended(self.stream_id)
        return 0

    cdef int fail_stream(self, MessageReader reader, object error) except -1:
        reader.close()
        self.reader = None
        self.handler.stream_error(self.stream_id, error)
        return 0

    cdef int control_done(self) except -1:
        """The control frame in hand is whole."""
        cdef bytes whole = self.control
        cdef const unsigned char* source = octets(whole)
        self.control = None
        if source[3] != WINDOW_UPDATE:
            self.handler.control_frame(source[3], self.flags, self.stream_id, whole)
            return 0
        return self.credited(source)

    cdef int credited(self, const unsigned char* whole) except -1:
        """A WINDOW_UPDATE frame of 13 bytes."""
        cdef unsigned int stream_id = big_endian(whole + 5), increment = big_endian(whole + 9)
        self.handler.window_update(stream_id, increment)
        return 0


include "_framing_out_c.pxi"
