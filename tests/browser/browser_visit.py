"""One visit of a page by Chromium, and all that happened in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, WebSocket, expect

from ..limits import scaled

WAIT_MS = scaled(30.0) * 1000
expect.set_options(timeout=WAIT_MS)


class Visit:
    """A new browser context. It collects each request, response, socket and message of all its pages.

    Attributes:
        page: the first page.
        sockets: the URLs of all WebSockets.
        frames: how many frames arrived on them.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        """url: the origin or prefix that no request may leave, with a slash at its end."""
        self.url = url
        self.urls: list[str] = []
        self.sockets: list[str] = []
        self.frames = 0
        self.faults: list[str] = []
        self.context = browser.new_context()
        self.context.set_default_timeout(WAIT_MS)
        self.context.on("request", self._on_request)
        self.context.on("requestfailed", self._on_failed)
        self.context.on("response", self._on_response)
        self.context.on("page", self._on_page)
        self.context.on("console", self._on_console)
        self.context.on("weberror", lambda error: self.faults.append(f"uncaught: {error.error}"))
        self.page = self.context.new_page()

    def _on_request(self, request: Request) -> None:
        self.urls.append(request.url)

    def _on_failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page itself cancelled it: it left, or polls no more
            self.faults.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.request.method} {response.url}")

    def _on_console(self, message: ConsoleMessage) -> None:
        url = message.location.get("url", "")
        if (
            message.type == "error" and urlsplit(url).path != "/favicon.ico"
        ):  # the browser's own, of a page without icon
            self.faults.append(f"console: {message.text} ({url})")

    def _on_page(self, page: Page) -> None:
        page.on("websocket", self._on_socket)

    def _on_socket(self, socket: WebSocket) -> None:
        self.sockets.append(socket.url)
        socket.on("framereceived", self._on_frame)
        socket.on("socketerror", lambda error: self.faults.append(f"socket: {socket.url}: {error}"))

    def _on_frame(self, _payload: Any) -> None:
        self.frames += 1

    def open(self, path: str = "") -> Page:
        """Open a path below the URL in the first page, and wait for its load."""
        self.page.goto(self.url + path)
        return self.page

    def fetch(self, path: str, headers: dict[str, str]) -> Any:
        """The JSON that the page's `fetch` gets from a path below the URL."""
        script = "([url, headers]) => fetch(url, { headers }).then(response => response.json())"
        return self.page.evaluate(script, [self.url + path, headers])

    def check(self) -> None:
        """Nothing failed, and nothing left the origin or prefix."""
        outside = [url for url in self.urls + self.sockets if not self._is_inside(url)]
        assert not outside, f"requests left {self.url}: {outside}"
        assert not self.faults, "\n".join(self.faults)
        assert self.urls

    def _is_inside(self, url: str) -> bool:
        origin = urlsplit(self.url)._replace(path="/").geturl()
        if url.startswith(("data:", "about:", f"blob:{origin}")):
            return True
        return url.replace("wss://", "https://", 1).startswith(self.url)

    def close(self) -> None:
        self.context.close()


Open = Callable[[str], Visit]
"""visit(url): a visit that ends with the test."""
