# cython: language_level=3, boundscheck=False, wraparound=False, nonecheck=False, initializedcheck=False
# cython: binding=False, embedsignature=False, freethreading_compatible=True
"""The compiled twin of `framing_py`, which explains the code. I1 to I6 are its invariants.

The same bytes make the same calls in the same order, with the same errors from `frames`.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.string cimport memcmp, memcpy

from ..errors import WireError
from . import frames

__all__ = ["FrameReader", "FrameWriter", "StreamReader", "frame"]

cdef int DATA = frames.DATA, HEADERS = frames.HEADERS, SETTINGS = frames.SETTINGS, PUSH_PROMISE = frames.PUSH_PROMISE
cdef int WINDOW_UPDATE = frames.WINDOW_UPDATE, CONTINUATION = frames.CONTINUATION
cdef int END_STREAM = frames.END_STREAM, ACK = frames.ACK, END_HEADERS = frames.END_HEADERS, PADDED = frames.PADDED
cdef bytes PREFACE = frames.PREFACE
cdef Py_ssize_t MAX_HEADER_BLOCK_BYTES = frames.MAX_HEADER_BLOCK_BYTES
cdef Py_ssize_t VIEW_BYTES = frames.VIEW_BYTES
cdef int SPENT_PIECES = 64                  # the most sent pieces kept in front of a writer's list


cdef inline unsigned int big_endian(const unsigned char* source) noexcept:
    """The lower 31 bits of four bytes."""
    return (<unsigned int>(source[0] & 0x7F) << 24 | <unsigned int>source[1] << 16 | <unsigned int>source[2] << 8
            | <unsigned int>source[3])


# ---------------------------------------------------------------- bytes, in

cdef class StreamReader:
    """Receives one stream's DATA. See the Python twin."""

    def __init__(self, sink, *, window):
        self.window = window
        self.manual_credit = True
        self.data_received = sink.data_received

    cpdef consumed(self, Py_ssize_t size_bytes):
        """Return the credit of bytes that the user has used. Raises ValueError for more than arrived."""
        if not 0 <= size_bytes <= self.unread:
            raise ValueError(f"{self.unread} bytes are unread, not {size_bytes}")
        self.unread -= size_bytes
        self.unreturned += size_bytes

    cpdef close(self):
        """Nothing goes to the sink from now on."""
        self.closed = True

    cdef int data(self, Received* received, Py_ssize_t start, Py_ssize_t end) except -1:
        """Take received[start:end], the next bytes of the stream. A subclass raises WireError to fail the stream."""
        cdef Py_ssize_t size = end - start
        if self.closed:
            return 0
        if size * 4 >= received.kept_bytes and size > VIEW_BYTES:  # I3
            data = framing_view(<object>received.owner, start, end)
        else:
            data = PyBytes_FromStringAndSize(<const char*>received.octets + start, size)
        self.data_received(data)
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
        """Take buffer[:size], the next received bytes, and keep none of them. They may change after the call."""
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

    @property
    def has_begun(self):
        """Whether a frame other than DATA, or a header block, has come in part."""
        return self.control is not None or self.block_stream != 0 or self.stash_size != 0

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
        if kind != HEADERS or not stream_id:  # the most frequent one has no further rule
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
        cdef StreamReader reader
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
        if reader.manual_credit:
            reader.unread += length
        else:
            reader.unreturned += length
        self.reader = reader
        if not length:
            self.data_done(reader)
        return 0

    cdef Py_ssize_t payload(self, Received* received, Py_ssize_t position, Py_ssize_t end) except -1:
        """Take the current frame's payload from received[position:end]. Returns the position behind it."""
        cdef StreamReader reader = self.reader
        cdef Py_ssize_t take
        if self.padding < 0:
            self.padding = received.octets[position]
            position += 1
            self.left -= 1
            if self.padding > self.left:
                raise frames.padding_too_long(self.padding, self.left)
            if reader is not None and reader.manual_credit:  # no user sees padding
                reader.unread -= self.padding + 1
                reader.unreturned += self.padding + 1
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

    cdef int data_done(self, StreamReader reader) except -1:
        """The DATA frame in hand is whole."""
        if self.flags & END_STREAM and not reader.closed and not reader.ended:
            reader.ended = True
            self.handler.data_ended(self.stream_id)
        return 0

    cdef int fail_stream(self, StreamReader reader, object error) except -1:
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


cpdef bytes frame(int kind, int flags, unsigned int stream_id, bytes payload=b""):
    """One HTTP/2 frame, header and payload."""
    cdef Py_ssize_t size = len(payload)
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, 9 + size)
    cdef unsigned char* header = <unsigned char*>PyBytes_AS_STRING(whole)
    put_header(header, size, kind, flags, stream_id)
    memcpy(header + 9, octets(payload), size)
    return whole


cdef int put_header(unsigned char* header, Py_ssize_t size, int kind, int flags, unsigned int stream_id) noexcept:
    header[0] = <unsigned char>(size >> 16 & 0xFF)
    header[1] = <unsigned char>(size >> 8 & 0xFF)
    header[2] = <unsigned char>(size & 0xFF)
    header[3] = <unsigned char>kind
    header[4] = <unsigned char>flags
    header[5] = <unsigned char>(stream_id >> 24)
    header[6] = <unsigned char>(stream_id >> 16 & 0xFF)
    header[7] = <unsigned char>(stream_id >> 8 & 0xFF)
    header[8] = <unsigned char>(stream_id & 0xFF)
    return 0


include "_framing_out_c.pxi"
