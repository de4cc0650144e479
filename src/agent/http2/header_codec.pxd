# The types that `header_codec.py` has when it is compiled: C loops over a block's bytes.
cimport cython

cdef Py_ssize_t ENTRY_BYTES, KEPT_RESULTS, KEPT_BYTES, STATIC_SIZE
cdef Py_ssize_t MOST_NUMBER, TABLE_BYTES
cdef list STATIC
cdef dict STATIC_INDEX, STATIC_NAMES
cdef bytes NEXT_STATE, FLAGS, SYMBOL
cdef int COMPLETE, EMIT, FAIL


@cython.final
cdef class HeaderDecoder:
    # the dynamic table
    cdef list _table
    cdef Py_ssize_t _table_bytes, _most_bytes
    # the results that hold until the table changes
    cdef dict _kept
    # the block in hand, and its bound
    cdef Py_ssize_t _at
    cdef Py_ssize_t _head_bytes

    @cython.locals(
        kept=list, fields=list, text=cython.p_uchar, size=Py_ssize_t, end=Py_ssize_t, is_kept=bint, byte=int,
        field=tuple,
    )
    cpdef list decode(self, bytes block)

    @cython.locals(text=cython.p_uchar, end=Py_ssize_t, at=Py_ssize_t, most=Py_ssize_t, number=Py_ssize_t, shift=int,
                   byte=int)
    cdef Py_ssize_t _number(self, bytes block, int bits) except -1

    @cython.locals(text=cython.p_uchar, end=Py_ssize_t, is_huffman=bint, size=Py_ssize_t, begin=Py_ssize_t)
    cdef bytes _text(self, bytes block)

    @cython.locals(
        text=cython.p_uchar, out=bytearray, target=cython.p_uchar, next_state=cython.p_uchar,
        all_flags=cython.p_uchar, symbol=cython.p_uchar, size=Py_ssize_t, state=int, flags=int, at=Py_ssize_t,
        byte=int, place=int,
    )
    cdef bytes _huffman(self, bytes block, Py_ssize_t begin, Py_ssize_t end)

    @cython.locals(at=Py_ssize_t)
    cdef tuple _entry(self, Py_ssize_t index)

    @cython.locals(index=Py_ssize_t, name=bytes)
    cdef tuple _literal(self, bytes block, int bits)

    @cython.locals(size=Py_ssize_t)
    cdef _add(self, tuple field)

    @cython.locals(table=list, gone=Py_ssize_t)
    cdef _evict(self, Py_ssize_t most_bytes)
    cdef _resize(self, Py_ssize_t most_bytes)


@cython.final
cdef class HeaderEncoder:
    # the dynamic table: entries are numbered from 1 on
    cdef dict _numbers
    cdef list _entries
    cdef Py_ssize_t _added, _table_bytes, _most_bytes
    cdef bint _announces
    # the results that hold until the table changes
    cdef dict _kept
    cdef list _last
    cdef bytes _last_block

    cpdef use_limit(self, Py_ssize_t most_bytes)

    @cython.locals(
        key=tuple, kept=bytes, added=Py_ssize_t, out=bytearray, is_kept=bint, field=tuple, name=bytes, value=bytes,
        index=Py_ssize_t, number=Py_ssize_t, name_index=Py_ssize_t, block=bytes,
    )
    cpdef bytes encode(self, list fields)

    @cython.locals(most=Py_ssize_t)
    cdef _write_number(self, bytearray out, int flags, int bits, Py_ssize_t number)
    cdef _write_literal(self, bytearray out, int flags, int bits, Py_ssize_t index, bytes name, bytes value)
    cdef _forget_kept(self)

    @cython.locals(size=Py_ssize_t)
    cdef _add(self, tuple field)

    @cython.locals(entries=list, gone=Py_ssize_t, field=tuple)
    cdef _evict(self, Py_ssize_t most_bytes)
