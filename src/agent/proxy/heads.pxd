# The types that `heads.py` has when it is compiled. The docstrings there explain the fields.
cimport cython

from agent.proxy.fast_parser cimport HeaderBlock
from agent.proxy.grpc cimport is_grpc

cdef bint USES_FAST_PARSER  # the default of `fast`
cdef int ZERO


@cython.final
cdef class _Collector:
    # filled by llhttp's callbacks
    cdef public HeaderBlock lines
    cdef public bint complete


@cython.final
cdef class Request:
    # the request line, and what the next head is compared with
    cdef public bytes method
    cdef public bint is_1_0, is_connect
    cdef public bytes block
    # The fields that are sent on, and those that the policy gets.
    cdef public list fields
    cdef public str name
    cdef public list received
    cdef public bytes host
    cdef public bint has_urls, is_grpc
    # The user, and the lines that report the user to the target.
    cdef public str peer, scheme, public_host, prefix_text
    cdef public bytes prefix, request_id, forwarding
    cdef public list unreported
    cdef public bytes reported
    # the body: bytes, or CHUNKED
    cdef public long long length
    cdef public bint has_length
    # the connection: what follows this request on it
    cdef public bint keep_alive, expects_continue, takes_trailers
    cdef public bytes upgrade
    # the head for the target, as it was last written
    cdef public list given
    cdef public bytes tail


@cython.final
cdef class Response:
    # the head as it came, which the next one is compared with
    cdef public bytes block
    # The lines that are sent on. The first `line_bytes` bytes are the status line.
    cdef public int status
    cdef public bytes lines
    cdef public Py_ssize_t line_bytes
    cdef public bint has_urls
    # the body: bytes, CHUNKED or UNTIL_EOF, and Content-Length as the target gave it
    cdef public long long length, content_length
    cdef public bytes digits
    # The connection: whether it stays open, its upgrade, and the agent's report of a fault.
    cdef public bint keep_alive
    cdef public bytes upgrade, fault
    # the head for the client, as it was last written, and what it was written for
    cdef public long long framing
    cdef public bytes closing, written
    cdef public long long http2_length
    cdef public list http2_fields


# Called for each head.
@cython.locals(
    text=cython.p_uchar, line_end=Py_ssize_t, method_end=Py_ssize_t, is_1_0=bint, taken=bint, block=bytes,
    lines=HeaderBlock, special=dict, request=Request,
)
cpdef tuple parse_request(
    bytes head, limits, Request last=*, bint fast=*, bint serves_connect=*, Py_ssize_t known_fields=*
)


@cython.locals(
    text=cython.p_uchar, line_end=Py_ssize_t, is_1_0=bint, lines=HeaderBlock, special=dict, response=Response,
    lengths=list,
)
cpdef Response parse_response(bytes head, bint fast=*)


@cython.locals(collector=_Collector)
cpdef bint ask_llhttp(object parser_type, bytes head, HeaderBlock lines) except -1


cdef tuple _ask_about_response(bytes head, Response response)


# The rules of RFC 9112 and 9110, one function each.
@cython.locals(values=list)
cdef object _options(dict special)
cdef long long _body_length(list lengths, list codings, bint is_1_0) except? -4
cdef object _set_connection(Request request, dict special)
cdef object _set_connect(Request request, dict special)
cpdef bint switches_as_asked(Response response, Request request) except -1
cdef object _set_host(Request request, list hosts, bint fast)


@cython.locals(end=Py_ssize_t, port=bytes)
cdef bint _is_host(bytes value, bint fast) except -1


@cython.locals(lengths=list, codings=list, length=cython.longlong)
cdef object _set_framing(Request request, dict special)
