# The types that `server.py` has when it is compiled.
cimport cython

from agent.proxy.clock cimport Stall
from agent.proxy.heads cimport Request
from agent.proxy.readers cimport BodyReader, RequestHeadReader
from agent.proxy.relay cimport Exchange

cdef object HEAD, BODY, WAITING, DRAINING, UPGRADED, LINGERING, CLOSED
cdef double NEVER, SILENCE_S
cdef int HEADS_PER_TURN


@cython.final
cdef class ClientConnection:
    cdef public object proxy
    cdef public object conn_id
    cdef public object carrier
    cdef public object metrics
    cdef public bint writing_paused, advancing, may_have_left
    cdef public long long requests_left
    cdef public object _outcome
    cdef public object _transport
    cdef public object _input
    cdef public RequestHeadReader _heads
    cdef public Request _last
    cdef public bytes _last_head, _last_target
    cdef public BodyReader _body
    cdef public object _backlog
    cdef public Exchange _exchange
    cdef public object _upgraded
    cdef public long long _drain_left
    cdef public double _deadline
    cdef public bint _is_tls, _is_base_hubs, _backlog_paused, _exchange_paused, _half_closed, _closing, _served
    cdef public bint _yielded, _in_hand, _ends_by_closing, _explained, _silent
    cdef public Stall _stall

    @cython.locals(exchange=Exchange, heads=int)
    cpdef data_received(self, data)
    cpdef bint eof_received(self)
    cpdef _hold_back(self, data)
    cpdef _go_on(self)
    cpdef target_moves(self)

    @cython.locals(heads=RequestHeadReader, begun=bint)
    cpdef _take_head(self, data)

    @cython.locals(exchange=Exchange)
    cpdef _begin(self, Request request, bytes target)

    @cython.locals(exchange=Exchange, body=BodyReader, pieces=list, ended=bint)
    cpdef _take_body(self, data)
    cpdef _refuse(self, fault)
    cpdef write(self, data)
    cpdef writelines(self, pieces)
    cpdef pause_reading(self)
    cpdef resume_reading(self)

    @cython.locals(exchange=Exchange)
    cpdef bint announce_close(self, Request request) except -1
    cpdef exchange_done(self)
    cpdef switch(self, upgraded)
    cpdef end_by_closing(self)
    cpdef cut(self, stage)
    cpdef _next(self)
    cpdef _finish(self)
    cpdef _linger(self)
    cpdef _shut(self)

    @cython.locals(exchange=Exchange)
    cpdef abort(self)
    cpdef close_if_idle(self)
    cpdef _abort_transport(self)
    cpdef _drop_exchange(self)
    cpdef _tell(self, kind, stage)
    cpdef _pause_transport(self)
    cpdef _resume_transport(self)
    cpdef _late(self)
