# The types that `head_rules.py` has when it is compiled: C loops over names and values.
cimport cython

cdef int COLON, SPACE, TAB, NAME, VALUE
cdef bytes KINDS
cdef frozenset _OF_THE_CONNECTION


@cython.locals(text=cython.p_uchar, kinds=cython.p_uchar, size=Py_ssize_t, at=Py_ssize_t)
cpdef bint is_name(bytes name) except -1


@cython.locals(text=cython.p_uchar, kinds=cython.p_uchar, size=Py_ssize_t, at=Py_ssize_t)
cpdef bint is_value(bytes value) except -1


@cython.locals(seen=set, regular=bint, name=bytes, value=bytes, is_connect=bint)
cpdef str fault_of(list fields, str kind)
