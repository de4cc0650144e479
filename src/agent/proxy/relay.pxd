# The types that `relay.py` has when it is compiled.
cimport cython

from agent.proxy.chunked cimport ChunkedDecoder
from agent.proxy.heads cimport Request, Response
from agent.proxy.server cimport ClientConnection
from agent.proxy.upstream cimport Upstream

cdef object HEAD, SIZED, IN_CHUNKS, TO_EOF, DONE, BEFORE_HEAD, IN_SIZED, IN_CHUNKED
cdef double NEVER
cdef long long CHUNKED, UNFRAMED
cdef Py_ssize_t JOIN_BYTES


@cython.final
@cython.freelist(64)
cdef class Exchange:
    cdef public ClientConnection connection
    cdef public Request request
    cdef public bytes own_target
    cdef public object target
    cdef public object stage
    cdef public bytes corked
    cdef public double deadline, continue_at, waits_at
    cdef public Upstream _upstream
    cdef public object _task
    cdef public bytes _head
    cdef public bytearray _unsent
    cdef public bint _request_done, _retried, _answered, _body_came_later, _unframed
    cdef public object _mode
    cdef public int _informational
    cdef public Response _response
    cdef public long long _left, _passed_bytes
    cdef public ChunkedDecoder _decoder
    cdef public bytearray _collected
    cdef public double _began_s, _mark_s

    @cython.locals(request=Request, connection=ClientConnection)
    cpdef start(self)
    cpdef _run(self, work, pending=*)
    cpdef _policy_failed(self, error)

    @cython.locals(request=Request, head=bytes, upstream=Upstream)
    cpdef _send(self, tuple decision)
    cpdef _body_follows(self)
    cpdef double _lap_s(self) except? -1
    cpdef _attach(self, Upstream upstream)
    cpdef _await_response(self)
    cpdef uncork(self)
    cpdef body_came(self)
    cpdef client_data(self, list pieces, bint ended)
    cpdef _write_upstream(self, list pieces)
    cpdef pause_receiving(self)
    cpdef resume_receiving(self)

    @cython.locals(left=cython.longlong)
    cpdef response_data(self, data)

    @cython.locals(upstream=Upstream, response=Response)
    cpdef _read_head(self, data)
    cpdef _relay_informational(self, Response response)
    cpdef _say_continue(self)
    cpdef _switch(self, Response response, rest)

    @cython.locals(request=Request, connection=ClientConnection, length=cython.longlong, framing=cython.longlong,
                   left=cython.longlong, head=bytes)
    cpdef _start_response(self, Response response, rest)
    cpdef bytes _head_for_client(self, long long framing)

    @cython.locals(decoder=ChunkedDecoder, pieces=list, out=list, ended=bint, clean=bint, unframed=bint)
    cpdef _relay_body(self, bytes head, data)

    @cython.locals(collected=bytearray)
    cpdef _collect(self, list pieces)
    cpdef _send_collected(self, bint clean)

    @cython.locals(upstream=Upstream, now_s=double, status=int)
    cpdef _complete(self, bint clean)

    @cython.locals(upstream=Upstream)
    cpdef upstream_lost(self, error)

    @cython.locals(request=Request)
    cdef bint _may_retry(self) except -1

    @cython.locals(upstream=Upstream)
    cdef _retry(self, str why)

    @cython.locals(upstream=Upstream)
    cdef _look_at_path(self)
    cpdef client_lost(self)

    @cython.locals(connection=ClientConnection)
    cpdef fail(self, int status, str reason, str stage, bint close=*, str fault=*, str limit=*,
               str rule=*)

    @cython.locals(upstream=Upstream)
    cpdef _end_upstream(self)
    cpdef look_at_deadlines(self, double now)


cdef write_pieces(writer, list pieces)
