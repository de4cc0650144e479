# The types that `heads.py` has when it is compiled.
cimport cython


@cython.final
cdef class _Collector:
    cdef public list fields
    cdef public dict special
    cdef public bint complete


@cython.final
cdef class Request:
    cdef public bytes method, block, host, upgrade
    cdef public str name
    cdef public list fields, received
    cdef public long long length
    cdef public bint is_1_0, has_length, keep_alive, expects_continue, takes_trailers
    cdef public list given
    cdef public bytes tail


@cython.final
cdef class Response:
    cdef public bytes block, reason, upgrade
    cdef public list fields
    cdef public int status
    cdef public long long length, content_length
    cdef public bint keep_alive
    cdef public long long framing
    cdef public bytes closing, written


@cython.locals(line_end=Py_ssize_t, block=bytes, collector=_Collector, request=Request)
cpdef tuple parse_request(bytes head, limits, Request last=*)


@cython.locals(collector=_Collector, special=dict, response=Response)
cpdef Response parse_response(bytes head)


@cython.locals(collector=_Collector)
cdef tuple _read_fields(object parser_type, bytes head)


cdef long long _content_length(list values) except? -2
cdef object _set_connection(Request request, dict special)
cdef object _set_host(Request request, list hosts)
cdef object _set_framing(Request request, dict special)
