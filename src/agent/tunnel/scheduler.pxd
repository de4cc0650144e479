# The types that `scheduler.py` has when it is compiled: C fields where nobody outside looks.
cimport cython

from agent.tunnel.messages_c cimport PacketWriter as Writer

cdef int _IDLE, _STARTING, _GOING_ON, _PARKED, _HELD
cdef long long _UNLIMITED_BYTES, _CROWDED_BYTES, _UNCROWDED_BYTES
cdef long long _FREE_PACKETS, _MOST_PACKETS
cdef double _PACKET_S, _TICK_S, _HELD_S, _SLOW_TICK_S


@cython.final
cdef class Outbound:
    cdef readonly long long conn_id
    cdef public long long credit_bytes
    cdef public long long queued_bytes
    cdef public bint finished
    cdef public bint paused
    cdef public object pause
    cdef public object resume
    cdef readonly object _items
    cdef Scheduler _scheduler
    cdef bytes _field
    cdef int _place
    # batching
    cdef public long long packets
    cdef double _counted_s, _held_s
    cdef long long _seen_bytes
    cdef bint _released, _watched

    cpdef heard(self)

    @cython.locals(size="long long")
    cpdef write(self, data)
    cdef _control(self, bytes message)
    cdef bint _lacks_credit(self) except -1

    @cython.locals(size="long long", pieces=list, room="long long", length="long long")
    cdef _take(self, Writer writer, long long limit)


@cython.final
cdef class Scheduler:
    cdef public object initial_credit_bytes
    cdef public long long shared_packet_bytes
    cdef public long long high_water_bytes
    cdef readonly bint closed
    cdef readonly long long queued_bytes
    cdef readonly long long control_bytes
    cdef readonly dict outbounds
    cdef readonly object _starting
    cdef readonly object _going_on
    cdef readonly long long _ahead_bytes
    cdef readonly Py_ssize_t _backlogged
    cdef object _wake
    cdef object _messages
    cdef long long _alone_bytes
    # batching
    cdef readonly list _held
    cdef object _timers
    cdef object _tick
    cdef long long _batch_bytes

    @cython.locals(own=Outbound)
    cpdef send(self, long long conn_id, long long code, bytes data=*, str error_message=*)

    @cython.locals(outbound=Outbound)
    cpdef bint take_credit(self, long long conn_id, long long increment_bytes) except -1

    @cython.locals(outbound=Outbound)
    cpdef drop(self, long long conn_id)
    cdef _say(self, bytes message)

    @cython.locals(outbound=Outbound, before="long long", taken="long long", most="long long", begins="bint")
    cpdef bint fill(self, Writer writer) except -1
    cdef _grown(self, Outbound outbound, long long size)
    cdef _drop(self, Outbound outbound)
    cdef _forget(self, Outbound outbound)
    cdef Py_ssize_t _mark(self) except -1
    cdef Py_ssize_t _low_mark(self) except -1
    cdef bint _gathers(self, Outbound outbound) except -1
    cdef _count(self, Outbound outbound)

    @cython.locals(more="long long")
    cdef _give_back(self, Outbound outbound)
    cdef _hold(self, Outbound outbound)
    cdef _release(self, Outbound outbound)
    cdef _start_tick(self, double delay_s)
    cdef _cancel_tick(self)

    @cython.locals(outbound=Outbound, held=list, now_s="double", delay_s="double", quiet="bint")
    cpdef _on_tick(self)

    @cython.locals(outbound=Outbound, held=list)
    cpdef stop_batching(self)
