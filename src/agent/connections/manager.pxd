# The types that `manager.py` has when it is compiled.
cimport cython

from agent.connections.connection cimport Connection


cdef class ConnManager:
    cdef public object tunnel, limits, budget, counters
    cdef public object _closed
    cdef public object _loop, _answered, _truncated, _tick, _changed, _drain_marks
    cdef public dict _open
    cdef public dict _listed
    cdef public bint _lost, _leaving

    @cython.locals(connection=Connection, size=Py_ssize_t)
    cpdef packet_received(self, conn_id, code, data, error_message)

    @cython.locals(connection=Connection)
    cpdef Connection _admit(self, conn_id, Py_ssize_t size)
