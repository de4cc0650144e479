"""FastAPI: a page with a WebSocket, a redirect of a missing slash, a redirect after a form, the docs page."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Form, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi_offline import FastAPIOffline

app: FastAPI = FastAPIOffline(title="Shop")  # FastAPI, whose docs page needs no CDN
items: list[str] = ["pear"]

PAGE = """<!doctype html><title>Shop</title><link rel="icon" href="data:,">
<p id="said"></p><form method="post" action="items/"><input name="name"><button>Add</button></form>
<script>
  const socket = new WebSocket(new URL("ws", location.href.replace(/^http/, "ws")));
  socket.onopen = () => socket.send("hello");
  socket.onmessage = (event) => { document.getElementById("said").textContent = event.data; };
</script>"""


@app.get("/", response_class=HTMLResponse)
def index() -> str:
    """The page with the form and the WebSocket."""
    return PAGE


@app.get("/items/")
def list_items() -> list[str]:
    """All items. Starlette redirects `/items` here."""
    return items


@app.post("/items/", include_in_schema=False)
def add(request: Request, name: Annotated[str, Form()]) -> RedirectResponse:
    """Add an item, and redirect to the list by an absolute URL."""
    items.append(name)
    return RedirectResponse(str(request.url_for("list_items")), status_code=303)


@app.get("/me")
def me(request: Request) -> dict[str, str]:
    """The request as the app sees it."""
    return {
        "client": request.client.host if request.client else "",
        "url": str(request.url),
        "root_path": request.scope.get("root_path", ""),
    }


@app.websocket("/ws")
async def echo(socket: WebSocket) -> None:
    """Echo each message."""
    await socket.accept()
    try:
        while True:
            await socket.send_text(f"echo {await socket.receive_text()}")
    except WebSocketDisconnect:
        pass
