"""Reads the subject and the dates of an X.509 certificate.

Python's `ssl` decodes only certificates that it has verified, and so no expired one. This module reads the few fields
of RFC 5280, section 4.1, that a message to an operator needs. It decides nothing: OpenSSL verifies. The input comes
from a peer, so it is hostile. The reader checks every length against its container, and never recurses. Malformed input
raises ValueError.
"""

from __future__ import annotations

import binascii
import datetime
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Certificate", "in_pem", "names_in_pem", "read_certificate"]

MAX_BYTES = 100 * 1024
"""OpenSSL's limit for a peer's whole chain (SSL_CTX_set_max_cert_list). A certificate has 1 to 4 KiB, and post-quantum
signatures add tens of KiB."""

_SEQUENCE, _SET, _OID, _OCTETS = 0x30, 0x31, 0x06, 0x04
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_DNS_NAME = 0x82  # of GeneralName: [2] IA5String
_ALT_NAMES = bytes.fromhex("551d11")
_NAMES = {
    bytes.fromhex("550403"): "CN",
    bytes.fromhex("55040a"): "O",
    bytes.fromhex("55040b"): "OU",
}
_ENCODINGS = {0x0C: "utf-8", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}  # every other string is ASCII, or Latin-1 by custom

_SHOWN = 100  # characters of a subject
_SHOWN_NAMES = 3
_SHOWN_PARTS = 10  # of a subject, the rest is ignored

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")


class Certificate(NamedTuple):
    """The fields of one certificate.

    subject: as `CN=…, O=…`, or the first DNS names if it has no such name. Printable, at most about 100 characters.
    not_before, not_after: in UTC.
    """

    subject: str
    not_before: datetime.datetime
    not_after: datetime.datetime


def read_certificate(der: bytes) -> Certificate:
    """Read a DER certificate, without checking its signature. Raises ValueError for anything else."""
    fields = _signed_fields(der)
    times = [_time(tag, content) for tag, content in _elements(fields[3][1])]
    if len(times) != 2:
        raise ValueError("a certificate's validity must be two times")
    parts = list(itertools.islice(_subject(fields[4][1]), _SHOWN_PARTS)) or _shown_names(fields[6:])
    subject = ", ".join(parts) or "without a name"
    return Certificate(subject[:_SHOWN], *times)


def _signed_fields(der: bytes) -> list[tuple[int, bytes]]:
    """The fields of what is signed, from the serial number on."""
    if len(der) > MAX_BYTES:
        raise ValueError("a certificate must be at most 100 KiB")
    whole = _one(der, _SEQUENCE)
    tbs = next(_elements(whole), None)
    if tbs is None or tbs[0] != _SEQUENCE:
        raise ValueError("a certificate must begin with what is signed")
    fields = list(_elements(tbs[1]))
    if fields and fields[0][0] == _VERSION:
        del fields[0]
    if len(fields) < 6 or any(fields[each][0] != _SEQUENCE for each in (1, 2, 3, 4, 5)):
        raise ValueError("a certificate must have issuer, validity, subject and key")
    return fields


def in_pem(pem: bytes) -> list[Certificate]:
    """The certificates in a PEM file, in order. Everything else in it is skipped."""
    found = []
    for block in _PEM.finditer(pem):
        try:
            found.append(read_certificate(binascii.a2b_base64(block[1])))
        except ValueError:  # binascii.Error is one
            continue
    return found


def names_in_pem(pem: bytes) -> list[str]:
    """All DNS names of the first certificate in a PEM file, in lower case.

    The list is empty if the file has no certificate, or a malformed one.
    """
    block = _PEM.search(pem)
    try:
        names = _dns_names(_signed_fields(binascii.a2b_base64(block[1]))[6:]) if block is not None else ()
        return [name.decode("latin-1").lower() for _, name in names]
    except ValueError:
        return []


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements that follow each other in `data`, each as (tag, content). Raises ValueError."""
    at, end = 0, len(data)
    while at < end:
        if end - at < 2:
            raise ValueError("an element is cut")
        tag, size = data[at], data[at + 1]
        at += 2
        if tag & 0x1F == 0x1F:
            raise ValueError("a tag is longer than those of a certificate")
        if size >= 0x80:
            count = size & 0x7F
            if not 1 <= count <= 4 or end - at < count:  # 0x80: of unknown length, which DER doesn't have
                raise ValueError("a length is not DER")
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        if size > end - at:
            raise ValueError("an element is longer than what holds it")
        yield tag, data[at : at + size]
        at += size


def _one(data: bytes, tag: int) -> bytes:
    """The content of the one element that `data` is."""
    found = list(_elements(data))
    if len(found) != 1 or found[0][0] != tag:
        raise ValueError("not what it should be in DER")
    return found[0][1]


def _time(tag: int, content: bytes) -> datetime.datetime:
    """A time as RFC 5280, section 4.1.2.5, wants it: to the second, in UTC."""
    if not (content[-1:] == b"Z" and content[:-1].isdigit()):
        raise ValueError("a time must be digits and Z")
    text = content.decode("ascii")
    if tag == _UTC_TIME and len(text) == 13:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME or len(text) != 15:
        raise ValueError("a time must be UTCTime or GeneralizedTime")
    numbers = [int(text[:4]), *(int(text[at : at + 2]) for at in range(4, 14, 2))]
    year, month, day, hour, minute, second = numbers
    return datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC)


def _subject(name: bytes) -> Iterator[str]:
    for tag, part in _elements(name):
        if tag != _SET:
            raise ValueError("a name must be sets of attributes")
        for _, attribute in _elements(part):
            pair = list(_elements(attribute))
            if len(pair) != 2 or pair[0][0] != _OID:
                raise ValueError("a name's attribute must be a kind and a value")
            label = _NAMES.get(pair[0][1])
            if label is not None:
                yield f"{label}={_text(*pair[1])}"


def _shown_names(fields: list[tuple[int, bytes]]) -> list[str]:
    return [f"DNS={_text(*each)}" for each in itertools.islice(_dns_names(fields), _SHOWN_NAMES)]


def _dns_names(fields: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The names of the extension subjectAltName, each as its element."""
    for tag, content in fields:
        if tag != _EXTENSIONS:
            continue
        for _, extension in _elements(_one(content, _SEQUENCE)):
            parts = list(_elements(extension))
            if len(parts) < 2 or parts[0] != (_OID, _ALT_NAMES) or parts[-1][0] != _OCTETS:
                continue
            yield from (each for each in _elements(_one(parts[-1][1], _SEQUENCE)) if each[0] == _DNS_NAME)


def _text(tag: int, content: bytes) -> str:
    """A string as a log may have it."""
    text = content[: 4 * _SHOWN].decode(_ENCODINGS.get(tag, "latin-1"), "replace")
    return "".join(character if character.isprintable() else "?" for character in text[:_SHOWN])
