"""Reads PROXY headers, which a load balancer sends before the first byte of the user it forwards.

haproxy's `doc/proxy-protocol.txt` is the specification. The parser is pure and reads no socket.

    v1   PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\\r\\n           at most 107 bytes
         PROXY UNKNOWN … \\r\\n
    v2   signature (12)  version, command (1)  family, protocol (1)  length (2)  addresses  TLVs

Invariants
  P1  The verdict on some first bytes never changes with the bytes behind them. So their split does not matter.
  P2  While a header is incomplete, each byte so far belongs to it. A reader may take these bytes off the socket.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import NamedTuple

from ..errors import AgentError
from ..syntax import find_address

__all__ = ["MAX_BYTES", "SIGNATURE", "V1_START", "MalformedHeader", "ProxyHeader", "looks_like_header", "parse_header"]

MAX_BYTES = 4096
"""The longest header, TLVs included. AWS sends about 100 bytes, and haproxy with a TLS client's names about 500."""

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""The first bytes of version 2. No HTTP request and no TLS record begins with them."""

V1_START = b"PROXY "
"""The first bytes of version 1."""

_V1_BYTES = 107  # the specification's longest line, with CRLF
_V2_HEAD = struct.Struct("!12sBBH")
_V2_VERSION = 2
_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _IPV4, _IPV6, _UNIX = range(4)
_STREAM = 1
_PROTOCOLS = 3  # unspecified, stream, datagram
_ADDRESS_BYTES = {_UNSPECIFIED: 0, _IPV4: 12, _IPV6: 36, _UNIX: 216}

_TLV_HEAD = struct.Struct("!BH")
_TLV_CRC32C = 0x03
_CRC_BYTES = 4

_V1_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


class MalformedHeader(AgentError):
    """The first bytes of a connection are no PROXY header, or a wrong one.

    rule: the broken rule, for a response and the log.
    limit: the name of the exceeded limit, "" if the rule is about syntax.
    """

    def __init__(self, rule: str, *, limit: str = "") -> None:
        super().__init__(f"the PROXY header is malformed: {rule}")
        self.rule = rule
        self.limit = limit


class ProxyHeader(NamedTuple):
    """A whole header.

    size: its length in bytes.
    source: the user's IP address, "" if the header names none. Then the socket's address holds.
    source_port: the user's port.
    port: the port that the user dialled, 0 if the header names none.
    is_local: the proxy itself is the client, for a health check (LOCAL).
    """

    size: int
    source: str = ""
    source_port: int = 0
    port: int = 0
    is_local: bool = False


def looks_like_header(data: bytes) -> bool:
    """Whether the first bytes of a connection begin a header: all of `V1_START`, or any part of `SIGNATURE`."""
    return data.startswith(V1_START) or (data != b"" and data[: len(SIGNATURE)] == SIGNATURE[: len(data)])


def parse_header(data: bytes) -> ProxyHeader | None:
    """Parse the header at the start of `data`. Bytes behind it are ignored.

    Args:
        data: the first bytes of a connection, at least those of the header.

    Returns:
        The header, or None if `data` is a part of one.

    Raises:
        MalformedHeader: no header, or a wrong one, begins with these bytes.
    """
    if data[: len(V1_START)] == V1_START[: len(data)]:
        return _parse_v1(data) if len(data) > len(V1_START) else None
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return _parse_v2(data) if len(data) >= _V2_HEAD.size else None
    raise MalformedHeader("the connection must begin with a PROXY header")


# -- version 1


def _parse_v1(data: bytes) -> ProxyHeader | None:
    line, end, _ = data[:_V1_BYTES].partition(b"\r\n")
    if not end:
        if len(data) >= _V1_BYTES:
            raise MalformedHeader(f"a line of version 1 has at most {_V1_BYTES} bytes")
        if b"\n" in line or b"\r" in line[:-1]:
            raise MalformedHeader("a line of version 1 ends with CRLF")
        return None
    if b"\n" in line or b"\r" in line:
        raise MalformedHeader("a line of version 1 ends with CRLF")
    size = len(line) + len(end)
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":
        return ProxyHeader(size)
    if words[1] not in (b"TCP4", b"TCP6"):
        raise MalformedHeader("the protocol must be TCP4, TCP6 or UNKNOWN")
    if len(words) != 6:
        raise MalformedHeader("a line of version 1 has two addresses and two ports, with single spaces")
    version = 4 if words[1] == b"TCP4" else 6
    source, _ = (_v1_address(word, version) for word in words[2:4])
    source_port, port = (_v1_port(word) for word in words[4:6])
    return ProxyHeader(size, source, source_port, port)


def _v1_address(word: bytes, version: int) -> str:
    text = word.decode("latin-1")
    found = None if "%" in text else find_address(text)
    if found is None or (version == 4) is not (":" not in text):
        raise MalformedHeader(f"an address of TCP{version} must be an IPv{version} address")
    return str(found)


def _v1_port(word: bytes) -> int:
    if not _V1_PORT.fullmatch(word) or int(word) > 0xFFFF:
        raise MalformedHeader("a port must be a number from 0 to 65535, without leading zeros")
    return int(word)


# -- version 2


def _parse_v2(data: bytes) -> ProxyHeader | None:
    _, version_command, family_protocol, length = _V2_HEAD.unpack_from(data)
    version, command = version_command >> 4, version_command & 15
    family, protocol = family_protocol >> 4, family_protocol & 15
    if version != _V2_VERSION:
        raise MalformedHeader(f"version {version} is unknown")
    if command not in (_LOCAL, _PROXY):
        raise MalformedHeader(f"command {command} is unknown")
    if family not in _ADDRESS_BYTES or protocol >= _PROTOCOLS:
        raise MalformedHeader(f"family and protocol {family_protocol:#04x} are unknown")
    size = _V2_HEAD.size + length
    if size > MAX_BYTES:
        raise MalformedHeader(f"a header has at most {MAX_BYTES} bytes", limit="limits.proxy_header_bytes")
    addresses = _V2_HEAD.size + _ADDRESS_BYTES[family]
    if command == _PROXY and size < addresses:
        raise MalformedHeader(f"{length} bytes are too few for the addresses")
    if len(data) < size:
        return None
    # Receivers must ignore the rest of LOCAL, and should ignore that of an unspecified family.
    if command == _LOCAL or family == _UNSPECIFIED:
        return ProxyHeader(size, is_local=command == _LOCAL)
    _check_tlvs(data[:size], addresses)
    if protocol != _STREAM or family == _UNIX:
        return ProxyHeader(size)  # the header of another connection than ours, so the socket's address holds
    ip_bytes = 4 if family == _IPV4 else 16
    source = find_address(str(ipaddress.ip_address(data[16 : 16 + ip_bytes])))
    source_port, port = struct.unpack_from("!HH", data, 16 + 2 * ip_bytes)
    return ProxyHeader(size, str(source), source_port, port)


def _check_tlvs(header: bytes, start: int) -> None:
    """Check that the TLVs fill the header, and its CRC32c if it has one. start: of the first TLV."""
    checked = False
    while start < len(header):
        if start + _TLV_HEAD.size > len(header):
            raise MalformedHeader("the last TLV is truncated")
        kind, length = _TLV_HEAD.unpack_from(header, start)
        value = start + _TLV_HEAD.size
        start = value + length
        if start > len(header):
            raise MalformedHeader("the last TLV is truncated")
        if kind == _TLV_CRC32C:
            if length != _CRC_BYTES or checked:
                raise MalformedHeader("a header has one CRC32c of 4 bytes")
            checked = True
            blank = header[:value] + bytes(_CRC_BYTES) + header[start:]
            if crc32c(blank) != int.from_bytes(header[value:start]):
                raise MalformedHeader("the CRC32c is wrong")


def _crc_table() -> tuple[int, ...]:
    """The remainders of each byte. 0x82F63B78 is the reversed polynomial of CRC32c (RFC 3720, section 12.1)."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # noqa: PLW2901 - eight steps of one value
        table.append(byte)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """The CRC32c (Castagnoli) of `data`: at most 0.5 ms for 4 KiB."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
