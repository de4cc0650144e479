# The types that `head_writer.py` has when it is compiled.
cimport cython

from agent.proxy.heads cimport Request, Response


cdef long long CHUNKED  # a length, as in `heads`


@cython.final
@cython.freelist(64)
cdef class TargetHead:
    # the checked parts
    cdef public Request request
    cdef public bytes own_target
    cdef public object fields, target
    cdef public bytes request_id
    # what of it was written for HTTP/1.1
    cdef bytes _tail, _written

    cpdef bytes as_http1(self)


@cython.locals(head=TargetHead)
cpdef TargetHead head_for_target(Request request, bytes own_target, object fields, object target, bytes request_id)


@cython.locals(request=Request, tail=bytes, stripped=bytes)
cdef bytes _request_head(TargetHead head)


@cython.locals(tail=bytes)
cdef bytes _new_tail(Request request, object fields)
cdef bytes _connect_head(TargetHead head)


@cython.locals(out=list)
cdef bytes _tail(Request request, list fields)


@cython.locals(out=list, head=bytes)
cpdef bytes head_for_client(Response response, long long length, bytes connection)
