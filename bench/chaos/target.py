"""The target of a scenario's routes: `python -m bench.chaos.target NAME` serves 127.0.0.1:9000 in its namespace.

| path | response |
| --- | --- |
| `/small?bytes=N&after_s=S` (GET, POST) | N bytes after S seconds, and the target's name in `X-Target` |
| `/stream` | an event each 0.5 s |
| `/bytes` | zeros without end |
| `/sink` (PUT) | 200 once the body has arrived |
| `/silent` | none |

Standard output has JSON lines with `listening`, `waiting`, `silent`, `gone`, and each 0.25 s `received`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from aiohttp import web

__all__ = ["PORT"]

PORT = 9000
_CHUNK = bytes(1 << 16)
_REPORT_S = 0.25


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


class Target:
    """Its handlers, and what it counts."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._received = 0
        self._silent = 0
        self._waiting = 0

    async def small(self, request: web.Request) -> web.Response:
        if "after_s" in request.query:
            self._waiting += 1
            say(waiting=self._waiting)
            await asyncio.sleep(float(request.query["after_s"]))
        body = bytes(int(request.query.get("bytes", "10")))
        return web.Response(body=body, headers={"X-Target": self._name})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"data: tick\n\n")
            await asyncio.sleep(0.5)

    async def bytes(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(_CHUNK)

    async def sink(self, request: web.Request) -> web.Response:
        async for chunk in request.content.iter_any():
            self._received += len(chunk)
        return web.Response(text="all of it", headers={"X-Target": self._name})

    async def silent(self, request: web.Request) -> web.Response:
        self._silent += 1
        say(silent=self._silent)
        try:
            await asyncio.Event().wait()
        finally:
            say(gone=time.time())
        raise AssertionError("an event that nobody sets")

    async def report(self) -> None:
        before = 0
        while True:
            if self._received != before:
                before = self._received
                say(at=time.time(), received=before)
            await asyncio.sleep(_REPORT_S)


async def main(name: str) -> None:
    """The process."""
    target = Target(name)
    app = web.Application()
    app.router.add_get("/small", target.small)
    app.router.add_post("/small", target.small)
    app.router.add_get("/stream", target.stream)
    app.router.add_get("/bytes", target.bytes)
    app.router.add_put("/sink", target.sink)
    app.router.add_get("/silent", target.silent)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", PORT, backlog=1024).start()
    say(listening=PORT)
    await target.report()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
