"""Users of a hub: `python -m bench.chaos.user WHAT URL …`. SIGTERM stops it. Standard output has JSON lines.

| WHAT | does | lines |
| --- | --- | --- |
| `gets URL EVERY_S` | a GET each EVERY_S, even if earlier ones fail | began, took_s, status, target, `said` |
| `posts URL EVERY_S` | the same with a POST of one byte | the same |
| `batch URL COUNT` | COUNT GETs at once | the same |
| `reads URL` | one GET without end | at, received; at its end `ended` |
| `writes URL BYTES EVERY_S FOR_S` | a PUT that sends BYTES each EVERY_S, FOR_S long | as `gets` |
| `leaves URL COUNT` | COUNT connections with a GET each, all closed at once (FIN) on SIGUSR1 | asked, left |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp

__all__ = ["LATE_S"]

LATE_S = 5.0
"""A response that takes longer is lost: users wait so long at most."""

_TIMEOUT_S = 120.0
_REPORT_S = 0.25
_SAID_BYTES = 200  # of a failure's text


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def stopping(which: signal.Signals = signal.SIGTERM) -> asyncio.Event:
    """An event that a signal sets."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(which, event.set)
    return event


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S, sock_connect=5)
    )


async def ask(
    session: aiohttp.ClientSession, url: str, method: str = "GET", body: AsyncIterator[bytes] | bytes | None = None
) -> None:
    """One request, and its line. Status 0: no response."""
    began, status, target, said = time.time(), 0, "", ""
    started_s = time.monotonic()
    try:
        async with session.request(method, url, data=body) as response:
            content = await response.read()
            status, target = response.status, response.headers.get("X-Target", "")
            said = "" if status == 200 else content[:_SAID_BYTES].decode("latin-1")
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass  # status 0
    finally:
        say(began=began, took_s=round(time.monotonic() - started_s, 4), status=status, target=target, said=said)


async def asks(url: str, every_s: float, method: str, body: bytes | None) -> None:
    stop = stopping()
    asked: set[asyncio.Task[None]] = set()
    async with client() as session:
        while not stop.is_set():
            task = asyncio.ensure_future(ask(session, url, method, body))
            asked.add(task)
            task.add_done_callback(asked.discard)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), every_s)
        if asked:
            await asyncio.wait(asked, timeout=LATE_S + 1)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def batch(url: str, count: int) -> None:
    async with client() as session:
        await asyncio.gather(*(ask(session, url) for _ in range(count)))


async def reads(url: str) -> None:
    received, said_s, how = 0, 0.0, "whole"
    try:
        async with client() as session, session.get(url) as response:
            async for chunk in response.content.iter_any():
                received += len(chunk)
                if time.monotonic() - said_s >= _REPORT_S:
                    said_s = time.monotonic()
                    say(at=time.time(), received=received)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        how = type(error).__name__
    say(at=time.time(), received=received, ended=how)


async def writes(url: str, size: int, every_s: float, for_s: float) -> None:
    async def body() -> AsyncIterator[bytes]:
        until_s = time.monotonic() + for_s
        while time.monotonic() < until_s:
            yield bytes(size)
            await asyncio.sleep(every_s)

    async with client() as session:
        await ask(session, url, "PUT", body())


async def leaves(url: str, count: int) -> None:
    leave = stopping(signal.SIGUSR1)
    parts = urlsplit(url)
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        writers.append(writer)
    say(asked=count)
    await leave.wait()
    for writer in writers:
        writer.close()
    say(left=time.time())
    await asyncio.sleep(_TIMEOUT_S)


async def main(what: str, url: str, *values: str) -> None:
    """The process."""
    numbers = [float(value) for value in values]
    if what == "gets":
        await asks(url, numbers[0], "GET", None)
    elif what == "posts":
        await asks(url, numbers[0], "POST", b"1")
    elif what == "batch":
        await batch(url, int(numbers[0]))
    elif what == "reads":
        await reads(url)
    elif what == "writes":
        await writes(url, int(numbers[0]), numbers[1], numbers[2])
    elif what == "leaves":
        await leaves(url, int(numbers[0]))
    else:
        raise SystemExit(f"unknown user: {what}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
