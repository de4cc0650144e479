"""Each rule that a head can break, with the response to the client and the `rule` in the log.

Both parsers and both twins give the same result.
"""

from __future__ import annotations

import asyncio
import logging
import pathlib
import re

import pytest

from agent.messages import Target
from agent.proxy import ProxyLimits
from agent.proxy.heads import Fault, parse_request, parse_response
from agent.proxy.readers import RequestHeadReader, ResponseHeadReader
from agent.proxy.rules import RULES, HeadError

from ..own_responses import reason_of

LIMITS = ProxyLimits(target_bytes=64, request_head_bytes=512, response_head_bytes=512)
FIRST, ANSWER = b"POST / HTTP/1.1\r\nHost: a\r\n", b"HTTP/1.1 200 OK\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: %b\r\n"

# By rule. The bytes of each need not be a whole head.
LINES = {
    "empty-lines": [b"\r\n" * 9 + FIRST],
    "bare-lf": [b"GET / HTTP/1.1\nHost: a\n\n", b"\nGET / HTTP/1.1\r\n", b"\r\n\n"],
    "bare-cr": [b"GET / HTTP/1.1\r\r\n", b"\rGET / HTTP/1.1\r\n", b"GET /\ra HTTP/1.1\r\n"],
    "nul": [b"GET /\0 HTTP/1.1\r\n", b"\0"],
    "line-byte": [b"GET\t/ HTTP/1.1\r\n", b"GET /\xe9 HTTP/1.1\r\n", b"\x16\x03\x01\x02"],
    "line-form": [
        b"GET  / HTTP/1.1\r\n",
        b"GET /\r\n",
        b"GET / HTTP/1.1 \r\n",
        b" GET / HTTP/1.1\r\n",
        b"G T / HTTP/1.1\r\n",
    ],
    "method-length": [b"A" * 33 + b" / HTTP/1.1\r\n", b"A" * 34],
    "method-token": [b"GE(T / HTTP/1.1\r\n", b"GET: / HTTP/1.1\r\n"],
    "version-form": [b"GET / http/1.1\r\n", b"GET / HTTP/1.10\r\n", b"GET / RTSP/1.0\r\n", b"GET / HTTP/1\r\n"],
    "target-asterisk": [b"GET * HTTP/1.1\r\n"],
    "target-form": [b"GET http://a/ HTTP/1.1\r\n", b"GET a HTTP/1.1\r\n", b"OPTIONS a:80 HTTP/1.1\r\n"],
    "target-authority": [
        b"CONNECT / HTTP/1.1\r\n",
        b"CONNECT a HTTP/1.1\r\n",
        b"CONNECT a: HTTP/1.1\r\n",
        b"CONNECT a:0 HTTP/1.1\r\n",
        b"CONNECT a:65536 HTTP/1.1\r\n",
        b"CONNECT u@a:80 HTTP/1.1\r\n",
        b"CONNECT http://a:80 HTTP/1.1\r\n",
        b"CONNECT a..b:80 HTTP/1.1\r\n",
        b"CONNECT [::1%25lo]:80 HTTP/1.1\r\n",
        b"CONNECT ::1:80 HTTP/1.1\r\n",
        b"CONNECT a%2eb:80 HTTP/1.1\r\n",
    ],
    "target-byte": [b"GET /#f HTTP/1.1\r\n", b"GET /a\\b HTTP/1.1\r\n", b"GET /?a#b HTTP/1.1\r\n"],
    "dot-segment": [b"GET /a/.. HTTP/1.1\r\n", b"GET /%2e/a HTTP/1.1\r\n", b"GET /a/.%00/b HTTP/1.1\r\n"],
}
FIELDS = {  # of requests and responses
    "bare-lf": [b"X: y\n\r\n", b"X: y\r\n\n", b"X: y\nZ: z\r\n\r\n", b"\n"],
    "bare-cr": [b"X: y\rz\r\n\r\n", b"X: y\r\r\n\r\n", b"\rX: y\r\n\r\n"],
    "nul": [b"X: y\0z\r\n\r\n", b"\0X: y\r\n\r\n", b"X\0: y\r\n\r\n", b"X: \0"],
    "folded-line": [b"X: y\r\n z\r\n\r\n", b"X: y\r\n\tz\r\n\r\n", b" X: y\r\n\r\n", b"X: y\t\r\n \r\n\r\n"],
    "no-colon": [b"X\r\n\r\n", b"X y\r\n\r\n", b"X=y\t\r\n\r\n"],
    "name-empty": [b": y\r\n\r\n", b":\r\n\r\n"],
    "name-space": [b"X : y\r\n\r\n", b"X\t: y\r\n\r\n", b"Content-Length : 5\r\n\r\n"],
    "name-byte": [b"X Y: z\r\n\r\n", b"(X): y\r\n\r\n", b"X\xe9: y\r\n\r\n", b"X\x7f: y\r\n\r\n"],
    "value-byte": [b"X: \x01\r\n\r\n", b"X: \x7f\r\n\r\n", b"Transfer-Encoding:\x0bchunked\r\n\r\n"],
    "length-repeated": [b"Content-Length: 5\r\nX: y\r\ncontent-length: 5\r\n\r\n"],
    "length-value": [
        b"Content-Length: +5\r\n\r\n",
        b"Content-Length: 5, 5\r\n\r\n",
        b"Content-Length: 0x5\r\n\r\n",
        b"Content-Length: -0\r\n\r\n",
        b"Content-Length: 5 5\r\n\r\n",
        b"Content-Length:\r\n\r\n",
        b"Content-Length: \xb2\r\n\r\n",
    ],
    "length-size": [
        b"Content-Length: 9223372036854775808\r\n\r\n",
        b"Content-Length: 18446744073709551616\r\n\r\n",
        b"Content-Length: " + b"0" * 20 + b"\r\n\r\n",
        b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
    ],
    "length-with-coding": [
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
    "coding-repeated": [b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"],
    "coding-value": [
        b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n\r\n",
        b"Transfer-Encoding: chunked;q=1\r\n\r\n",
        b"Transfer-Encoding:\r\n\r\n",
        b'Transfer-Encoding: "chunked"\r\n\r\n',
    ],
    "coding-unknown": [b"Transfer-Encoding: gzip\r\n\r\n", b"Transfer-Encoding: identity\t\r\n\r\n"],
}
REQUESTS = {
    "framing-disguised": [FIRST + b"Transfer_Encoding: chunked\r\n\r\n", FIRST + b"content_length: 0\r\n\r\n"],
    "coding-version": [b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"],
    "host-missing": [b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: y\r\n\r\n"],
    "host-repeated": [FIRST + b"Host: a\r\n\r\n"],
    "host-value": [b"GET / HTTP/1.0\r\nHost: a, b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"],
    "connection-names": [FIRST + b"Connection: close, Host\r\n\r\n", FIRST + b"Connection: impersonate_user\r\n\r\n"],
    "connect-body": [
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    "upgrade-body": [
        FIRST + UPGRADE % b"websocket" + b"Transfer-Encoding: chunked\r\n\r\n",
        FIRST + UPGRADE % b"tcp, Spdy/3.1" + b"Content-Length: 65537\r\n\r\n",
    ],
} | {rule: [FIRST + lines for lines in found] for rule, found in FIELDS.items()}
RESPONSES = {
    "not-http1": [b"<html>", b"\r\n", b"HTTP/2.0 200 OK\r\n", b"ICY 200 OK\r\n\r\n", b"H\0", b"SSH-2.0-x\r\n"],
    "status-version": [b"HTTP/1.2 200 OK\r\n\r\n", b"HTTP/1.11 200 OK\r\n\r\n", b"HTTP/1.1200\r\n\r\n"],
    "status-form": [
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
    ],
    "status-range": [
        b"HTTP/1.1 600 X\r\n\r\n",
        b"HTTP/1.1 999 X\r\n\r\n",
        b"HTTP/1.1 099 X\r\n\r\n",
        b"HTTP/1.1 000\r\n\r\n",
    ],
    "reason-byte": [b"HTTP/1.1 200 O\x01K\r\n\r\n", b"HTTP/1.1 200 O\x7fK\r\n\r\n"],
    "bare-lf": [b"HTTP/1.1 200 OK\nX: y\n\nbody", b"HTTP/1.1 200\n"],
    "nul": [b"HTTP/1.1 200 \0\r\n"],
    "coding-version": [b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    "head-size": [ANSWER + b"X: " + b"y" * 600],
}
for rule, found in FIELDS.items():
    RESPONSES[rule] = RESPONSES.get(rule, []) + [ANSWER + lines for lines in found]
ELSEWHERE = {
    "upgrade-base-hub": "tests/connections/test_real_proxy.py",
    "switch-unasked": "test_a_101_that_was_not_asked_for_names_its_rule",
    "head": "no head is known that llhttp rejects and no rule names",
}


def request_ends(parts: list[bytes], fast: bool) -> tuple[int, str, str]:
    """Status, text and rule of the response to these bytes."""
    reader = RequestHeadReader(LIMITS, serves_connect=True)
    try:
        for part in parts:
            head, _ = reader.take(part)
            if head is not None:
                parse_request(head, LIMITS, None, fast, serves_connect=True)
    except Fault as fault:
        return fault.status, fault.reason, fault.rule
    raise AssertionError("nothing was found wrong")


def response_ends(parts: list[bytes]) -> tuple[str, str]:
    """Text and rule of what is wrong with these bytes."""
    reader = ResponseHeadReader(LIMITS)
    try:
        for part in parts:
            reader.take(part)
    except HeadError as error:
        return str(error), error.rule
    raise AssertionError("nothing was found wrong")


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize("rule", LINES)
def test_a_request_line_that_breaks_a_rule_is_a_400_that_names_it(rule: str) -> None:
    for data in LINES[rule]:
        for parts in ([data], bytewise(data)):
            assert request_ends(parts, False) == (400, f"malformed request line: {RULES[rule].text}", rule), data
            if rule != "empty-lines" and parts[0] is data:
                whole = [data + b"\r\n\r\n"]
                assert request_ends(whole, True)[2] == request_ends(whole, False)[2] == rule, data


@pytest.mark.parametrize("rule", REQUESTS)
def test_a_request_head_that_breaks_a_rule_is_a_400_that_names_it(rule: str) -> None:
    told = (400, f"malformed request head: {RULES[rule].text}", rule)
    if rule == "coding-unknown":
        told = (501, RULES[rule].text, rule)
    for data in REQUESTS[rule]:
        for fast in (False, True):
            assert request_ends([data], fast) == told, data
            assert request_ends(bytewise(data), fast) == told, data


@pytest.mark.parametrize("rule", RESPONSES)
def test_a_response_head_that_breaks_a_rule_is_told_with_it(rule: str) -> None:
    told = (f"the target sent a malformed response head: {RULES[rule].text}", rule)
    for data in RESPONSES[rule]:
        assert response_ends([data]) == response_ends(bytewise(data)) == told, data
        if data.endswith(b"\r\n\r\n"):
            for fast in (False, True):
                with pytest.raises(HeadError) as caught:
                    parse_response(data, fast)
                assert (str(caught.value), caught.value.rule) == told, data


def test_every_rule_has_its_case_and_its_line_in_the_docs() -> None:
    assert {*LINES, *REQUESTS, *RESPONSES, *ELSEWHERE} == set(RULES)
    page = pathlib.Path(__file__).parents[2] / "docs" / "operating.md"
    if not page.exists():
        pytest.skip("installed, and no checkout")
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \| (?:request|response)", page.read_text(), re.MULTILINE)) == set(RULES)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nOK",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nOK",
        b"HTTP/1.1 200 OK\r\nX: y\rz",
        b"HTTP/1.1 200 OK\r\nX: \0",
        b"OK",
        b"<html>\n",
        b"\r\nHTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nOK",
    ],
)
@pytest.mark.parametrize("split", ["whole", "bytewise"])
async def test_a_target_whose_head_can_be_none_is_a_502_at_once(stack, origin, caplog, head, split):
    """The target sends no more and stays connected, so only its bytes can end the wait."""
    caplog.set_level(logging.WARNING, "agent.proxy")

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for part in [head] if split == "whole" else bytewise(head):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async with origin(target) as o, stack(o.url, limits={"first_byte_timeout_s": 600}) as h:
        client = await h.open()
        answer = await client.get()
        found = response_ends([head])
        assert (answer.status, reason_of(answer.body)) == (502, found[0].encode() + b"\n")
        (record,) = caplog.records
        assert (record.rule, record.fault, record.stage) == (found[1], "target", "response head")


async def test_a_101_that_was_not_asked_for_names_its_rule(stack, origin, answering, caplog):
    caplog.set_level(logging.WARNING, "agent.proxy")
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    async with origin(answering(switching)) as o, stack(o.url) as h:
        client = await h.open()
        assert (await client.get()).status == 502
        assert [record.rule for record in caplog.records] == ["switch-unasked"]


async def test_a_refused_request_is_a_line_with_its_rule(stack, caplog):
    caplog.set_level(logging.INFO, "agent.proxy")
    async with stack(lambda head: Target("http://127.0.0.1:9")) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n")
        answer = await client.answer()
        assert reason_of(answer.body) == b"malformed request head: a field line begins with white space\n"
        assert [record.rule for record in caplog.records] == ["folded-line"]
