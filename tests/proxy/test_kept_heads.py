"""A connection keeps the head of an ended request that may be repeated, but no large head."""

from __future__ import annotations

import asyncio

import pytest

from agent.errors import Refused
from agent.messages import RequestHead, Target
from agent.proxy import Proxy, Upstreams
from agent.proxy.heads import KEPT_BYTES
from fastpipe import create_pipe


def refuse(head: RequestHead) -> Target:
    raise Refused(404, "no route for this path")


class Answers(asyncio.Protocol):
    def __init__(self) -> None:
        self.answered = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.answered.set()


@pytest.mark.parametrize(
    ("bytes_in_target", "bytes_in_field", "kept", "head_kept"),
    [(1, 10, True, True), (1, KEPT_BYTES, False, False), (KEPT_BYTES, 10, True, False)],
    ids=["short", "long", "long target"],
)
async def test_an_idle_connection_holds_no_long_head(
    bytes_in_target: int, bytes_in_field: int, kept: bool, head_kept: bool
) -> None:
    upstreams = Upstreams()
    proxy = Proxy(route=refuse, upstreams=upstreams)
    near, far = create_pipe()
    connection = proxy.connection(1, lambda *_: None)
    far.set_protocol(connection)
    answers = Answers()
    near.set_protocol(answers)
    for _ in range(3):
        answers.answered.clear()
        target = b"x" * bytes_in_target
        near.write(b"GET /" + target + b" HTTP/1.1\r\nHost: a\r\nCookie: " + b"c" * bytes_in_field + b"\r\n\r\n")
        await answers.answered.wait()
        requests = connection._requests
        assert (requests._last is not None) is kept
        assert bool(requests._last_head) is bool(requests._last_target) is head_kept
        assert requests.own_target == b""
    near.close()
    proxy.close()
    await upstreams.close()
