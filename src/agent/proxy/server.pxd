# The types that `server.py` has when it is compiled.
cimport cython

from agent.proxy.backlog cimport Backlog
from agent.proxy.client_side cimport ClientSide
from agent.proxy.clock cimport Stall
from agent.proxy.heads cimport Request, Response
from agent.proxy.pieces cimport write_pieces
from agent.proxy.readers cimport BodyReader
from agent.proxy.relay cimport Exchange
from agent.proxy.request_reader cimport RequestReader
from agent.proxy.response_writer cimport ResponseWriter

cdef object HEAD, BODY, WAITING, DRAINING, UPGRADED, LINGERING, CLOSED
cdef object REQUEST, REQUEST_WITH_BODY, BODY_END, RESPONSE_END, SWITCH, LINGER, CLOSE, LOST
cdef dict NEXT_BY_STATE
cdef bytes PREFACE
cdef double NEVER, SILENCE_S
cdef long long CHUNKED, UNFRAMED
cdef int HEADS_PER_TURN


@cython.final
cdef class ClientConnection(ClientSide):
    # The proxy that owns it, and its counters.
    cdef public object owner
    cdef public object carrier
    cdef public object metrics
    cdef public long long requests_left
    cdef public object _outcome
    # The transport.
    cdef public object _transport
    cdef public bint _is_tls, _is_trusted_hubs, _reports_faults
    cdef public object _origin
    # Where it is: the table's state, and by when the next byte is due.
    cdef public object _state
    cdef public double _deadline
    # Input: what reads it, what waits, and how it is to be worked on.
    cdef public RequestReader _requests
    cdef public BodyReader _body
    cdef public Backlog _backlog
    cdef public long long _drain_left
    cdef public bint _half_closed, _in_hand, _silent, _yielded, _may_be_http2
    cdef public bytes _preface
    # The request in flight, and its response.
    cdef public Exchange _exchange
    cdef public object _upgraded
    cdef public ResponseWriter _writer
    cdef public bint _closing, _ends_by_closing, _explained, _served
    cdef public Stall _stall

    cpdef data_received(self, data)

    @cython.locals(found=bytes)
    cpdef bint _begins_http2(self, data) except -1
    cpdef _hand_over(self, bytes data)
    cpdef bint eof_received(self)

    @cython.locals(row=dict)
    cpdef bint _move(self, event) except -1

    @cython.locals(exchange=Exchange, heads=int)
    cpdef _advance(self, data)
    cpdef _work_off_backlog(self)

    @cython.locals(requests=RequestReader, request=Request, begun=bint)
    cpdef _take_head(self, data)

    @cython.locals(exchange=Exchange)
    cpdef _begin(self, Request request, bytes target)

    @cython.locals(exchange=Exchange, body=BodyReader, pieces=list, ended=bint)
    cpdef _take_body(self, data)

    @cython.locals(exchange=Exchange)
    cdef _await_body(self)
    cpdef _refuse(self, fault)
    cdef _head_limits(self)

    cpdef _start(self, Request request, Response response, long long length, list pieces, bint ended, list trailers)
    cdef _begin_response(self)

    @cython.locals(exchange=Exchange)
    cpdef bint _announce_close(self, Request request) except -1
    cpdef _end_by_closing(self)
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
    cpdef _late(self)
