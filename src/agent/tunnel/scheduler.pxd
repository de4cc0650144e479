# The types that `scheduler.py` has when it is compiled: C fields where nobody outside looks.
cimport cython

from agent.tunnel.messages_c cimport PacketWriter as Writer

# where an outbound is: `Outbound._place`
cdef int _IDLE, _STARTING, _GOING_ON, _PARKED, _HELD
# bounds of a packet and of a queue, and of batching
cdef long long _UNLIMITED_BYTES, _CROWDED_BYTES, _UNCROWDED_BYTES
cdef long long _FREE_PACKETS, _MOST_PACKETS
cdef double _PACKET_S, _TICK_S, _HELD_S, _SLOW_TICK_S


@cython.final
cdef class Outbound:
    # the connection, and the encoded field that begins each of its packets
    cdef readonly long long conn_id
    cdef bytes _field
    # what waits, in bytes, and how much of it the hub's window lets through
    cdef readonly object _items
    cdef public long long queued_bytes
    cdef public long long credit_bytes
    # the source: whether it has finished, whether it was paused, and the calls that pause and resume it
    cdef public bint finished
    cdef public bint paused
    cdef public object pause
    cdef public object resume
    # its place in the scheduler's lists
    cdef Scheduler _scheduler
    cdef int _place
    # batching: packets sent that were not whole, since when, and what was seen at the last tick
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
    # bounds in bytes: of a new connection's credit, of a packet among others and alone, of each queue
    cdef public object initial_credit_bytes
    cdef public long long shared_packet_bytes
    cdef long long _alone_bytes
    cdef public long long high_water_bytes
    # what waits: control packets first, then the outbounds
    cdef readonly bint closed
    cdef object _messages
    cdef readonly long long control_bytes
    cdef readonly long long queued_bytes
    cdef readonly dict outbounds
    # whose packet goes next, and by how much those that begin are ahead
    cdef readonly object _starting
    cdef readonly object _going_on
    cdef readonly long long _ahead_bytes
    cdef readonly Py_ssize_t _backlogged
    # the session's sender
    cdef object _wake
    # batching: outbounds that wait for a whole packet, and the timer that looks at them
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
