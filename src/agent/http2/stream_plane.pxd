# The types that `stream_plane.py` has when it is compiled: C fields where nobody outside looks.
cimport cython

from agent.http2.control_frame_limiter cimport ControlFrameLimiter as Limiter
from agent.http2.data_plane cimport DataPlane
from agent.http2.framing_c cimport frame
from agent.http2.header_blocks_c cimport BlockDecoder as Decoder, BlockEncoder as Encoder
from agent.http2.head_rules cimport fault_of
from agent.http2.stream cimport Http2Stream as Stream, Sender as Out

cdef int _DATA, _HEADERS, _CONTINUATION, _RST_STREAM, _PRIORITY, _END_STREAM, _END_HEADERS
cdef Py_ssize_t _FRAGMENT_BYTES


cdef class StreamPlane(DataPlane):
    # whose streams they are
    cdef readonly bint client
    cdef public object user
    cdef object _owner
    cdef object _make_reader
    cdef object _make_writer
    # how many there may be
    cdef public bint draining
    cdef public long long peer_streams
    cdef Py_ssize_t _max_streams
    cdef public Limiter _limiter
    cdef public bint _settings_acked
    # heads
    cdef readonly Encoder _encoder
    cdef readonly Decoder _decoder
    cdef object _request_kind
    cdef list _block
    cdef int _block_flags
    cdef list _sound
    cdef object _sound_kind
    # closed and idle streams
    cdef readonly unsigned int _last_id
    cdef dict _resets

    cdef bint _is_idle(self, unsigned int stream_id) noexcept

    @cython.locals(fragment=bytes, block=list)
    cpdef control_frame(self, int kind, int flags, unsigned int stream_id, bytes whole)

    @cython.locals(stream=Stream, fields=list, ended="bint")
    cdef _head(self, unsigned int stream_id, int flags, bytes block)
    cdef _closed_head(self, unsigned int stream_id, bint ended)

    @cython.locals(stream=Stream)
    cdef _request(self, unsigned int stream_id, list fields, bint ended)

    @cython.locals(is_final="bint")
    cdef _response(self, Stream stream, list fields, bint ended)
    cdef _trailers(self, Stream stream, list fields, bint ended)
    cdef str _fault(self, list fields, kind)
    cdef _malformed(self, Stream stream, kind, fault)

    @cython.locals(stream=Stream)
    cdef _reset_by_peer(self, unsigned int stream_id, code)

    @cython.locals(stream=Stream)
    cpdef data_ended(self, unsigned int stream_id)

    @cython.locals(stream=Stream)
    cpdef stray_data(self, unsigned int stream_id)

    @cython.locals(stream=Stream)
    cpdef stream_error(self, unsigned int stream_id, error)
    cpdef send_headers(self, Stream stream, list headers, bint end_stream)

    @cython.locals(size=Py_ssize_t, head=bytes, sender=Out)
    cpdef bint send_whole(self, Stream stream, list headers, bytes body) except -1
    cpdef finish(self, Stream stream)
    cpdef reset(self, Stream stream, code)
    cdef _give_up(self, Stream stream, code)
    cpdef take_back(self, Stream stream)

    @cython.locals(flags="int")
    cdef _send_head(self, unsigned int stream_id, list fields, bint ended)

    @cython.locals(start=Py_ssize_t, last="int")
    cdef bytes _head_frames(self, unsigned int stream_id, bytes block, int flags)
    cpdef _send(self, bytes data)

    @cython.locals(stream=Stream)
    cdef Stream _add_stream(self, unsigned int stream_id)
    cdef _read(self, Stream stream)
    cdef _ended_remotely(self, Stream stream, bint ended)
    cdef _ended_locally(self, Stream stream)
    cdef _remember_reset(self, unsigned int stream_id)
    cdef _forget(self, Stream stream)
