# The types that `head_writer.py` has when it is compiled.
cimport cython

from agent.proxy.heads cimport Request, Response


cdef long long CHUNKED  # a length, as in `heads`


# Each function returns the bytes of one head. `_tail` reuses the bytes written for an equal earlier request.
@cython.locals(tail=bytes, stripped=bytes)
cpdef bytes head_for_target(Request request, bytes own_target, object fields, object target, bytes request_id)


@cython.locals(out=list)
cdef bytes _tail(Request request, list fields)


@cython.locals(out=list, head=bytes)
cpdef bytes head_for_client(Response response, long long length, bytes connection)
