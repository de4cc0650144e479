# The types that `http2_requests.py` has when it is compiled.
cimport cython

from agent.proxy.forwarded_fields cimport receive
from agent.proxy.heads cimport Request, parse_request

cdef int COLON


@cython.final
cdef class Http2RequestReader:
    # the last result
    cdef public Request request
    cdef public bytes own_target, request_id, websocket_key
    cdef public bint has_length
    # the connection
    cdef object _origin
    cdef bint _serves_connect
    # the request before, for a head that repeats
    cdef Request _last
    cdef list _last_fields
    cdef bint _last_ended
    cdef object _last_limits

    @cython.locals(
        method=bytes, path=bytes, authority=bytes, protocol=bytes, crumbs=list, hosts=list, has_length=bint, out=list,
        name=bytes, value=bytes, framing=bytes, host=bytes, block=bytes, size=Py_ssize_t, head=bytes, request=Request,
        target=bytes,
    )
    cpdef take(self, list fields, bint ended, limits)
    cpdef bytes _framing(self, bytes method, bytes protocol, bint has_length, bint ended, list out)
    cpdef _drop_key(self, list out)
