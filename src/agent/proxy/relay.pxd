# The types that `relay.py` has when it is compiled.
cimport cython

from agent.proxy.client_side cimport ClientSide
from agent.proxy.head_writer cimport TargetHead
from agent.proxy.heads cimport Request, Response
from agent.proxy.upstream_stream cimport UpstreamStream

cdef object AWAITED, RELAYED, DONE
cdef double NEVER


@cython.final
@cython.freelist(64)
cdef class Exchange:
    # The constructor's arguments.
    cdef public ClientSide client
    cdef public object _context
    cdef public object metrics
    cdef public Request request
    cdef public bytes own_target
    # The request's way: its head, what waits for a stream, and the task that awaits policy or dial.
    cdef public object target, _received
    cdef public UpstreamStream _upstream
    cdef public TargetHead _head
    cdef public bint corked
    cdef public bytearray _unsent
    cdef public object _task
    cdef public bint _request_done, _retried, is_call
    # The received part of the response.
    cdef public object _state
    cdef public int _status
    # When something is late, by the context's clock.
    cdef public double deadline, continue_at, waits_at
    # For its metrics, by the performance counter.
    cdef public bint _body_came_later
    cdef public double _began_s, _mark_s

    @cython.locals(request=Request)
    cpdef start(self)
    cpdef _run(self, work, pending=*)
    cpdef _policy_failed(self, error)

    @cython.locals(request=Request, head=TargetHead, upstream=UpstreamStream)
    cpdef _send(self, tuple decision)

    @cython.locals(request=Request)
    cpdef _send_connect(self, target)
    cpdef double _lap_s(self) except? -1
    cpdef _attach(self, UpstreamStream upstream)
    cpdef _await_response(self)
    cpdef uncork(self)
    cpdef client_data(self, list pieces, bint ended)

    @cython.locals(head=TargetHead)
    cpdef _write_upstream(self, list pieces, bint ended)
    cpdef pause_receiving(self)
    cpdef resume_receiving(self)
    cpdef target_moved(self)

    @cython.locals(mapped=Response)
    cpdef bint informational(self, Response response) except -1
    cpdef _say_continue(self)
    cpdef Response _mapped(self, Response response)

    @cython.locals(upstream=UpstreamStream, mapped=Response)
    cpdef switched(self, Response response, rest)

    @cython.locals(client=ClientSide, idle_s=double)
    cpdef _leave_for_tunnel(self, UpstreamStream upstream, Response response, rest)

    @cython.locals(client=ClientSide, mapped=Response, upstream=UpstreamStream)
    cpdef response_started(self, Response response, long long length, list pieces, bint ended, list trailers)

    @cython.locals(client=ClientSide)
    cpdef response_body(self, list pieces, bint ended, list trailers)

    @cython.locals(upstream=UpstreamStream, now_s=double, status=int)
    cpdef _complete(self)

    @cython.locals(upstream=UpstreamStream)
    cpdef upstream_lost(self, error)

    @cython.locals(request=Request)
    cdef bint _may_retry(self) except -1

    @cython.locals(upstream=UpstreamStream)
    cdef _retry(self, str why)

    @cython.locals(upstream=UpstreamStream)
    cdef _look_at_path(self)
    cpdef client_lost(self)

    @cython.locals(upstream=UpstreamStream)
    cpdef _end_upstream(self)
    cpdef look_at_deadlines(self, double now)
