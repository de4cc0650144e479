# The types that `receiving.py` has when it is compiled: C fields where nobody outside looks.
cimport cython


@cython.final
cdef class ReceiveBuffer:
    cdef readonly object chunk
    cdef readonly object room

    cpdef keep(self, Py_ssize_t size_bytes)


@cython.final
cdef class ReceivePool:
    cdef ReceiveBuffer _next
    cdef object _pool

    @cython.locals(buffer=ReceiveBuffer)
    cpdef ReceiveBuffer take(self)
    cpdef give_back(self, ReceiveBuffer buffer)
