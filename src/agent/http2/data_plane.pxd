# The types that `data_plane.py` has when it is compiled: C fields where nobody outside looks.
cimport cython

from agent.http2.coalescing cimport ReceiveCoalescing
from agent.http2.framing_c cimport FrameReader as Frames, StreamReader as Reader
from agent.http2.receiving cimport ReceiveBuffer, ReceivePool
from agent.http2.stream cimport Http2Stream as Stream, Sender as Out

cdef long long _COPIED_BYTES, _UNREAD_ANSWER_BYTES, _RECEIVE_TURN_BYTES, _MAX_WINDOW


cdef class DataPlane:
    cdef object _control
    cdef public object _transport
    cdef public bint closing
    # in: where bytes are received, and what cuts them
    cdef ReceivePool _buffers
    cdef ReceiveBuffer _buffer
    cdef readonly Frames _frames
    cdef readonly long long _window_bytes
    cdef readonly dict streams
    # in: when
    cdef readonly bint heard
    cdef public double heard_s
    cdef public ReceiveCoalescing _coalescing
    cdef readonly long long _turn_bytes
    cdef object _input_ended
    # out
    cdef readonly Out sender

    @cython.locals(buffer=ReceiveBuffer)
    cpdef get_buffer(self, sizehint)

    cpdef receive(self, bytes data)

    @cython.locals(buffer=ReceiveBuffer)
    cpdef buffer_updated(self, Py_ssize_t nbytes)
    cpdef window_update(self, unsigned int stream_id, long long increment)

    @cython.locals(stream=Stream, waited="bint")
    cdef _credited(self, unsigned int stream_id, long long increment)

    @cython.locals(reader=Reader)
    cpdef return_credit_of(self, Stream stream)

    @cython.locals(size="long long")
    cdef bytes _credit_for(self, unsigned int stream_id, Reader reader)

    @cython.locals(reader=Reader, frames=Frames)
    cdef _return_credit(self)
