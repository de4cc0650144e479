"""Each fault: what is done, what is measured, and the bounds that it must keep."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .lab import Agent, Lab, Users, wait_until_s
from .link import CLEAR, DOWN, Condition
from .processes import Process, until
from .table import Row
from .user import LATE_S

__all__ = ["SCENARIOS", "Scenario"]

EVERY_S = 0.25
BEFORE_S = 2.0
"""How long users are served before a fault."""
SILENT_FOR_S = 60.0
FAULT_FOR_S = 40.0
KNOWN_WITHIN_S = 20.0
BACK_WITHIN_S = 12.0
"""10 s between dials of a hub that was reached before, and the handshake."""
TWO_AGENTS = (("hub", "a1"), ("hub", "a2"))
TWO_HUBS = (("hub", "a1"), ("hub2", "a1"))
LINK = Condition(rate_mbit=50, queue_bytes=1_250_000)
"""A link whose queue holds what is under way in 200 ms."""
FAR = dataclasses.replace(LINK, delay_ms=100)
"""The same with a round trip of 200 ms."""
SETTLE_S, MEASURE_S = 15.0, 10.0
SHARE, LEAST_MBIT = 0.7, 25.0
"""The least share of the link for the session begun at 200 ms. Plain TCP has 42 Mbit/s there."""

MakeLab = Callable[..., Lab]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """title: its row's first cell. alone: it measures throughput, and nothing else may run beside it."""

    name: str
    title: str
    run: Callable[[MakeLab, Row], Awaitable[None]]
    alone: bool = False


async def _two_agents(make: MakeLab, row: Row, silence: Callable[[Lab, Agent], Awaitable[float]]) -> None:
    """The newer of two agents is silent for a minute. The older one must serve."""
    async with make(links=TWO_AGENTS) as lab:
        hub = await lab.hub()
        await lab.agent("a1")
        newer = await lab.agent("a2")
        users = lab.users("users", "gets", "/small", EVERY_S)
        posting = lab.users("posting", "posts", "/small", EVERY_S)
        await _served(users, posting)
        at_s = await silence(lab, newer)
        await wait_until_s(at_s + SILENT_FOR_S)
        requests = (await users.stop()).since(at_s - 2 * EVERY_S)
        posts = (await posting.stop()).since(at_s - 2 * EVERY_S)
        row.knowing, row.hub_s, row.agent_s = "hub", hub.knows_s(at_s), newer.knows_s(at_s)
        row.lost, row.first_s = str(requests), requests.first_success_s(at_s)
        suspected_s = hub.suspects_s(at_s)
        row.measured = f"latest after {requests.latest_s:.1f} s, POST {posts.latest_s:.1f} s, lost {posts}" + (
            "" if suspected_s is None else f", suspected after {suspected_s:.1f} s"
        )
        row.bind(f"GET: 200 within {LATE_S:.0f} s", bool(requests.all) and not requests.lost)
        # The silent agent may have run a POST and may return, so the POST waits until the session is closed.
        in_time = bool(posts.all) and posts.latest_s <= KNOWN_WITHIN_S
        row.bind(f"POST: any status within {KNOWN_WITHIN_S:.0f} s", in_time)


async def newer_stopped(make: MakeLab, row: Row) -> None:
    async def stop(lab: Lab, newer: Agent) -> float:
        newer.signal(signal.SIGSTOP)
        return time.time()

    await _two_agents(make, row, stop)


async def newer_cut(make: MakeLab, row: Row) -> None:
    await _two_agents(make, row, lambda lab, newer: lab.cut(agent="a2"))
    row.knowing = "both"  # a stopped agent can't


async def newer_paused(make: MakeLab, row: Row) -> None:
    """Suspected, not lost: after 6 s it serves again, in the same session."""
    async with make(links=TWO_AGENTS) as lab:
        hub = await lab.hub()
        await lab.agent("a1")
        newer = await lab.agent("a2")
        users = lab.users("users", "gets", "/small", EVERY_S)
        await _served(users)
        newer.signal(signal.SIGSTOP)
        at_s = time.time()
        await wait_until_s(at_s + 6)
        newer.signal(signal.SIGCONT)
        again_s = time.time()
        await wait_until_s(again_s + 6)
        requests = (await users.stop()).since(at_s - 2 * EVERY_S)
        row.lost, row.first_s = str(requests), requests.first_success_s(at_s)
        by_newer = [one["began"] for one in requests.since(again_s).all if one["target"] == "a2"]
        back = f"{min(by_newer) - again_s:.1f} s later" if by_newer else "never"
        row.measured = f"latest after {requests.latest_s:.1f} s, newer serves again {back}"
        row.bind(f"each 200 within {LATE_S:.0f} s", bool(requests.all) and not requests.lost)
        row.bind("newer serves again", bool(by_newer))
        row.bind("no session lost", hub.knows_s(at_s) is None and newer.knows_s(at_s) is None)


async def _one_agent(
    make: MakeLab, row: Row, to_agent: Condition, to_hub: Condition, *, path: str = "/small", heals: bool = False
) -> None:
    """A link fails for 40 s under GETs. heals: new connections pass meanwhile, so the agent reconnects at once."""
    async with make(memory=False) as lab:
        hub = await lab.hub()
        agent = await lab.agent()
        users = lab.users("users", "gets", path, EVERY_S)
        await _served(users)
        at_s = await lab.set_link("hub", "a1", to_agent, to_hub)
        await wait_until_s(at_s + FAULT_FOR_S)
        row.knowing, row.hub_s, row.agent_s = "both", hub.knows_s(at_s), agent.knows_s(at_s)
        repaired_s = await lab.repair()
        since_s = at_s if heals else repaired_s
        await until(lambda: users.first_success_s(since_s) is not None, 90)
        requests = (await users.stop()).since(at_s - 2 * EVERY_S)
        row.lost, row.first_s = str(requests), requests.first_success_s(since_s)
        row.measured = f"latest after {requests.latest_s:.1f} s"
        _both_know(row)
        unnamed = requests.unnamed
        row.bind("502 and 504 name the agent" + (f", not {unnamed[0].strip()!r}" if unnamed else ""), not unnamed)
        row.bind("the hub logs why", hub.says_why(at_s))
        _back(row, KNOWN_WITHIN_S + BACK_WITHIN_S if heals else BACK_WITHIN_S)


async def _served(*users: Users) -> None:
    """Wait until users have been served for a while, since each process takes its time to start."""
    for each in users:
        await each.printed('"status": 200')
    await wait_until_s(time.time() + BEFORE_S)


def _both_know(row: Row) -> None:
    known = [took_s is not None and took_s <= KNOWN_WITHIN_S for took_s in (row.hub_s, row.agent_s)]
    row.bind(f"both know within {KNOWN_WITHIN_S:.0f} s", all(known))


def _back(row: Row, within_s: float = BACK_WITHIN_S) -> None:
    row.bind(f"first success in {within_s:.0f} s", row.first_s is not None and row.first_s <= within_s)


async def blackhole(make: MakeLab, row: Row) -> None:
    await _one_agent(make, row, DOWN, DOWN)


async def to_hub_dropped(make: MakeLab, row: Row) -> None:
    await _one_agent(make, row, CLEAR, DOWN)


async def to_agent_dropped(make: MakeLab, row: Row) -> None:
    await _one_agent(make, row, DOWN, CLEAR)


async def mtu_hole(make: MakeLab, row: Row) -> None:
    hole = Condition(largest_bytes=1000)
    await _one_agent(make, row, hole, hole, path="/small?bytes=20000")


async def nat_forgot(make: MakeLab, row: Row) -> None:
    forgot = Condition(forgets=True)
    await _one_agent(make, row, forgot, forgot, heals=True)


async def _stays(make: MakeLab, row: Row, first: Condition, fault: Condition, for_s: float, *, full: bool) -> None:
    """A link that is bad but alive: neither side may give the session up. full: a download fills the link, too."""
    async with make(condition=first) as lab:
        hub = await lab.hub()
        agent = await lab.agent()
        users = lab.users("users", "gets", "/small", EVERY_S)
        if full:
            await lab.users("bytes", "reads", "/bytes").printed('"received"')
        await _served(users)
        at_s = await lab.set_link("hub", "a1", fault)
        await wait_until_s(at_s + for_s)
        repaired_s = await lab.repair()
        await until(lambda: users.first_success_s(repaired_s) is not None, 60)
        requests = (await users.stop()).since(at_s - 2 * EVERY_S)
        row.lost, row.first_s = str(requests), requests.first_success_s(repaired_s)
        row.measured = f"latest after {requests.latest_s:.1f} s"
        lost_by = [side.name for side in (hub, agent) if side.knows_s(at_s) is not None]
        row.bind("session kept" + (f" (lost by {', '.join(lost_by)})" if lost_by else ""), not lost_by)
        failed = [one for one in requests.all if one["status"] != 200]
        row.bind("each 200, however late", bool(requests.all) and not failed)


async def short_cut(make: MakeLab, row: Row) -> None:
    await _stays(make, row, CLEAR, DOWN, 5, full=False)


async def lossy_link(make: MakeLab, row: Row) -> None:
    lossy = dataclasses.replace(FAR, loss_percent=2, reorder_percent=2)
    await _stays(make, row, LINK, lossy, FAULT_FOR_S, full=True)


async def slow_link(make: MakeLab, row: Row) -> None:
    await _stays(make, row, LINK, Condition(rate_mbit=2, queue_bytes=1 << 20), FAULT_FOR_S, full=True)


async def streams_cut(make: MakeLab, row: Row) -> None:
    """An event stream and a full download are open when all packets are dropped."""
    async with make(condition=LINK) as lab:
        hub = await lab.hub()
        agent = await lab.agent()
        readers = [lab.users(kind, "reads", f"/{kind}") for kind in ("stream", "bytes")]
        for reader in readers:
            await reader.printed('"received"')
        await wait_until_s(time.time() + 2 * BEFORE_S)
        at_s = await lab.cut()
        row.knowing = "both"
        await until(lambda: hub.knows_s(at_s) is not None and agent.knows_s(at_s) is not None, 90)
        row.hub_s, row.agent_s = hub.knows_s(at_s), agent.knows_s(at_s)
        ended = await until(lambda: all('"ended"' in reader.output for reader in readers), 10)
        ends = [reader.lines()[-1]["at"] - at_s for reader in readers if '"ended"' in reader.output]
        row.measured = f"users notified after {max(ends):.1f} s" if ended else "users not notified"
        users = lab.users("users", "gets", "/small", EVERY_S)
        repaired_s = await lab.repair()
        await until(lambda: users.first_success_s(repaired_s) is not None, 90)
        row.first_s = users.first_success_s(repaired_s)
        await users.stop()
        _both_know(row)
        row.bind("users told", ended)
        _back(row)


def _received(process: Process, at_s: float) -> int:
    """Bytes that had arrived at a moment, between two reports by a straight line."""
    before: dict[str, Any] = {"at": 0.0, "received": 0}
    for line in process.lines():
        if "received" not in line:
            continue
        if line["at"] >= at_s:
            if not before["at"]:
                return 0
            share = (at_s - before["at"]) / (line["at"] - before["at"])
            return int(before["received"] + share * (line["received"] - before["received"]))
        before = line
    return int(before["received"])


async def _throughput(lab: Lab, *, upload: bool, becomes_far: bool) -> float:
    """Mbit/s of one transfer, from 15 to 25 s after the link became long, or after the transfer began there."""
    async with lab:
        await lab.hub()
        await lab.agent()
        process: Process
        if upload:
            lab.users("writes", "writes", "/sink", 1 << 16, 0, 60)
            process = lab.target()
        else:
            process = lab.users("reads", "reads", "/bytes")
        await process.printed('"received"')
        at_s = time.time()
        if becomes_far:
            await wait_until_s(at_s + BEFORE_S)
            at_s = await lab.set_link("hub", "a1", FAR)
        await wait_until_s(at_s + SETTLE_S + MEASURE_S + 1)
        count = _received(process, at_s + SETTLE_S + MEASURE_S) - _received(process, at_s + SETTLE_S)
        return count * 8 / MEASURE_S / 1e6


async def _longer_path(make: MakeLab, row: Row, upload: bool) -> None:
    """Both sessions run at the same time, each on its own link."""
    changed, always = await asyncio.gather(
        _throughput(make("changed", condition=LINK), upload=upload, becomes_far=True),
        _throughput(make("always", condition=FAR), upload=upload, becomes_far=False),
    )
    share = changed / always if always else 0.0
    row.measured = f"{changed:.1f} of {always:.1f} Mbit/s: {share:.0%}"
    row.bind(f"≥ {SHARE:.0%} of a session begun at 200 ms", share >= SHARE)
    row.bind(f"which has ≥ {LEAST_MBIT:.0f} Mbit/s", always >= LEAST_MBIT)


async def longer_path_download(make: MakeLab, row: Row) -> None:
    await _longer_path(make, row, upload=False)


async def longer_path_upload(make: MakeLab, row: Row) -> None:
    await _longer_path(make, row, upload=True)


async def _hub_stopped(make: MakeLab, row: Row, for_s: float, *, with_upload: bool) -> None:
    """Responses lie in the hub's sockets while their deadlines pass."""
    limits = ("--limits-first-byte-timeout-s=5", "--limits-body-timeout-s=5")
    async with make() as lab:
        hub = await lab.hub("hub", *limits)
        agent = await lab.agent()
        going: list[Users] = []
        if with_upload:
            going.append(lab.users("upload", "writes", "/sink", 1024, 0.5, for_s + 10))
            await lab.target().printed('"received"')
        slow = lab.users("slow", "batch", "/small?after_s=4", 50)
        going.append(slow)
        await lab.target().printed('"waiting": 50')
        hub.signal(signal.SIGSTOP)
        stopped_s = time.time()
        await wait_until_s(stopped_s + for_s)
        hub.signal(signal.SIGCONT)
        again_s = time.time()
        if not with_upload:
            row.knowing, row.agent_s = "agent", agent.knows_s(stopped_s)
            row.bind(f"agent knows within {for_s:.0f} s", row.agent_s is not None)
        users = lab.users("users", "gets", "/small", EVERY_S)
        for one in going:
            await one.ended(30)
        row.measured = f"of those that came in meanwhile {_outcomes(slow)}"
        row.bind("responses in its sockets are 200", len(slow.requests.all) == 50 and _all_200(slow))
        if with_upload:
            row.measured += f"; upload: {_outcomes(going[0])}"
            row.bind("upload is 200", len(going[0].requests.all) == 1 and _all_200(going[0]))
        await until(lambda: users.first_success_s(again_s) is not None, 60)
        requests = await users.stop()
        row.lost, row.first_s = str(requests), requests.first_success_s(again_s)
        _back(row)


def _outcomes(users: Users) -> str:
    statuses = collections.Counter(one["status"] for one in users.requests.all)
    return ", ".join(f"{count} are {status}" for status, count in sorted(statuses.items())) or "none ended"


def _all_200(users: Users) -> bool:
    return all(one["status"] == 200 for one in users.requests.all)


async def hub_stopped_12(make: MakeLab, row: Row) -> None:
    await _hub_stopped(make, row, 12, with_upload=True)


async def hub_stopped_20(make: MakeLab, row: Row) -> None:
    await _hub_stopped(make, row, 20, with_upload=False)


async def hub_killed(make: MakeLab, row: Row) -> None:
    async with make() as lab:
        hub = await lab.hub()
        agent = await lab.agent()
        users = lab.users("users", "gets", "/small", EVERY_S)
        await _served(users)
        at_s = time.time()
        hub.kill()
        await wait_until_s(at_s + 3)
        await lab.hub()
        again_s = time.time()
        await until(lambda: users.first_success_s(again_s) is not None, 90)
        requests = (await users.stop()).since(at_s - 2 * EVERY_S)
        row.knowing, row.agent_s = "agent", agent.knows_s(at_s)
        row.lost, row.first_s = str(requests), requests.first_success_s(again_s)
        row.bind("agent knows within 1 s", row.agent_s is not None and row.agent_s <= 1)
        _back(row)


async def agent_stopped(make: MakeLab, row: Row) -> None:
    """The only agent stops like a suspended machine. Its kernel still takes the hub's bytes."""
    async with make() as lab:
        hub = await lab.hub()
        agent = await lab.agent()
        users = lab.users("users", "gets", "/small", EVERY_S)
        await _served(users)
        agent.signal(signal.SIGSTOP)
        at_s = time.time()
        await wait_until_s(at_s + FAULT_FOR_S)
        row.knowing, row.hub_s = "hub", hub.knows_s(at_s)
        agent.signal(signal.SIGCONT)
        again_s = time.time()
        await until(lambda: users.first_success_s(again_s) is not None, 60)
        requests = (await users.stop()).since(at_s - 2 * EVERY_S)
        row.lost, row.first_s = str(requests), requests.first_success_s(again_s)
        row.measured = f"latest after {requests.latest_s:.1f} s"
        row.bind(f"hub knows within {KNOWN_WITHIN_S:.0f} s", row.hub_s is not None and row.hub_s <= KNOWN_WITHIN_S)
        _back(row)


async def agent_killed(make: MakeLab, row: Row) -> None:
    """The newer of two: the hub's kernel hears at once."""
    async with make(links=TWO_AGENTS) as lab:
        hub = await lab.hub()
        await lab.agent("a1")
        newer = await lab.agent("a2")
        users = lab.users("users", "gets", "/small", EVERY_S)
        await _served(users)
        at_s = time.time()
        newer.kill()
        await wait_until_s(at_s + 5)
        requests = (await users.stop()).since(at_s - 2 * EVERY_S)
        row.knowing, row.hub_s = "hub", hub.knows_s(at_s)
        row.lost, row.first_s = str(requests), requests.first_success_s(at_s)
        row.bind("hub knows within 1 s", row.hub_s is not None and row.hub_s <= 1)
        row.bind("at most what was in flight is lost", bool(requests.all) and len(requests.lost) <= 1)


async def hub_vanishes(make: MakeLab, row: Row) -> None:
    """Packets of one of two hubs are dropped. The users are at the other."""
    async with make(links=TWO_HUBS) as lab:
        hub = await lab.hub("hub")
        await lab.hub("hub2")
        agent = await lab.agent()
        users = lab.users("users", "gets", "/small", EVERY_S, hub="hub2")
        await _served(users)
        at_s = await lab.cut("hub", "a1")
        await wait_until_s(at_s + FAULT_FOR_S)
        row.knowing, row.hub_s, row.agent_s = "both", hub.knows_s(at_s), agent.knows_s(at_s)
        repaired_s = await lab.repair("hub", "a1")
        at_first = lab.users("users-of-first", "gets", "/small", EVERY_S)
        await until(lambda: at_first.first_success_s(repaired_s) is not None, 90)
        row.first_s = at_first.first_success_s(repaired_s)
        await at_first.stop()
        requests = (await users.stop()).since(at_s - 2 * EVERY_S)
        row.lost = f"at the other hub {requests}"
        row.measured = f"latest after {requests.latest_s:.1f} s"
        _both_know(row)
        row.bind("none lost at the other hub", bool(requests.all) and not requests.lost)
        _back(row)


async def clients_leave(make: MakeLab, row: Row) -> None:
    """500 clients of a silent target close at once. Others are served meanwhile."""
    count, within_s = 500, 10.0
    async with make() as lab:
        await lab.hub()
        await lab.agent()
        leaving = lab.users("leaving", "leaves", "/silent", count)
        await lab.target().printed(f'"silent": {count}')
        users = lab.users("users", "gets", "/small", EVERY_S)
        await users.printed('"status": 200')
        leaving.signal(signal.SIGUSR1)
        await leaving.printed('"left"')
        at_s = next(line["left"] for line in leaving.lines() if "left" in line)
        target = lab.target()
        told = await until(lambda: target.output.count('"gone"') >= count, 90)
        gone = sorted(line["gone"] - at_s for line in target.lines() if "gone" in line)
        requests = (await users.stop()).since(at_s - 2 * EVERY_S)
        row.lost, row.first_s = str(requests), requests.first_success_s(at_s)
        row.measured = f"target saw {len(gone)} close" + (f", the last after {gone[-1]:.1f} s" if gone else "")
        row.bind(f"target saw all close in {within_s:.0f} s", told and gone[-1] <= within_s)
        row.bind(f"others 200 within {LATE_S:.0f} s", bool(requests.all) and not requests.lost)


SCENARIOS = (
    Scenario("newer-stopped", "two agents, the newer stopped (SIGSTOP) for 60 s", newer_stopped),
    Scenario("newer-cut", "two agents, packets of the newer dropped for 60 s", newer_cut),
    Scenario("newer-paused", "two agents, the newer stopped for 6 s", newer_paused),
    Scenario("blackhole", "one agent, all packets dropped for 40 s", blackhole),
    Scenario("to-hub", "one agent, packets to the hub dropped for 40 s", to_hub_dropped),
    Scenario("to-agent", "one agent, packets to the agent dropped for 40 s", to_agent_dropped),
    Scenario("mtu-hole", "one agent, packets over 1,000 bytes dropped for 40 s", mtu_hole),
    Scenario("nat", "one agent, a NAT forgets its connections", nat_forgot),
    Scenario("short-cut", "one agent, all packets dropped for 5 s", short_cut),
    Scenario("lossy-link", "200 ms, 2% lost, 2% reordered for 40 s, with a download", lossy_link),
    Scenario("slow-link", "2 Mbit/s, a queue of 1 MiB for 40 s, with a download", slow_link),
    Scenario("streams-cut", "event stream and download open, all packets dropped", streams_cut),
    Scenario("hub-stopped-12", "hub stopped for 12 s, limits of 5 s", hub_stopped_12),
    Scenario("hub-stopped-20", "hub stopped for 20 s, limits of 5 s", hub_stopped_20),
    Scenario("hub-killed", "hub killed (SIGKILL), started again after 3 s", hub_killed),
    Scenario("agent-stopped", "one agent, stopped (SIGSTOP) for 40 s", agent_stopped),
    Scenario("agent-killed", "two agents, the newer killed (SIGKILL)", agent_killed),
    Scenario("hub-vanishes", "two hubs, packets of one dropped for 40 s", hub_vanishes),
    Scenario("clients-leave", "500 clients of a silent target leave at once", clients_leave, alone=True),
    Scenario("longer-download", "round trip 0, then 200 ms, download at 50 Mbit/s", longer_path_download, alone=True),
    Scenario("longer-upload", "round trip 0, then 200 ms, upload at 50 Mbit/s", longer_path_upload, alone=True),
)
