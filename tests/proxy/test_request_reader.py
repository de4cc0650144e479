"""The requests of one connection: repeated heads, and the id at a head's end."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agent.messages import Target
from agent.proxy import HubOrigin, ProxyLimits
from agent.proxy.head_writer import head_for_target
from agent.proxy.heads import Fault, Request
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


REPORTS = (
    b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\nX-Forwarded-Port: 80",
    b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\nX-Forwarded-Prefix: /c1",
    b"X-Forwarded-For: 192.0.2.1, 10.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: b.test:81",
    b"X-Forwarded-For:  192.0.2.1 \r\nX-Forwarded-Proto: http",
    b"X-Forwarded-For: 192.0.2.1\r\nCookie: a=b",
    b"X-Forwarded-For: 192.0.2.1\r\nContent-Length: 3",
    b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded_Proto: https",
    b"X-Forwarded-For: " + b"1" * 2000,
    b"X-Forwarded-Proto: http",
    b"Accept: text/html",
)
USERS_FIELDS = (
    b"Accept: */*",
    b"Cookie: a=b; c=d",
    b"X-Real-IP: 192.0.2.9",
    b"X_Forwarded_For: 192.0.2.9",
    b"X-Forwarded-For: 192.0.2.9",
    b"Connection: close",
    b"Content-Length: 2",
    b"Transfer-Encoding: chunked",
    b"Upgrade: websocket\r\nConnection: upgrade",
    b"Expect: 100-continue",
    b"Destination: /c1/x",
    b"Forwarded: for=192.0.2.9",
    b"Referer : x",
    b"A: \x00",
)


def facts_of(request: Request) -> dict[str, Any]:
    """All that a request states, and what a target gets of it."""
    names = "method is_1_0 host fields received length keep_alive upgrade expects_continue takes_trailers has_urls"
    reported = "peer scheme public_host prefix prefix_text request_id"
    facts = {name: getattr(request, name) for name in f"{names} {reported}".split()}
    target = Target("http://t")
    written = head_for_target(request, b"/", request.fields, target, b"1").as_http1()
    return facts | {"written": sorted(written.split(b"\r\n"))}


@pytest.mark.parametrize("seed", range(8))
def test_a_report_that_repeats_changes_no_request(seed: int) -> None:
    """Each head is read behind others, and by a new reader, with the same result."""
    dice = random.Random(seed)
    reports = dice.sample(REPORTS, 3)
    compared = 0
    reader = RequestReader(LIMITS, OUR_HUB)
    for _ in range(400):
        chosen = dice.choices(USERS_FIELDS, (9, 9, 1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 0.2, 0.2), k=dice.randrange(4))
        host = dice.choices((b"a", b"b.test:81", b"agent"), (8, 2, 1))[0]
        lines = [b"%s /c1/%d HTTP/1.1" % (dice.choice((b"GET", b"POST")), dice.randrange(2)), b"Host: " + host]
        ended = [*lines, *chosen, dice.choice(reports), b"X-Request-Id: " + ID, b"", b""]
        data = b"\r\n".join(ended)
        new, old = RequestReader(LIMITS, OUR_HUB), reader
        results: list[object] = []
        for each in (new, old):
            try:
                assert bytes(each.take(data, LIMITS)) == b""
                assert each.request is not None
                results.append((facts_of(each.request), each.own_target, each.request_id))
            except Fault as fault:
                results.append((fault.status, fault.reason))
                reader = RequestReader(LIMITS, OUR_HUB)
        assert results[0] == results[1], data
        compared += 1
    assert compared == 400


def test_a_report_counts_among_the_fields_of_a_head() -> None:
    limits = ProxyLimits(request_fields=6)
    reader = RequestReader(limits, OUR_HUB)
    report = REPORTS[0] + b"\r\nX-Request-Id: " + ID
    for number in range(3):
        reader.take(head(b"A: %d\r\n" % number + report), limits)
        assert reader.request is not None
        assert reader.request.peer == "192.0.2.1"
    with pytest.raises(Fault, match="too many header fields"):
        reader.take(head(b"A: 1\r\nB: 2\r\n" + report), limits)
