# The types that `stream.py` has when it is compiled: C fields where nobody outside looks.
cimport cython

from agent.http2.framing_c cimport FrameWriter as Writer, StreamReader as Reader

cdef long long _PUMP_BYTES, _JOIN_BYTES, _UNSENT_BYTES, _LEAST_ROOM_BYTES, _MAX_WINDOW


@cython.final
cdef class Http2Stream:
    cdef readonly object connection
    cdef readonly Sender sender
    cdef readonly unsigned int id
    cdef public object user
    # in
    cdef public Reader reader
    cdef public bint head_received
    cdef public bint remote_ended
    # out
    cdef readonly Writer writer
    cdef public long long window
    cdef public bint queued
    cdef public bint finishing
    cdef public object trailers
    cdef public bint local_ended
    cdef public bint gone
    cdef public bint responded
    cdef public bint stops_peer

    cpdef wake(self)


@cython.final
cdef class Sender:
    # the peer's limits
    cdef public long long window
    cdef readonly long long initial_window
    cdef long long _frame_bytes
    # whom it writes to, and by whose turns
    cdef object _transport
    cdef readonly object loop
    cdef object _round
    cdef readonly long long sent_bytes
    # whether it may write now
    cdef public bint corked
    cdef bint _due
    cdef readonly bint is_paused
    # the control plane
    cdef public bint answering
    cdef object _flush
    cdef object _finish

    cpdef wake(self, Http2Stream stream)
    cpdef charge(self, Http2Stream stream, long long size_bytes)
    cpdef uncork(self)
    cpdef credit(self, long long increment)
    cdef _schedule(self)

    @cython.locals(budget="long long", stream=Http2Stream, writer=Writer, room="long long", more="bint",
                   sent="long long", pieces=list, joined=bytes)
    cpdef _pump(self)
