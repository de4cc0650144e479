"""One log line for each failure: its stage, its conn_id and its status as fields, never in the text."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agent.errors import Refused
from agent.messages import RequestHead, Target
from agent.proxy import Proxy, ProxyLimits, Upstreams
from agent.telemetry.logs import KeyValueFormatter
from fastpipe import create_pipe

GET = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


def route(head: RequestHead) -> Target:
    if head.target.startswith(b"/refused"):
        raise Refused(404, "no route for this path")
    if head.target == b"/bug":
        raise KeyError("a secret")
    return Target("http://127.0.0.1:9/")  # nobody listens on the discard port


class Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


@pytest.mark.parametrize(
    ("sent", "fields"),
    [
        (GET % b"refused", {"level": "info", "stage": "policy", "status": "404", "host": "a", "path": "/refused"}),
        (GET % b"bug", {"level": "error", "stage": "policy", "status": "503", "method": "GET", "path": "/bug"}),
        (GET % b"refused?secret", {"status": "404", "path": "/refused"}),
        (GET % (b"refused/" + b"x" * 200), {"status": "404", "path": "/refused/" + "x" * 91}),
        (GET % b"", {"level": "warning", "stage": "connect", "status": "502", "target": "127.0.0.1:9"}),
        (b"GET / HTTP/3.0\r\n\r\n", {"level": "info", "stage": '"request head"', "status": "505"}),
    ],
    ids=["refused", "bug", "query", "long", "unreachable", "malformed"],
)
async def test_a_failure_is_one_line_with_its_fields(
    caplog: pytest.LogCaptureFixture, sent: bytes, fields: dict[str, str]
) -> None:
    caplog.set_level(logging.INFO, "agent.proxy")
    upstreams = Upstreams()
    proxy = Proxy(route=route, upstreams=upstreams, limits=ProxyLimits(linger_s=0.05))
    near, far = create_pipe()
    client = Client()
    far.set_protocol(proxy.connection(7, lambda *_: None))
    near.set_protocol(client)
    near.write(sent)
    async with asyncio.timeout(10):
        while b"\r\n\r\n" not in client.received:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    near.abort()
    await client.lost
    proxy.close()
    await upstreams.close()

    records = [record for record in caplog.records if record.name.startswith("agent.proxy")]
    assert len(records) == 1, caplog.text
    record: Any = records[0]
    assert record.conn_id == 7
    assert "conn_id" not in record.getMessage()
    line = KeyValueFormatter().format(record).splitlines()[0]
    for key, value in fields.items():
        assert f" {key}={value} " in f"{line} "
    assert "secret" not in line
    assert client.received.split(b" ")[1] == fields["status"].encode()
