"""Header blocks of HTTP/2: HPACK (RFC 7541). The specification of both twins, on the hpack library.

    fields ──► BlockEncoder ──► block ──► BlockDecoder ──► fields

Each coder belongs to one connection and one direction. Its table must see every block, in their order.

Invariants
  B1  Both twins give the same block for the same fields.
      For the same block they give the same fields, or the same error.
  B2  After an error the table is lost, and with it the connection.
  B3  A decoder holds at most its table, and fields of at most `list_bytes` beside one field of the block.
  B4  A field of NEVER_INDEXED enters no table, here or at any later hop (sections 6.2.3 and 7.1).
"""

from __future__ import annotations

from hpack.exceptions import HPACKError, InvalidTableIndex, InvalidTableSizeError, OversizedHeaderListError
from hpack.hpack import Decoder, encode_integer
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable, table_entry_size

from . import header_block_rules as rules

__all__ = ["BlockDecoder", "BlockEncoder"]

INDEXED, INDEXING, SIZE_UPDATE, NEVER, WITHOUT = 0x80, 0x40, 0x20, 0x10, 0x00
"""The first bits of a field's forms (section 6)."""

HUFFMAN = 0x80


class BlockEncoder:
    """Encodes the heads that this side sends."""

    def __init__(self) -> None:
        self._table = HeaderTable()
        self._huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
        self._told_bytes = self._smallest_bytes = rules.TABLE_BYTES  # the table's size, as the last block left it

    def set_table_bytes(self, size_bytes: int) -> None:
        """The peer changed SETTINGS_HEADER_TABLE_SIZE. The next block has the change (section 4.2)."""
        self._table.maxsize = min(size_bytes, rules.TABLE_BYTES)
        self._smallest_bytes = min(self._smallest_bytes, self._table.maxsize)

    def encode(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        """Return the block of these fields, in their order. Names are in lower case."""
        out = bytearray()
        size = self._table.maxsize
        shrank = self._smallest_bytes < min(self._told_bytes, size)
        if shrank:
            out += _integer(self._smallest_bytes, 5, SIZE_UPDATE)
        if shrank or size != self._told_bytes:
            out += _integer(size, 5, SIZE_UPDATE)
        self._told_bytes = self._smallest_bytes = size
        for name, value in fields:
            self._add(out, name, value)
        return bytes(out)

    def _add(self, out: bytearray, name: bytes, value: bytes) -> None:
        index, _, found = self._table.search(name, value) or (0, b"", None)
        if found is not None:
            out += _integer(index, 7, INDEXED)
            return
        if name in rules.NEVER_INDEXED:
            out += _integer(index, 4, NEVER)
        elif name in rules.NOT_INDEXED or table_entry_size(name, value) * rules.LARGEST_PART > self._table.maxsize:
            out += _integer(index, 4, WITHOUT)
        else:
            out += _integer(index, 6, INDEXING)
            self._table.add(name, value)
        if not index:
            self._add_text(out, name)
        self._add_text(out, value)

    def _add_text(self, out: bytearray, text: bytes) -> None:
        coded = self._huffman.encode(text)
        if len(coded) < len(text):
            out += _integer(len(coded), 7, HUFFMAN) + coded
        else:
            out += _integer(len(text), 7, 0) + text


class BlockDecoder:
    """Decodes the heads that the peer sends.

    Args:
        list_bytes: the most bytes of a head, with FIELD_BYTES for each field.
        table_bytes: the announced SETTINGS_HEADER_TABLE_SIZE.
    """

    def __init__(self, list_bytes: int, table_bytes: int = rules.TABLE_BYTES) -> None:
        self._decoder = Decoder(max_header_list_size=list_bytes)
        self._decoder.header_table_size = self._decoder.max_allowed_table_size = table_bytes

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Return the fields of a whole block, in their order.

        The caller must not change the list. A block that repeats may give the same one.

        Raises:
            WireError: the block is malformed, or its fields are too large. The connection must end (B2).
        """
        decoder = self._decoder
        try:
            return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
        except OversizedHeaderListError:
            raise rules.list_too_large(decoder.max_header_list_size) from None
        except InvalidTableIndex:
            raise rules.bad_index() from None
        except InvalidTableSizeError:
            raise rules.bad_table_size(decoder.max_allowed_table_size) from None
        except (HPACKError, IndexError, TypeError):  # as h2 has them
            raise rules.malformed_block() from None


def _integer(value: int, prefix_bits: int, form: int) -> bytes:
    coded = encode_integer(value, prefix_bits)
    coded[0] |= form
    return bytes(coded)
