# The types that `fast_parser.py` has when it is compiled: plain C loops.
cimport cython

# bytes, and the kinds of places that allow a byte
cdef int TAB, LF, CR, SPACE, DOT, SLASH, ZERO, COLON
cdef int NAME, VALUE, BLANK, PATH, HOST, REASON
# Two tables: by byte, and by a name's length and first letter.
cdef bytes KINDS, MAYBE_SPECIAL
cdef Py_ssize_t LONGEST_SPECIAL


@cython.locals(at=Py_ssize_t, method_end=Py_ssize_t, text=cython.p_uchar, kinds=cython.p_uchar)
cpdef Py_ssize_t plain_request_line(bytes head, Py_ssize_t target_bytes) except -1


@cython.locals(at=Py_ssize_t, text=cython.p_uchar, kinds=cython.p_uchar)
cpdef Py_ssize_t plain_status_line(bytes head) except -1


@cython.locals(at=Py_ssize_t, size=Py_ssize_t, text=cython.p_uchar, kinds=cython.p_uchar)
cpdef Py_ssize_t plain_host_end(bytes host) except -1


@cython.final
@cython.freelist(8)
cdef class HeaderBlock:
    # the end-to-end fields: as pairs, or as the lines to write
    cdef public list fields
    cdef public bytes block
    # those with a meaning for the proxy, by lower-case name
    cdef public dict special
    # of all fields, for the limit
    cdef public Py_ssize_t count
    # whether the policy may have to change some
    cdef public bint has_urls

    cpdef add(self, bytes name, bytes value)

    @cython.locals(
        size=Py_ssize_t, text=cython.p_uchar, kinds=cython.p_uchar, maybe_special=cython.p_uchar, fields=list,
        runs=list, run=Py_ssize_t, at=Py_ssize_t, count=Py_ssize_t, begin=Py_ssize_t, name_end=Py_ssize_t,
        value=Py_ssize_t, end=Py_ssize_t, length=Py_ssize_t, lower=bytes,
    )
    cpdef bint read(self, bytes head, Py_ssize_t start, bint as_block) except -1

    @cython.locals(values=list)
    cpdef _add_special(self, bytes lower, bytes value)

    @cython.locals(special=dict, lengths=list, codings=list)
    cpdef bint _is_framing_plain(self) except -1
