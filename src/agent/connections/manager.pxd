# The types that `manager.py` has when it is compiled.
cimport cython

from agent.connections.agent_connection cimport AgentConnection


cdef class ConnManager:
    # the session, and what all sessions of an agent share
    cdef public object tunnel, limits, budget, counters
    cdef public object _loop
    cdef public bint _lost

    # ids: open, closed, and the reply to DATA for a closed one
    cdef public dict _open
    cdef public object _closed, _answered, _truncated

    # probes, and the drain
    cdef public object _prober, _listed
    cdef public object _changed, _drain_marks
    cdef public bint _leaving

    @cython.locals(connection=AgentConnection, size=Py_ssize_t)
    cpdef packet_received(self, conn_id, code, data, error_message)

    @cython.locals(connection=AgentConnection)
    cpdef AgentConnection _admit(self, conn_id, Py_ssize_t size)
