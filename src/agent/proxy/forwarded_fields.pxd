# The types that `forwarded_fields.py` has when it is compiled.
cimport cython

from agent.proxy.heads cimport Request

cdef dict _NOTED


@cython.final
cdef class Report:
    cdef public bytes ending, host, lines
    cdef public Py_ssize_t count
    cdef public list fields
    cdef public object facts


@cython.locals(fields=list, kept=list, found=list, at=Py_ssize_t, field=tuple, name=bytes, is_forwarding=object)
cpdef receive(Request request, origin)
cdef _from_client(Request request, origin, list found)


@cython.locals(size=Py_ssize_t, field=tuple)
cdef _from_hub(Request request, origin, list found)


@cython.locals(fields=list, field=tuple, name=bytes, is_forwarding=object)
cpdef bint receive_reported(Request request, Report report) except -1
