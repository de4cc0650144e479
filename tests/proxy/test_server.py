"""The client's connection: every state meets every event, and the picture of its table is the table."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from typing import Any

import pytest

from agent.messages import Target
from agent.outcome import Kind, Stage
from agent.proxy import Proxy, Upstreams
from agent.proxy import client_states as states
from agent.proxy.client_states import NEXT, Event, State
from fastpipe import create_pipe

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


def drawn() -> dict[tuple[str, str], str]:
    """The transitions in the picture of the module's docstring."""
    assert states.__doc__ is not None
    picture = states.__doc__.partition("\n\n")[2].partition("\n\n")[0]
    found: dict[tuple[str, str], str] = {}
    state = ""
    for line in picture.splitlines():
        begun = re.match(r" +([A-Z]+): ", line)
        if begun is not None:
            state = begun[1]
        for event, following in re.findall(r"([A-Z_]+) ─► ([A-Z]+)", line):
            assert (state, event) not in found
            found[state, event] = following
    return found


def test_the_picture_is_the_table() -> None:
    assert drawn() == {(state.name, event.name): after.name for (state, event), after in NEXT.items()}


def test_every_state_can_be_reached_and_left() -> None:
    assert set(NEXT.values()) == set(State)
    assert {state for state, _ in NEXT} == set(State)
    assert {state for state in State if NEXT[state, Event.LOST] is not State.CLOSED} == set()


class Idle:
    """A proxy whose requests wait for their policy forever, with one client on a pipe."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[Kind, Stage]] = []
        self.upstreams = Upstreams()
        self.proxy = Proxy(route=self._route, upstreams=self.upstreams)
        self.ours, theirs = create_pipe()
        theirs.set_protocol(self.proxy.connection(1, lambda conn_id, kind, stage: self.outcomes.append((kind, stage))))
        self.ours.set_protocol(asyncio.Protocol())

    async def _route(self, head: Any) -> Target:
        return await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        self.proxy.close()
        self.ours.abort()
        assert await self.proxy.wait_drained(5)
        await self.upstreams.close()


async def brought_to(idle: Idle, state: State) -> Any:
    """The client's connection, in this state by its own events."""
    await asyncio.sleep(0)
    (connection,) = idle.proxy._connections
    if state in (State.BODY, State.DRAINING, State.LINGERING):
        connection.data_received(POST)
    elif state is not State.HEAD:
        connection.data_received(GET)
    if state is State.DRAINING:
        connection._exchange.fail(404, "not here", "policy")
    elif state is State.UPGRADED:
        connection._state = state  # by a target's 101, for which test_upgrade.py has targets
    elif state is State.LINGERING:
        connection._exchange.fail(404, "not here", "policy", close=True)
    elif state is State.CLOSED:
        connection.abort()
    assert connection._state is state
    return connection


@pytest.mark.parametrize(
    ("state", "event"),
    list(itertools.product(State, Event)),
    ids=lambda each: each.name,
)
async def test_an_event_without_an_entry_closes_the_connection(
    state: State, event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="agent.proxy.server")
    idle = Idle()
    connection = await brought_to(idle, state)
    connection._move(event)
    lines = [record for record in caplog.records if "has no way" in record.getMessage()]
    after = NEXT.get((state, event))
    if after is not None:
        assert connection._state is after
        assert not lines
    else:
        (line,) = lines
        assert line.levelno == logging.ERROR
        assert (line.__dict__["fault"], line.__dict__["conn_id"]) == ("agent", 1)
        assert f"from {state.name} by {event.name}" in line.getMessage()
        assert connection._state is State.CLOSED
        assert connection._transport.is_closing()
        assert idle.proxy.requests_in_flight == 0
        assert len(idle.outcomes) == 1
    await idle.close()
