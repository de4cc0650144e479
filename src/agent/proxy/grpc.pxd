# The types that `grpc.py` has when it is compiled.
cimport cython

cdef int CONTENT_TYPE_BYTES, NAME_BYTES


@cython.locals(name=bytes, value=bytes)
cpdef bint is_grpc(list fields) except -1
