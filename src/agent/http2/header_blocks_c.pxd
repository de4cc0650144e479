# The classes of `header_blocks_c.pyx`. `connection` calls them from C.
from libc.stdint cimport int64_t

ctypedef int64_t int64


cdef struct Block:              # what is left of one
    const unsigned char* at
    const unsigned char* end


cdef class Table:
    # the entries, oldest first, and how many of the list's first are evicted
    cdef list entries
    cdef Py_ssize_t first
    cdef Py_ssize_t dropped     # the number of the list's first
    # the size now and at most, as section 4.1 counts it
    cdef Py_ssize_t size_bytes
    cdef Py_ssize_t max_bytes
    # what an encoder looks for: the newest entry's number, by field and by name
    cdef dict fields
    cdef dict names
    cdef long long changes      # so far

    cdef Py_ssize_t count(self) noexcept
    cdef tuple get(self, int64 index)
    cdef Py_ssize_t index_of(self, object number) except -1
    cdef int add(self, tuple field, Py_ssize_t size) except -1
    cdef int resize(self, Py_ssize_t max_bytes) except -1
    cdef int evict(self, Py_ssize_t size_bytes) except -1


cdef class BlockEncoder:
    cdef Table table
    # the table's size as the last block left it, and its smallest since
    cdef Py_ssize_t told_bytes
    cdef Py_ssize_t smallest_bytes
    # the last block that changed nothing, while the table has had so many changes
    cdef list kept_fields
    cdef bytes kept_block
    cdef long long kept_changes

    cpdef set_table_bytes(self, Py_ssize_t size_bytes)
    cpdef bytes encode(self, list fields)
    cdef unsigned char* put_field(self, unsigned char* out, object field, bytes name, bytes value) except NULL


cdef class BlockDecoder:
    cdef Table table
    cdef Py_ssize_t list_bytes
    cdef Py_ssize_t table_bytes
    # the last block that changed nothing, while the table has had so many changes
    cdef list kept_fields
    cdef bytes kept_block
    cdef long long kept_changes

    cpdef list decode(self, bytes block)
    cdef int take_size(self, Block* left) except -1
    cdef tuple take_field(self, Block* left)
