# The types that `flow.py` has when it is compiled: C fields where nobody outside looks.
cimport cython

from agent.tunnel.coalescing cimport ReceiveCoalescing
from agent.tunnel.framing_c cimport FrameReader as Reader, FrameWriter as Writer, MessageReader as Messages
from agent.tunnel.receiving cimport ReceiveBuffer, ReceivePool
from agent.tunnel.scheduler cimport Scheduler as Queue

cdef long long _PUMP_BYTES, _JOIN_BYTES, _UNREAD_ANSWER_BYTES, _HIGH_BYTES, _LEAST_ROOM_BYTES, _COPIED_BYTES
cdef long long _MAX_WINDOW


@cython.final
cdef class Http2Stream:
    cdef readonly ConnectionFlow connection
    cdef readonly unsigned int id
    cdef public object user
    cdef public long long window
    cdef readonly Writer writer
    cdef public Messages reader
    cdef public object trailers
    cdef public bint answered
    cdef public bint remote_ended
    cdef public bint local_ended
    cdef public bint finishing
    cdef public bint gone
    cdef public bint queued

    cpdef wake(self)


@cython.final
cdef class Sender:
    cdef public long long window
    cdef readonly long long initial_window
    cdef readonly long long sent_bytes
    cdef public bint corked
    cdef public bint answering
    cdef object _flush
    cdef object _finish
    cdef object _transport
    cdef readonly object loop
    cdef object _round
    cdef long long _frame_bytes
    cdef bint _due
    cdef bint _paused

    cpdef wake(self, Http2Stream stream)
    cpdef uncork(self)
    cpdef credit(self, long long increment)
    cdef _schedule(self)

    @cython.locals(budget="long long", stream=Http2Stream, writer=Writer, room="long long", more="bint",
                   sent="long long", pieces=list, joined=bytes)
    cpdef _pump(self)


cdef class ConnectionFlow:
    cdef readonly Sender sender
    cdef readonly dict streams
    cdef public bint closing
    cdef readonly bint heard
    cdef public double heard_s
    cdef readonly long long _window_bytes
    cdef readonly Reader _frames
    cdef public object _transport
    cdef ReceivePool _buffers
    cdef ReceiveBuffer _buffer
    cdef public ReceiveCoalescing _coalescing
    cdef readonly long long _turn_bytes

    @cython.locals(buffer=ReceiveBuffer)
    cpdef get_buffer(self, sizehint)

    @cython.locals(buffer=ReceiveBuffer)
    cpdef buffer_updated(self, Py_ssize_t nbytes)
    cpdef window_update(self, unsigned int stream_id, long long increment)

    @cython.locals(stream=Http2Stream, waited="bint")
    cdef _credited(self, unsigned int stream_id, long long increment)

    @cython.locals(reader=Messages, frames=Reader)
    cdef _return_credit(self)


cdef class TunnelFlow:
    cdef public frozenset features
    cdef readonly long long packets_received
    cdef readonly long long packets_sent
    cdef public object unknown_packets
    cdef public object receiver
    cdef public object _afterwards
    cdef readonly Queue _scheduler
    cdef public Http2Stream _stream

    @cython.locals(number="long long", kind="long long")
    cpdef packet(self, conn_id, code, data, error_message)
    cpdef bint fill(self, Writer writer) except -1
    cpdef _wake(self)
