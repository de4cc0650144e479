# The types that `http2_responses.py` has when it is compiled.
cimport cython

from agent.proxy.heads cimport Response


@cython.locals(fields=list)
cpdef list response_fields(Response response, long long length)
cpdef list informational_fields(Response response)
cpdef list _end_to_end(Response response)
