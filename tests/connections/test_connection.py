"""The state machine of a tunnel's connection, walked in both roles: every state meets every event."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from agent.connections.agent_connection import AgentConnection
from agent.connections.connection import AGENT_TRANSITIONS, HUB_TRANSITIONS, Event, State, TunnelConnection
from agent.connections.endings import Ending
from agent.connections.hub_connection import HubConnection
from agent.connections.inbound import UNBOUNDED_BYTES, FirstPacketBudget, Inbound
from agent.connections.probing import Prober
from agent.errors import TargetError
from agent.outcome import Kind, Stage

from .conftest import CLOSE, DATA, ERROR, RecordingOutbound, RecordingTunnel, until

OPEN, ENDING, FAILING, CLOSED = State
LOST = TargetError(502, "the agent was lost", stage="response head", fault="agent")


class RecordingCarrier:
    """A transport that records what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.written = b""
        self.buffered_bytes = 0

    def write(self, data: bytes | memoryview, /) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.buffered_bytes

    def write_eof(self) -> None:
        self.calls.append("eof")

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")


class Window:
    def __init__(self) -> None:
        self.unread_bytes: list[int] = []
        self.closed = False
        self.credit_bytes = 1000

    def arrived(self, size_bytes: int, /) -> bool:
        self.credit_bytes -= size_bytes
        return self.credit_bytes >= 0

    def unread(self, size_bytes: int, /) -> None:
        assert not self.closed
        self.unread_bytes.append(size_bytes)

    def close(self) -> None:
        self.closed = True


class Owner:
    """A manager or a session that records its calls. Also the proxy's end of a hub's carrier."""

    outcome_timeout_s = 60.0

    def __init__(self, *, closes: bool = True, window: Window | None = None) -> None:
        self.peer_closes = closes
        self.tunnel = RecordingTunnel()
        self.window = window
        self.closed: list[Ending | None] = []
        self.failed = self.caught_up = 0
        self.failure: object = None

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> RecordingOutbound:
        return self.tunnel.outbound(conn_id, pause, resume)

    def receive_window(self, conn_id: int) -> Window | None:
        return self.window

    def late_error(self, conn_id: int, text: str) -> None:
        self.tunnel.send(conn_id, ERROR, error_message=text)

    def connection_failed_inbound(self) -> None:
        self.failed += 1

    def connection_closed(self, connection: TunnelConnection, ending: Ending | None = None) -> None:
        assert connection.state is CLOSED
        self.closed.append(ending)

    def connection_caught_up(self, connection: TunnelConnection) -> None:
        self.caught_up += 1

    def set_extra_info(self, name: str, value: object) -> None:
        assert name == "failure"
        self.failure = value


def attached(connection: TunnelConnection, limit_bytes: int = UNBOUNDED_BYTES) -> RecordingCarrier:
    carrier = RecordingCarrier()
    budget = FirstPacketBudget()
    inbound = Inbound(carrier, budget, limit_bytes=limit_bytes, uncounted_bytes=UNBOUNDED_BYTES)
    connection.attach(carrier, inbound)
    return carrier


def hub(owner: Owner) -> tuple[HubConnection, RecordingCarrier]:
    connection = HubConnection(1, owner, owner)
    return connection, attached(connection)


def agent(owner: Owner) -> tuple[AgentConnection, RecordingCarrier]:
    connection = AgentConnection(1, owner)
    return connection, attached(connection)


TABLES = {"agent": AGENT_TRANSITIONS, "hub": HUB_TRANSITIONS}
MAKERS: dict[str, Callable[[Owner], tuple[TunnelConnection, RecordingCarrier]]] = {"agent": agent, "hub": hub}
WAYS: dict[tuple[str, State], list[Event]] = {
    ("agent", OPEN): [],
    ("agent", ENDING): [Event.OUTCOME],
    ("agent", FAILING): [Event.ABORT],
    ("agent", CLOSED): [Event.CANCELLED],
    ("hub", OPEN): [],
    ("hub", ENDING): [Event.PEER_ENDED],
    ("hub", CLOSED): [Event.ABORT],
}


def happen(connection: TunnelConnection, event: Event) -> None:
    """Cause the event by the role's own call. If the role has none, cause it in the state machine alone."""
    if event is Event.CARRIER_LOST:
        connection.connection_lost(None)
    elif isinstance(connection, AgentConnection) and event in (Event.OUTCOME, Event.CANCELLED, Event.OUTCOME_TIMEOUT):
        if event is Event.OUTCOME:
            connection.outcome_received(Kind.COMPLETE, Stage.IDLE)
        elif event is Event.CANCELLED:
            connection.cancelled("the client left")
        else:
            connection.outcome_timeout()
    elif isinstance(connection, (AgentConnection, HubConnection)) and event is Event.ABORT:
        connection.abort("a reason")
    elif isinstance(connection, HubConnection) and event is Event.PEER_ENDED:
        connection.peer_ended(LOST)
    elif isinstance(connection, HubConnection) and event is Event.DONE:
        connection._done()
    else:
        connection._move(event)


PAIRS = [(role, state, event) for role, state in WAYS for event in Event]


@pytest.mark.parametrize(("role", "state", "event"), PAIRS, ids=lambda each: getattr(each, "name", each))
async def test_every_pair_has_an_entry_or_closes_safely_as_our_fault(
    role: str, state: State, event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner()
    connection, carrier = MAKERS[role](owner)
    for step in WAYS[role, state]:
        happen(connection, step)
    assert connection.state is state
    expected = TABLES[role].get((state, event))
    happen(connection, event)
    assert connection.state is (CLOSED if expected is None else expected)
    faults = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.__dict__["fault"] for record in faults] == ([role] if expected is None else [])
    if connection.state is CLOSED:
        assert len(owner.closed) == 1
        assert "abort" in carrier.calls
        assert sum(code in (ERROR, CLOSE) for code in owner.tunnel.codes(1)) <= 1  # I2
    for again in (Event.CARRIER_LOST, Event.ABORT):  # a closed connection stays closed, and reports nothing more
        happen(connection, again)
    told = len(owner.tunnel.packets)
    if connection.state is CLOSED:
        connection.data_received(b"late")  # I3
        connection.resume_writing()
        assert len(owner.tunnel.packets) == told
        assert len(owner.closed) == 1
    elif isinstance(connection, AgentConnection):
        connection.outcome_timeout()


@pytest.mark.parametrize("role", MAKERS)
def test_no_entry_leads_out_of_closed(role: str) -> None:
    assert {after for (before, _), after in TABLES[role].items() if before is CLOSED} == {CLOSED}
    assert all((role, state) in WAYS for state, _ in TABLES[role])


@pytest.mark.parametrize("role", MAKERS)
def test_credit_goes_back_as_the_carrier_takes_bytes(role: str) -> None:
    window = Window()
    connection, carrier = MAKERS[role](Owner(window=window))
    assert connection.feed(b"a" * 100)
    assert window.unread_bytes == [0]
    connection.pause_writing()
    carrier.buffered_bytes = 30
    assert connection.feed(b"b" * 200)
    assert window.unread_bytes == [0, 230]
    assert not connection.feed(b"c" * 701)
    carrier.buffered_bytes = 0
    connection.resume_writing()
    assert window.unread_bytes == [0, 230, 0]
    assert carrier.written == b"a" * 100 + b"b" * 200
    connection.peer_finished()
    assert window.closed
    assert carrier.calls == ["eof"]


@pytest.mark.parametrize("role", MAKERS)
def test_the_tunnel_and_the_carrier_hold_each_other_back(role: str) -> None:
    owner = Owner()
    connection, carrier = MAKERS[role](owner)
    owner.tunnel.outbounds[1].pause()
    assert connection.paused == (False, True)
    connection.pause_writing()
    assert connection.paused == (True, True)
    owner.tunnel.outbounds[1].resume()
    assert carrier.calls == ["pause", "resume"]


def test_the_agents_last_bytes_reach_the_proxy_before_its_error_closes_the_carrier() -> None:
    owner = Owner()
    connection, carrier = hub(owner)
    connection.pause_writing()
    connection.feed(b"response")
    connection.peer_ended(LOST)
    assert owner.failure is LOST
    assert carrier.calls == []
    connection.resume_writing()
    assert (carrier.written, carrier.calls) == (b"response", ["close"])
    assert owner.caught_up == 1


def test_a_response_that_its_agent_has_closed_is_whole_whatever_comes_after() -> None:
    owner = Owner()
    connection, _ = hub(owner)
    connection.peer_finished()
    connection.peer_ended(LOST)
    assert owner.failure is None


@pytest.mark.parametrize("agent_first", [False, True])
def test_the_hubs_carrier_closes_when_both_sides_are_done(agent_first: bool) -> None:
    owner = Owner()
    connection, carrier = hub(owner)
    connection.pause_writing()
    connection.feed(b"response")
    first, second = connection.peer_finished, connection.eof_received
    if not agent_first:
        first, second = second, first
    first()
    second()
    assert connection.state is ENDING
    connection.resume_writing()
    assert carrier.written == b"response"
    assert carrier.calls[-1] == "close"
    connection.connection_lost(None)
    assert owner.tunnel.codes(1) == [CLOSE]


@pytest.mark.parametrize(
    ("closes", "eof", "error", "codes"),
    [
        (False, False, None, [ERROR]),
        (False, True, None, [ERROR]),
        (True, False, None, [ERROR]),
        (True, True, None, [CLOSE, ERROR]),
        (True, False, ConnectionResetError(), [ERROR]),
    ],
)
def test_the_agent_may_forget_a_connection_whose_proxy_has_left(
    closes: bool, eof: bool, error: Exception | None, codes: list[int]
) -> None:
    owner = Owner(closes=closes)
    connection, _ = hub(owner)
    if eof:
        connection.eof_received()
    connection.connection_lost(error)
    assert owner.tunnel.codes(1) == codes
    assert owner.closed == [None]


async def test_each_connection_is_probed_once_in_an_interval() -> None:
    connections = [hub(Owner())[0] for _ in range(3)]
    asked: list[TunnelConnection] = []
    prober = Prober(0.02, lambda: connections, asked.append, lambda now_s: len(asked) < 6)
    for connection in connections:
        prober.watch(connection)
    await until(lambda: len(asked) == 6)
    assert asked == connections * 2
    prober.cancel()
    prober.cancel()


class Orphan(AgentConnection):
    """Its proxy has not accepted it, so no outcome will come."""

    def proxy_has_it(self) -> bool:
        return False


def test_a_request_past_the_bound_fails_its_connection_alone() -> None:
    owner = Owner()
    connection = Orphan(1, owner)
    attached(connection, limit_bytes=100)
    assert connection.feed(b"head")
    connection.pause_writing()
    assert connection.feed(b"b" * 100)
    assert connection.feed(b"c")
    assert owner.failed == 1
    assert owner.tunnel.codes(1) == [ERROR]
    assert DATA not in owner.tunnel.codes(1)
