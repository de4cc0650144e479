# cython: language_level=3, boundscheck=False, wraparound=False, nonecheck=False, initializedcheck=False
# cython: binding=False, embedsignature=False, freethreading_compatible=True
"""The compiled twin of `header_blocks_py`, which explains the code. B1 to B4 are its invariants.

A block that repeats while its table rests is not coded again.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from . import header_block_rules as rules

__all__ = ["BlockDecoder", "BlockEncoder"]

cdef enum:
    INDEXED = 0x80              # the first bits of a field's forms (section 6)
    INDEXING = 0x40
    SIZE_UPDATE = 0x20
    NEVER = 0x10
    WITHOUT = 0x00
    HUFFMAN = 0x80
    LONGEST_INTEGER = 10        # octets of any 64 bits
    STACK_BYTES = 512           # of a decoded text, that needs no further memory
    KEPT_BYTES = 1024           # the longest block that is kept for a repetition
    SPENT_ENTRIES = 64          # the most evicted entries kept in front of a table's list
    EOS = 256

cdef int INTEGER_OCTETS = rules.INTEGER_OCTETS, LARGEST_PART = rules.LARGEST_PART
cdef Py_ssize_t TABLE_BYTES = rules.TABLE_BYTES, FIELD_BYTES = rules.FIELD_BYTES
cdef frozenset NEVER_INDEXED = rules.NEVER_INDEXED, NOT_INDEXED = rules.NOT_INDEXED
cdef list STATIC_TABLE = list(rules.STATIC_TABLE)
cdef Py_ssize_t STATIC_ENTRIES = len(STATIC_TABLE)
cdef dict STATIC_FIELDS = {field: index for index, field in enumerate(STATIC_TABLE, 1)}
cdef dict STATIC_NAMES = {field[0]: index for index, field in reversed(list(enumerate(STATIC_TABLE, 1)))}


# ---------------------------------------------------------------- Huffman's code (section 5.2)

cdef uint32_t codes[257]
cdef unsigned char bits[257]
cdef unsigned char next_state[256][16]  # by state, which is an inner node of the code's tree, and the next four bits
cdef unsigned char symbols[256][16]
cdef unsigned char has_symbol[256][16]
cdef unsigned char is_invalid[256][16]  # the bits complete EOS
cdef unsigned char may_end[256]         # less than eight bits, all ones, came behind the last symbol


cdef int make_codes() except -1:
    """Fill the tables above. The codes are canonical: in order of their lengths, then of their symbols."""
    cdef int children[256][2]           # an inner node, or 256 and a symbol
    cdef uint32_t code = 0
    cdef int length, symbol, node, nodes = 1, bit, state, four, child, _ones
    cdef bytes lengths = rules.HUFFMAN_BITS
    memset(children, 0, sizeof(children))
    for length in range(1, 31):
        code <<= 1
        for symbol in range(257):
            if lengths[symbol] != length:
                continue
            codes[symbol] = code
            bits[symbol] = <unsigned char>length
            node = 0
            for bit in range(length - 1, 0, -1):
                child = code >> bit & 1
                if not children[node][child]:
                    if nodes == 256:
                        raise ValueError("the lengths are those of no code")
                    children[node][child] = nodes
                    nodes += 1
                node = children[node][child]
            children[node][code & 1] = 256 + symbol
            code += 1
    memset(has_symbol, 0, sizeof(has_symbol))
    memset(is_invalid, 0, sizeof(is_invalid))
    memset(may_end, 0, sizeof(may_end))
    for state in range(256):
        for four in range(16):
            node = state
            for bit in range(3, -1, -1):
                child = children[node][four >> bit & 1]
                if child < 256:
                    node = child
                    continue
                if child == 256 + EOS:
                    is_invalid[state][four] = 1
                else:
                    symbols[state][four] = <unsigned char>(child - 256)
                    has_symbol[state][four] = 1
                node = 0
            next_state[state][four] = <unsigned char>node
    node = 0
    for _ones in range(8):
        may_end[node] = 1
        node = children[node][1]
    return 0

make_codes()


cdef Py_ssize_t coded_size(const unsigned char* text, Py_ssize_t size) noexcept:
    """The bytes of a text's Huffman code."""
    cdef uint64_t total = 7
    cdef Py_ssize_t at
    for at in range(size):
        total += bits[text[at]]
    return <Py_ssize_t>(total >> 3)


cdef unsigned char* put_coded(unsigned char* out, const unsigned char* text, Py_ssize_t size) noexcept:
    """Write a text's Huffman code. There is room for `coded_size`. Returns the place behind it."""
    cdef uint64_t pending = 0
    cdef int count = 0                  # bits of `pending` that are not written, at most 7 + 30
    cdef Py_ssize_t at
    for at in range(size):
        pending = pending << bits[text[at]] | codes[text[at]]
        count += bits[text[at]]
        while count >= 8:
            count -= 8
            out[0] = <unsigned char>(pending >> count & 0xFF)
            out += 1
    if count:
        out[0] = <unsigned char>((pending << (8 - count) | ((1 << (8 - count)) - 1)) & 0xFF)
        out += 1
    return out


cdef bytes decoded(const unsigned char* coded, Py_ssize_t size):
    """The text of a Huffman code."""
    cdef unsigned char stack[STACK_BYTES]
    cdef unsigned char* text = stack
    cdef unsigned char state = 0, octet, four
    cdef Py_ssize_t at, length = 0, room = size * 2  # the shortest code has 5 bits
    cdef int half
    cdef bint valid = True
    if room > STACK_BYTES:
        text = <unsigned char*>PyMem_Malloc(room)
        if text is NULL:
            raise MemoryError
    try:
        for at in range(size):
            octet = coded[at]
            for half in range(2):
                four = octet & 0xF if half else octet >> 4
                if is_invalid[state][four]:
                    valid = False
                if has_symbol[state][four]:
                    text[length] = symbols[state][four]
                    length += 1
                state = next_state[state][four]
        if not valid or not may_end[state]:
            raise rules.malformed_block()
        return PyBytes_FromStringAndSize(<char*>text, length)
    finally:
        if text is not stack:
            PyMem_Free(text)


# ---------------------------------------------------------------- integers (section 5.1)

cdef unsigned char* put_integer(unsigned char* out, Py_ssize_t value, int prefix_bits, unsigned char form) noexcept:
    """Write an integer of at most LONGEST_INTEGER octets. Returns the place behind it."""
    cdef Py_ssize_t most = (1 << prefix_bits) - 1
    if value < most:
        out[0] = form | <unsigned char>value
        return out + 1
    out[0] = form | <unsigned char>most
    out += 1
    value -= most
    while value >= 128:
        out[0] = <unsigned char>(value & 127 | 128)
        out += 1
        value >>= 7
    out[0] = <unsigned char>value
    return out + 1


cdef int64 take_integer(Block* block, int prefix_bits) except -1:
    """Read an integer of at most INTEGER_OCTETS octets, which is below 2**36."""
    cdef int64 most = (1 << prefix_bits) - 1, value
    cdef unsigned char octet
    cdef int octets = 1, shift = 0
    if block.at == block.end:
        raise rules.malformed_block()
    value = block.at[0] & most
    block.at += 1
    if value < most:
        return value
    while block.at < block.end and octets < INTEGER_OCTETS:
        octet = block.at[0]
        block.at += 1
        octets += 1
        value += <int64>(octet & 127) << shift
        shift += 7
        if octet < 128:
            return value
    raise rules.malformed_block()


cdef bytes take_text(Block* block):
    """Read a name or a value."""
    cdef bint is_coded
    cdef int64 size
    cdef const unsigned char* text
    if block.at == block.end:
        raise rules.malformed_block()
    is_coded = block.at[0] & HUFFMAN
    size = take_integer(block, 7)
    if size > block.end - block.at:
        raise rules.malformed_block()
    text = block.at
    block.at += size
    if is_coded:
        return decoded(text, <Py_ssize_t>size)
    return PyBytes_FromStringAndSize(<const char*>text, <Py_ssize_t>size)


# ---------------------------------------------------------------- the dynamic table (section 2.3.2)

@cython.final
cdef class Table:
    """A first-in, first-out list of fields. Each has a number that never changes, from 0 on."""

    def __cinit__(self, Py_ssize_t max_bytes, bint is_searched):
        self.max_bytes = max_bytes
        self.entries = []
        if is_searched:
            self.fields = {}
            self.names = {}

    cdef Py_ssize_t count(self) noexcept:
        return len(self.entries) - self.first

    cdef tuple get(self, int64 index):
        """The field of a static or dynamic index."""
        if 0 < index <= STATIC_ENTRIES:
            return <tuple>STATIC_TABLE[<Py_ssize_t>index - 1]
        index -= STATIC_ENTRIES + 1
        if not 0 <= index < self.count():
            raise rules.bad_index()
        return <tuple>self.entries[len(self.entries) - 1 - <Py_ssize_t>index]

    cdef Py_ssize_t index_of(self, object number) except -1:
        """The index of an entry, by its number."""
        return STATIC_ENTRIES + self.dropped + len(self.entries) - <Py_ssize_t>number

    cdef int add(self, tuple field, Py_ssize_t size) except -1:
        """Add a field. A field larger than the table only empties it (section 4.4)."""
        self.changes += 1
        if size > self.max_bytes:
            self.evict(0)
            return 0
        self.evict(self.max_bytes - size)
        if self.fields is not None:
            number = self.dropped + len(self.entries)
            self.fields[field] = number
            self.names[field[0]] = number
        self.entries.append(field)
        self.size_bytes += size
        return 0

    cdef int resize(self, Py_ssize_t max_bytes) except -1:
        self.changes += 1
        self.max_bytes = max_bytes
        self.evict(max_bytes)
        return 0

    cdef int evict(self, Py_ssize_t size_bytes) except -1:
        """Drop the oldest entries until the others take at most so many bytes."""
        cdef tuple field
        cdef Py_ssize_t number
        while self.size_bytes > size_bytes:
            field = <tuple>self.entries[self.first]
            self.entries[self.first] = None
            number = self.dropped + self.first
            self.first += 1
            self.size_bytes -= size_of(field)
            if self.fields is not None:
                if self.fields[field] == number:
                    del self.fields[field]
                if self.names[field[0]] == number:
                    del self.names[field[0]]
        if self.first == len(self.entries) or (self.first > SPENT_ENTRIES and self.first * 2 > len(self.entries)):
            self.dropped += self.first
            del self.entries[:self.first]
            self.first = 0
        return 0


cdef inline Py_ssize_t size_of(tuple field) except -1:
    """An entry's size (section 4.1)."""
    return FIELD_BYTES + len(<bytes>field[0]) + len(<bytes>field[1])


# ---------------------------------------------------------------- the two directions

@cython.final
cdef class BlockEncoder:
    """Encodes the heads that this side sends. See the Python twin."""

    def __cinit__(self):
        self.table = Table(TABLE_BYTES, True)
        self.told_bytes = self.smallest_bytes = TABLE_BYTES

    cpdef set_table_bytes(self, Py_ssize_t size_bytes):
        """The peer changed SETTINGS_HEADER_TABLE_SIZE. The next block has the change (section 4.2)."""
        self.table.resize(max(min(size_bytes, TABLE_BYTES), 0))
        self.smallest_bytes = min(self.smallest_bytes, self.table.max_bytes)

    cpdef bytes encode(self, list fields):
        """Return the block of these fields, in their order. Names are in lower case."""
        cdef Table table = self.table
        cdef Py_ssize_t room, size = table.max_bytes
        cdef long long changes
        cdef unsigned char* out
        cdef unsigned char* start
        cdef unsigned char* end
        cdef bytes block, name, value
        cdef bint shrank
        if self.kept_changes == table.changes and self.kept_fields is not None and fields == self.kept_fields:
            return self.kept_block
        changes = table.changes
        room = 2 * LONGEST_INTEGER
        for name, value in fields:
            room += 3 * LONGEST_INTEGER + len(name) + len(value)
        block = PyBytes_FromStringAndSize(NULL, room)
        start = out = <unsigned char*>PyBytes_AS_STRING(block)
        end = out + room
        shrank = self.smallest_bytes < min(self.told_bytes, size)
        if shrank:
            out = put_integer(out, self.smallest_bytes, 5, SIZE_UPDATE)
        if shrank or size != self.told_bytes:
            out = put_integer(out, size, 5, SIZE_UPDATE)
            changes = -1  # not to be sent again
        self.told_bytes = self.smallest_bytes = size
        for field in fields:
            name, value = field
            if end - out < 3 * LONGEST_INTEGER + len(name) + len(value):
                raise RuntimeError("the fields changed while they were encoded")
            out = self.put_field(out, field, name, value)
            if out is NULL:
                raise RuntimeError("no field was written")
        block = PyBytes_FromStringAndSize(<char*>start, out - start)
        if changes == table.changes and len(block) <= KEPT_BYTES:
            self.kept_fields, self.kept_block, self.kept_changes = fields[:], block, changes
        return block

    cdef unsigned char* put_field(self, unsigned char* out, object field, bytes name, bytes value) except NULL:
        """Write one field. There is room for its texts and three integers."""
        cdef Table table = self.table
        cdef PyObject* found = PyDict_GetItem(STATIC_FIELDS, field)
        cdef Py_ssize_t index = 0, size
        if found is not NULL:
            return put_integer(out, <Py_ssize_t><object>found, 7, INDEXED)
        found = PyDict_GetItem(table.fields, field)
        if found is not NULL:
            return put_integer(out, table.index_of(<object>found), 7, INDEXED)
        found = PyDict_GetItem(STATIC_NAMES, name)
        if found is not NULL:
            index = <Py_ssize_t><object>found
        else:
            found = PyDict_GetItem(table.names, name)
            if found is not NULL:
                index = table.index_of(<object>found)
        size = FIELD_BYTES + len(name) + len(value)
        if name in NEVER_INDEXED:
            out = put_integer(out, index, 4, NEVER)
        elif name in NOT_INDEXED or size * LARGEST_PART > table.max_bytes:
            out = put_integer(out, index, 4, WITHOUT)
        else:
            out = put_integer(out, index, 6, INDEXING)
            table.add((name, value), size)
        if not index:
            out = put_text(out, name)
        return put_text(out, value)


cdef unsigned char* put_text(unsigned char* out, bytes text) noexcept:
    """Write a name or a value, in the shorter form. There is room for it as it is, and for an integer."""
    cdef const unsigned char* source = <const unsigned char*>PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text), coded = coded_size(source, size)
    if coded < size:
        return put_coded(put_integer(out, coded, 7, HUFFMAN), source, size)
    out = put_integer(out, size, 7, 0)
    memcpy(out, source, size)
    return out + size


@cython.final
cdef class BlockDecoder:
    """Decodes the heads that the peer sends. See the Python twin."""

    def __init__(self, Py_ssize_t list_bytes, Py_ssize_t table_bytes=TABLE_BYTES):
        self.list_bytes = list_bytes
        self.table_bytes = table_bytes
        self.table = Table(table_bytes, False)

    cpdef list decode(self, bytes block):
        """Return the fields of a whole block, in their order.

        The caller must not change the list. A block that repeats may give the same one.
        """
        cdef Table table = self.table
        cdef Block left
        cdef list fields = []
        cdef tuple field
        cdef long long changes = table.changes
        cdef Py_ssize_t size_bytes = 0
        if self.kept_changes == changes and self.kept_block is not None and block == self.kept_block:
            return self.kept_fields
        left.at = <const unsigned char*>PyBytes_AS_STRING(block)
        left.end = left.at + PyBytes_GET_SIZE(block)
        while left.at < left.end:
            if left.at[0] & (INDEXED | INDEXING | SIZE_UPDATE) == SIZE_UPDATE:
                if fields:
                    raise rules.malformed_block()
                self.take_size(&left)
                continue
            field = self.take_field(&left)
            fields.append(field)
            size_bytes += size_of(field)
            if size_bytes > self.list_bytes:
                raise rules.list_too_large(self.list_bytes)
        if changes == table.changes and len(block) <= KEPT_BYTES:
            self.kept_fields, self.kept_block, self.kept_changes = fields, block, changes
        return fields

    cdef int take_size(self, Block* left) except -1:
        """Read a change of the table's size (section 6.3)."""
        cdef int64 size = take_integer(left, 5)
        if size > self.table_bytes:
            raise rules.bad_table_size(self.table_bytes)
        return self.table.resize(<Py_ssize_t>size)

    cdef tuple take_field(self, Block* left):
        """Read one field, and add it to the table if its form requires that (sections 6.1 and 6.2)."""
        cdef unsigned char first = left.at[0]
        cdef bytes name, value
        cdef tuple field
        cdef int64 index
        if first & INDEXED:
            return self.table.get(take_integer(left, 7))
        index = take_integer(left, 6 if first & INDEXING else 4)
        if index:
            name = <bytes>self.table.get(index)[0]
        else:
            name = take_text(left)
        value = take_text(left)
        field = (name, value)
        if first & INDEXING:
            self.table.add(field, size_of(field))
        return field
