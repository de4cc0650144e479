"""HPACK (RFC 7541), for connections on which many heads repeat. The hpack library is the specification.

A head that repeats costs one look into a dictionary, both ways:

    decode    a block of indexed fields alone means the same until the dynamic table changes
    encode    a list of fields whose entries are all in a table has the same block until then

So each kept result is dropped as soon as an entry is added. Tests compare both directions with the hpack library.
"""

from __future__ import annotations

from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE
from hpack.table import HeaderTable

from ..errors import WireError
from .errors import ErrorCode

__all__ = ["HeaderDecoder", "HeaderEncoder"]

Fields = list[tuple[bytes, bytes]]

TABLE_BYTES = 4096
"""The size of both dynamic tables (SETTINGS_HEADER_TABLE_SIZE, RFC 9113, section 6.5.2)."""

ENTRY_BYTES = 32
"""The size that an entry has besides its name and value (RFC 7541, section 4.1)."""

KEPT_RESULTS = 64
"""Results kept on one connection, in each direction."""

KEPT_BYTES = 1024
"""The longest block that is kept."""

MOST_NUMBER = 2**24
"""A length or an index beyond it is broken, since no head is that long."""

STATIC = [(bytes(name), bytes(value)) for name, value in HeaderTable.STATIC_TABLE]
STATIC_SIZE = len(STATIC)
STATIC_INDEX = {field: at + 1 for at, field in reversed(list(enumerate(STATIC)))}
STATIC_NAMES = {name: at + 1 for at, (name, _) in reversed(list(enumerate(STATIC)))}

NEVER_THE_SAME = frozenset(
    {
        b"age",
        b"content-length",
        b"content-range",
        b"etag",
        b"last-modified",
        b"location",
        b"sec-websocket-accept",
        b"x-request-id",
    }
)
"""Fields that get no entry, since their next value is another."""

SECRET = frozenset({b"authorization", b"cookie", b"proxy-authorization", b"set-cookie"})
"""Fields that nobody on the way may index (RFC 7541, section 7.1.3)."""

# The library's table of Huffman states, by state and the next four bits.
NEXT_STATE = bytes(state for state, _, _ in HUFFMAN_TABLE)
FLAGS = bytes(flags for _, flags, _ in HUFFMAN_TABLE)
SYMBOL = bytes(symbol for _, _, symbol in HUFFMAN_TABLE)
COMPLETE, EMIT, FAIL = HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL


def broken(rule: str) -> WireError:
    """The error of a block that can't be decoded. The connection has lost HPACK's state."""
    return WireError(f"HTTP/2: HPACK: {rule}", http2_code=ErrorCode.COMPRESSION_ERROR)


class HeaderDecoder:
    """Decodes the peer's header blocks. head_bytes: the largest head, as HPACK counts it."""

    def __init__(self, head_bytes: int) -> None:
        self._head_bytes = head_bytes
        self._table: Fields = []  # the newest entry last
        self._table_bytes = 0
        self._most_bytes = TABLE_BYTES  # as the peer has chosen
        self._kept: dict[bytes, Fields] = {}
        self._at = 0  # in the block

    def decode(self, block: bytes) -> Fields:
        """Decode one whole block. A block that repeats gives the same list, which nobody may change.

        Raises:
            WireError: the block is broken, or its head is too large. The connection has to close.
        """
        kept = self._kept.get(block)
        if kept is not None:
            return kept
        fields: Fields = []
        text = block
        size = 0
        end = len(block)
        is_kept = end <= KEPT_BYTES
        self._at = 0
        while self._at < end:
            byte = text[self._at]
            if byte & 0x80:
                field = self._entry(self._number(block, 7))
            elif byte & 0x40:
                field = self._literal(block, 6)
                self._add(field)
                is_kept = False
            elif byte & 0x20:
                if fields:
                    raise broken("a table size update behind a field")
                self._resize(self._number(block, 5))
                is_kept = False
                continue
            else:
                field = self._literal(block, 4)
            size += len(field[0]) + len(field[1]) + ENTRY_BYTES
            if size > self._head_bytes:
                rule = f"a head of more than {self._head_bytes} bytes"
                raise WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.ENHANCE_YOUR_CALM)
            fields.append(field)
        if is_kept:
            if len(self._kept) >= KEPT_RESULTS:
                self._kept.clear()
            self._kept[block] = fields
        return fields

    def _number(self, block: bytes, bits: int) -> int:
        """The integer at `_at`, whose first byte has so many bits of it (RFC 7541, section 5.1)."""
        text = block
        end = len(block)
        at = self._at
        most = (1 << bits) - 1
        number = text[at] & most
        at += 1
        if number == most:
            shift = 0
            while True:
                if at >= end:
                    raise broken("the block ends within a number")
                byte = text[at]
                at += 1
                number += (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
                if shift > 28:
                    raise broken("a number is too long")
            if number > MOST_NUMBER:
                raise broken("a number is too large")
        self._at = at
        return number

    def _text(self, block: bytes) -> bytes:
        """The string at `_at` (RFC 7541, section 5.2)."""
        text = block
        end = len(block)
        if self._at >= end:
            raise broken("the block ends before a string")
        is_huffman = text[self._at] & 0x80
        size = self._number(block, 7)
        begin = self._at
        if size > end - begin:
            raise broken("the block ends within a string")
        self._at = begin + size
        if is_huffman:
            return self._huffman(block, begin, begin + size)
        return block[begin : begin + size]

    def _huffman(self, block: bytes, begin: int, end: int) -> bytes:
        text = block
        out = bytearray((end - begin) * 8 // 5 + 1)  # no code has fewer than 5 bits
        target = out
        next_state, all_flags, symbol = NEXT_STATE, FLAGS, SYMBOL
        size = 0
        state = 0
        flags = COMPLETE
        for at in range(begin, end):
            byte = text[at]
            place = state * 16 + (byte >> 4)
            flags = all_flags[place]
            if flags & FAIL:
                raise broken("a string is not Huffman code")
            if flags & EMIT:
                target[size] = symbol[place]
                size += 1
            place = next_state[place] * 16 + (byte & 15)
            flags = all_flags[place]
            if flags & FAIL:
                raise broken("a string is not Huffman code")
            if flags & EMIT:
                target[size] = symbol[place]
                size += 1
            state = next_state[place]
        if not flags & COMPLETE:
            raise broken("a string ends within a Huffman code")
        return bytes(out[:size])

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if index == 0:
            raise broken("there is no entry 0")
        if index <= STATIC_SIZE:
            return STATIC[index - 1]
        at = len(self._table) - (index - STATIC_SIZE)
        if at < 0:
            raise broken(f"there is no entry {index}")
        return self._table[at]

    def _literal(self, block: bytes, bits: int) -> tuple[bytes, bytes]:
        index = self._number(block, bits)
        name = self._entry(index)[0] if index else self._text(block)
        return name, self._text(block)

    def _add(self, field: tuple[bytes, bytes]) -> None:
        self._kept.clear()
        size = len(field[0]) + len(field[1]) + ENTRY_BYTES
        self._evict(self._most_bytes - size)
        if size <= self._most_bytes:
            self._table.append(field)
            self._table_bytes += size

    def _evict(self, most_bytes: int) -> None:
        """Drop the oldest entries until the others take at most so much."""
        table = self._table
        gone = 0
        while self._table_bytes > most_bytes and gone < len(table):
            name, value = table[gone]
            self._table_bytes -= len(name) + len(value) + ENTRY_BYTES
            gone += 1
        if gone:
            del table[:gone]

    def _resize(self, most_bytes: int) -> None:
        if most_bytes > TABLE_BYTES:
            raise broken(f"a table of {most_bytes} bytes, and {TABLE_BYTES} are allowed")
        self._kept.clear()
        self._most_bytes = most_bytes
        self._evict(most_bytes)


class HeaderEncoder:
    """Encodes header blocks for the peer. Strings are sent as they are, since most fields are indexed soon."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[bytes, bytes], int] = {}  # the number of each entry, from 1 on
        self._entries: Fields = []  # the newest last
        self._added = 0  # entries so far
        self._table_bytes = 0
        self._most_bytes = TABLE_BYTES
        self._announces = False  # the next block begins with the table's size
        self._kept: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}
        self._last: Fields | None = None  # the fields of the last result that is kept, and that
        self._last_block = b""

    def use_limit(self, most_bytes: int) -> None:
        """The peer changed SETTINGS_HEADER_TABLE_SIZE."""
        most_bytes = min(most_bytes, TABLE_BYTES)
        if most_bytes != self._most_bytes:
            self._most_bytes = most_bytes
            self._announces = True
            self._forget_kept()
            self._evict(most_bytes)

    def encode(self, fields: Fields) -> bytes:
        """Encode one head. The caller never changes a list that it has given."""
        if fields is self._last:
            return self._last_block
        key = tuple(fields)
        kept = self._kept.get(key)
        if kept is not None:
            self._last, self._last_block = fields, kept
            return kept
        added = self._added
        out = bytearray()
        is_kept = not self._announces
        if self._announces:
            self._announces = False
            self._write_number(out, 0x20, 5, self._most_bytes)
        for field in fields:
            name, value = field
            index = STATIC_INDEX.get(field, 0)
            if not index:
                number = self._numbers.get(field, 0)
                if number:
                    index = STATIC_SIZE + 1 + self._added - number
            if index:
                self._write_number(out, 0x80, 7, index)
                continue
            name_index = STATIC_NAMES.get(name, 0)
            if name in SECRET:
                self._write_literal(out, 0x10, 4, name_index, name, value)
            elif name in NEVER_THE_SAME or len(value) > KEPT_BYTES:
                self._write_literal(out, 0, 4, name_index, name, value)
            else:
                self._write_literal(out, 0x40, 6, name_index, name, value)
                self._add(field)
        block = bytes(out)
        if is_kept and added == self._added and len(block) <= KEPT_BYTES:
            if len(self._kept) >= KEPT_RESULTS:
                self._kept.clear()
            self._kept[key] = block
            self._last, self._last_block = fields, block
        return block

    def _write_number(self, out: bytearray, flags: int, bits: int, number: int) -> None:
        most = (1 << bits) - 1
        if number < most:
            out.append(flags | number)
            return
        out.append(flags | most)
        number -= most
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)

    def _write_literal(self, out: bytearray, flags: int, bits: int, index: int, name: bytes, value: bytes) -> None:
        self._write_number(out, flags, bits, index)
        if not index:
            self._write_number(out, 0, 7, len(name))
            out += name
        self._write_number(out, 0, 7, len(value))
        out += value

    def _forget_kept(self) -> None:
        self._kept.clear()
        self._last = None

    def _add(self, field: tuple[bytes, bytes]) -> None:
        self._forget_kept()
        size = len(field[0]) + len(field[1]) + ENTRY_BYTES
        self._evict(self._most_bytes - size)
        if size <= self._most_bytes:
            self._added += 1
            self._entries.append(field)
            self._numbers[field] = self._added
            self._table_bytes += size

    def _evict(self, most_bytes: int) -> None:
        entries = self._entries
        gone = 0
        while self._table_bytes > most_bytes and gone < len(entries):
            field = entries[gone]
            self._table_bytes -= len(field[0]) + len(field[1]) + ENTRY_BYTES
            del self._numbers[field]
            gone += 1
        if gone:
            del entries[:gone]
