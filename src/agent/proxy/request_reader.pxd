# The types that `request_reader.py` has when it is compiled.
cimport cython

from agent.proxy.forwarded_fields cimport Report, receive, receive_reported
from agent.proxy.heads cimport Request, parse_request
from agent.proxy.readers cimport RequestHeadReader

cdef bytes ID_FIELD, REPORT
cdef Py_ssize_t ID_BYTES, ID_FIELD_BYTES, ID_LINE_BYTES, REPORT_BYTES


@cython.final
cdef class RequestReader:
    # The last result.
    cdef public Request request
    cdef public bytes own_target, request_id
    # The parts that find it.
    cdef public RequestHeadReader _heads
    cdef public object origin
    cdef public bint _is_base_hubs, _ends_with_id, serves_connect
    # The request before, for a head that repeats.
    cdef public Request _last
    cdef public bytes _last_head, _last_target
    # a trusted hub's report, for heads that end with the same one
    cdef public Report _report
    cdef public bytes _no_report
    cdef public bint _last_is_cut
    cdef public list _given

    @cython.locals(
        head=bytes, bare=bytes, found=bytes, text=cython.p_uchar, end=Py_ssize_t, last=Request, request=Request,
        target=bytes, is_kept=bint,
    )
    cpdef take(self, data, limits)
    cpdef bint has_begun(self) except -1

    @cython.locals(last=Request, request=Request, result=tuple)
    cdef tuple _read(self, bytes head, limits)

    @cython.locals(at=Py_ssize_t, ending=bytes, report=Report, last=Request, head=bytes, result=tuple)
    cdef tuple _read_hubs(self, bytes bare, limits)
