# The types that `_streams.py` has when it is compiled: C fields, which nobody outside sees.
cimport cython

# states of an Arrival, bounds in bytes, and a bound in steps
cdef int FRESH, WAITING, WOKEN, SPENT, CANCELLED
cdef Py_ssize_t SMALL_BYTES, JOINED_BYTES, STEPS_IN_A_ROW


@cython.final
cdef class Arrival:
    # a Task's side: its handshake, its wakeup and that one's context
    cdef public bint _asyncio_future_blocking
    cdef object _loop
    cdef object _callback
    cdef object _context
    # what the waiting read gets
    cdef int _state
    cdef object _error
    cdef object _message

    cdef void wake(self, object error, bint now) except *


@cython.final
cdef class PipeReader:
    cdef object __weakref__
    cdef object _loop
    cdef object _transport
    # what waits to be read: pieces, bytes of the first that were taken, bytes of all
    cdef object _pieces
    cdef Py_ssize_t _start
    cdef Py_ssize_t _length
    # the longest line in bytes. Past twice that, reading is paused
    cdef Py_ssize_t _limit
    cdef bint _paused
    # the end
    cdef bint _eof
    cdef bint _lost
    cdef object _error
    # the read that waits, one to use again, and steps of tasks taken within a turn
    cdef Arrival _waiter
    cdef Arrival _spare
    cdef Py_ssize_t _steps
    cdef bint _in_turn
    # the writer's futures: of `drain` and of `wait_closed`
    cdef bint _writing_paused
    cdef list _drainers
    cdef list _farewells

    cdef void _wake(self, object error) except *
    cdef Arrival _more(self, str name)
    cdef void _took(self, Py_ssize_t n) except *
    cdef bytes _at_hand(self, bytes separator)
    cdef bytes _take(self, Py_ssize_t n)
    cdef Py_ssize_t _fill(self, view) except -1
    cdef void _drop(self, Py_ssize_t n) except *
    cdef tuple _find(self, list separators, Py_ssize_t searched)


@cython.final
cdef class PipeWriter:
    cdef object __weakref__
    cdef object _transport
    cdef PipeReader _reader     # the protocol of the same end, which gets pause_writing and connection_lost
