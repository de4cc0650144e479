"""Responses that a route raises: a redirect and a page are nobody's fault, and nothing is logged."""

from __future__ import annotations

import pytest

from agent.errors import AgentError, Redirected, Responded

PAGE = Responded("<p>ü</p>", [(b"Content-Type", b"text/html; charset=utf-8"), (b"Cache-Control", b"no-store")])


@pytest.mark.parametrize(
    ("raised", "status", "field"),
    [
        (PAGE, b"200 OK", b"Cache-Control: no-store"),
        (Redirected(b"/c1/?q"), b"308 Permanent Redirect", b"Location: /c1/?q"),
    ],
)
async def test_a_route_may_respond_itself_and_the_connection_continues(
    stack, caplog: pytest.LogCaptureFixture, raised: AgentError, status: bytes, field: bytes
):
    def route(head):
        raise raised

    async with stack(route) as h:
        client = await h.open()
        for _ in range(2):
            client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await client.read_until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            assert field in head.split(b"\r\n")
            assert head.lower().count(b"content-type:") == 1
            assert b"X-Content-Type-Options: nosniff" in head
    assert not caplog.records


async def test_a_page_has_its_own_type_and_its_length(stack):
    def route(head):
        raise PAGE

    async with stack(route) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        head, _, body = (await client.read_until(b"</p>\n")).partition(b"\r\n\r\n")
        assert body.decode() == "<p>ü</p>\n"
        assert b"Content-Type: text/html; charset=utf-8" in head
        assert b"Content-Length: %d" % len(body) in head
