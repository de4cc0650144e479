# The types that `heads.py` has when it is compiled.
cimport cython

from agent.proxy.fast_parser cimport Lines

cdef bint USES_FAST_PARSER
cdef int ZERO


@cython.final
cdef class _Collector:
    cdef public Lines lines
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
    cdef public bytes block, upgrade, lines, digits, fault
    cdef public int status
    cdef public Py_ssize_t line_bytes
    cdef public long long length, content_length
    cdef public bint keep_alive
    cdef public long long framing
    cdef public bytes closing, written


@cython.locals(
    text=cython.p_uchar, line_end=Py_ssize_t, method_end=Py_ssize_t, is_1_0=bint, taken=bint, block=bytes, lines=Lines,
    special=dict, request=Request,
)
cpdef tuple parse_request(bytes head, limits, Request last=*, bint fast=*)


@cython.locals(
    text=cython.p_uchar, line_end=Py_ssize_t, is_1_0=bint, lines=Lines, special=dict, response=Response, lengths=list
)
cpdef Response parse_response(bytes head, bint fast=*)


@cython.locals(collector=_Collector)
cpdef bint ask_llhttp(object parser_type, bytes head, Lines lines) except -1


cdef tuple _ask_about_response(bytes head, Response response)


@cython.locals(values=list)
cdef object _options(dict special)
cdef long long _body_length(list lengths, list codings, bint is_1_0) except? -4
cdef object _set_connection(Request request, dict special)
cpdef bint switches_as_asked(Response response, Request request) except -1
cdef object _set_host(Request request, list hosts, bint fast)


@cython.locals(end=Py_ssize_t, port=bytes)
cdef bint _is_host(bytes value, bint fast) except -1


@cython.locals(lengths=list, codings=list, length=cython.longlong)
cdef object _set_framing(Request request, dict special)
