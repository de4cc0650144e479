"""Chromium by HTTP/2: pages, a WebSocket by extended CONNECT, and many requests, all on one connection."""

from __future__ import annotations

import pathlib

from playwright.sync_api import expect

from .browser_processes import APPS, HubProcess, Start
from .browser_visit import Open

ESTABLISHED = "01"


def open_connections(port: int) -> int:
    """The TCP connections that a server's port has."""
    rows = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[1].partition(":")[2], 16) == port and row[3] == ESTABLISHED for row in rows)


def test_a_page_and_its_websocket_share_a_connection(start: Start, visit: Open, hub: HubProcess) -> None:
    url = start(APPS / "fastapi", example="test_fastapi").url
    seen = visit(url)
    before = open_connections(hub.http_port)
    page = seen.open()
    expect(page.locator("#said")).to_have_text("echo hello")
    assert len(seen.sockets) == 1
    protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
    assert page.evaluate(protocol) == "h2"
    script = "url => Promise.all(Array.from({length: 100}, () => fetch(url).then(r => r.status)))"
    assert page.evaluate(script, f"{url}items/") == [200] * 100
    seen.check()
    # By HTTP/1.1 the WebSocket alone would need a connection, and the requests six.
    assert open_connections(hub.http_port) <= max(before, 1)
