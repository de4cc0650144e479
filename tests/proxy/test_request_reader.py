"""The requests of one connection: repeated heads, and the id at a head's end."""

from __future__ import annotations

import pytest

from agent.proxy import HubOrigin, ProxyLimits
from agent.proxy.heads import Fault
from agent.proxy.request_reader import RequestReader

LIMITS = ProxyLimits()
OUR_HUB = HubOrigin(is_trusted=True)
ID = b"0123456789abcdef0123456789abcdef"


def head(last: bytes, target: bytes = b"/c1/") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n" + last + b"\r\n\r\n"


def taken(reader: RequestReader, data: bytes, size: int = 0) -> tuple[bytes, list[bytes]]:
    """(the id, the names of the end-to-end fields) of the one request in `data`. size: of its pieces, 0 for one."""
    size = size or len(data)
    for at in range(0, len(data), size):
        assert reader.request is None
        assert bytes(reader.take(data[at : at + size], LIMITS)) == b""
    request, reader.request = reader.request, None
    assert request is not None
    return reader.request_id, [name for name, _ in request.fields]


@pytest.mark.parametrize("size", [0, 1, 7])
def test_each_request_has_its_own_id(size: int) -> None:
    reader = RequestReader(LIMITS, OUR_HUB)
    for number in range(5):
        made = b"%032x" % number
        assert taken(reader, head(b"X-Request-Id: " + made, b"/c1/%d" % (number % 2)), size) == (made, [])
    assert taken(reader, head(b"Accept: a"), size) == (b"", [b"Accept"])
    assert taken(reader, head(b"X-Request-Id: short"), size) == (b"short", [])
    assert taken(reader, head(b"X-Request-Id: " + ID), size) == (ID, [])


@pytest.mark.parametrize(
    ("value", "found", "names"),
    [
        (b"a\r\nImpersonate-User: alice-smith", b"a", [b"Impersonate-User"]),
        (b"a\r\nX-Remote-User: administrator1", b"a", [b"X-Remote-User"]),
        (b"a\r\nAccept-Languages: 0123456789a", b"a", [b"Accept-Languages"]),
        (b"\xe9" * 32, b"", []),
        (b"<script>alert(document.URL)</scr", b"", []),
        (b" " * 16 + ID[:16], ID[:16], []),
        (b"f47ac10b-58cc-4372-a567-0e02b2c3", b"f47ac10b-58cc-4372-a567-0e02b2c3", []),
    ],
)
def test_bytes_at_the_place_of_an_id_are_parsed(value: bytes, found: bytes, names: list[bytes]) -> None:
    """A hub that is believed by `trust_hub_fields` passes on what its users send."""
    assert len(value) == 32
    for _ in range(2):
        reader = RequestReader(LIMITS, OUR_HUB)
        assert taken(reader, head(b"X-Request-Id: " + value)) == (found, names)


@pytest.mark.parametrize(
    "value",
    [
        b"a\r\nTransfer-Encoding: chunkedxyz",
        b"a\r\nContent-Length: 10000000000ab",
        b"a\r\n folded: 0123456789abcdefghij",
    ],
)
def test_a_wrong_line_at_the_place_of_an_id_is_a_fault(value: bytes) -> None:
    assert len(value) == 32
    with pytest.raises(Fault):
        RequestReader(LIMITS, OUR_HUB).take(head(b"X-Request-Id: " + value), LIMITS)


def test_an_untrusted_hub_names_no_id() -> None:
    assert taken(RequestReader(LIMITS, HubOrigin()), head(b"X-Request-Id: " + ID)) == (b"", [])
