"""The rules for the fields of a head (RFC 9113, sections 8.2 and 8.3, and RFC 8441, section 4)."""

from __future__ import annotations

from typing import Literal

__all__ = ["HeadKind", "Headers", "fault_of"]

Headers = list[tuple[bytes, bytes]]
"""A head's fields in their order, with names in lower case."""

HeadKind = Literal["request", "extended request", "response", "trailers"]
"""An extended request may be an extended CONNECT (RFC 8441), which SETTINGS_ENABLE_CONNECT_PROTOCOL allows."""

_OF_THE_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"http2-settings")
)
_PSEUDO: dict[HeadKind, frozenset[bytes]] = {
    "request": frozenset((b":method", b":scheme", b":path", b":authority")),
    "extended request": frozenset((b":method", b":scheme", b":path", b":authority", b":protocol")),
    "response": frozenset((b":status",)),
    "trailers": frozenset(),
}
_REQUIRED: dict[HeadKind, tuple[bytes, ...]] = {
    "request": (b":method", b":scheme", b":path"),
    "extended request": (b":method", b":scheme", b":path"),
    "response": (b":status",),
    "trailers": (),
}


COLON, SPACE, TAB = b": \t"
NAME, VALUE = 1, 2


def _kind(byte: int) -> int:
    """The places where a byte is allowed, as bits."""
    sign = bytes([byte])
    is_name = 0x20 < byte < 0x7F and sign != b":" and not sign.isupper()  # section 8.2.1
    return NAME * is_name | VALUE * (sign not in b"\0\r\n")


KINDS = bytes(map(_kind, range(256)))


def is_name(name: bytes) -> bool:
    """Whether a name is visible ASCII, without capitals, and without a colon but a pseudo-field's (section 8.2.1)."""
    text = name
    size = len(name)
    kinds = KINDS
    at = 1 if size and text[0] == COLON else 0
    if at == size:
        return False
    while at < size:
        if not kinds[text[at]] & NAME:
            return False
        at += 1
    return True


def is_value(value: bytes) -> bool:
    """Whether a value has no NUL, CR and LF, and no white space around it (section 8.2.1)."""
    text = value
    size = len(value)
    kinds = KINDS
    if size == 0:
        return True
    if text[0] == SPACE or text[0] == TAB or text[size - 1] == SPACE or text[size - 1] == TAB:
        return False
    at = 0
    while at < size:
        if not kinds[text[at]] & VALUE:
            return False
        at += 1
    return True


def fault_of(fields: Headers, kind: HeadKind) -> str:
    """The rule of RFC 9113, sections 8.2 and 8.3, that a head breaks, or "". fields: as decoded."""
    seen: set[bytes] = set()
    regular = False
    for name, value in fields:
        if not is_name(name):
            return "a field's name has a character that it must not have (section 8.2.1)"
        if not is_value(value):
            return f"the value of {name.decode()} has a character that it must not have (section 8.2.1)"
        if name[0] == COLON:
            if regular:
                return f"{name.decode()} comes behind other fields (section 8.3)"
            if name not in _PSEUDO[kind]:
                return f"{name.decode()} is no field of a {kind.removesuffix('s')} (section 8.3)"
            if name in seen:
                return f"{name.decode()} is there twice (section 8.3)"
            seen.add(name)
        else:
            regular = True
            if name in _OF_THE_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
                return f"{name.decode()} is a field of HTTP/1.1's connections (section 8.2.2)"
    is_connect = (b":method", b"CONNECT") in fields and kind.endswith("request")
    if b":protocol" in seen:
        if not is_connect or b":authority" not in seen:
            return ":protocol is there without CONNECT and :authority (RFC 8441, section 4)"
    elif is_connect:
        wrong = seen & {b":scheme", b":path"} or b":authority" not in seen
        return "CONNECT has :authority and neither :scheme nor :path (section 8.5)" if wrong else ""
    for name in _REQUIRED[kind]:
        if name not in seen:
            return f"{name.decode()} is missing (section 8.3.1)"
    return ":path is empty (section 8.3.1)" if (b":path", b"") in fields else ""
