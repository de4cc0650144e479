# The types that `agent_connection.py` has when it is compiled.
from agent.connections.connection cimport TunnelConnection

cdef object OPEN, ENDING, FAILING, CLOSED


cdef class AgentConnection(TunnelConnection):
    # how it ended
    cdef public object outcome
    cdef public bint strayed
    cdef public bint _owes_answer

    # the manager, and the timer while the proxy owes an outcome
    cdef public object _owner, _outcome_deadline

    cpdef _end(self, ending)
    cpdef _ending_of(self, outcome)
    cpdef _ending_when_aborted(self, stage)
