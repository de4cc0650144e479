# The types that `forwarded_fields.py` has when it is compiled.
cimport cython

from agent.proxy.heads cimport Request

cdef set _HARMLESS


@cython.locals(fields=list, kept=list, found=list, at=Py_ssize_t, field=tuple, name=bytes)
cpdef receive(Request request, origin)
cdef _from_client(Request request, origin, list found)
cdef _from_hub(Request request, origin, list found)
