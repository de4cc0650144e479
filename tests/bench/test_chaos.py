"""`make chaos` without root: what its links do to packets, what it reads off logs, its table and its refusals."""

from __future__ import annotations

import pathlib
import struct
import sys
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
if not (ROOT / "bench" / "chaos" / "link.py").exists():
    pytest.skip("the benchmark is in the repository only", allow_module_level=True)

if sys.platform != "linux":
    pytest.skip("network namespaces exist on Linux only", allow_module_level=True)

from bench.chaos import command, namespaces, processes, scenarios  # noqa: E402
from bench.chaos.lab import Requests  # noqa: E402
from bench.chaos.link import CLEAR, DOWN, Condition, Direction  # noqa: E402
from bench.chaos.table import Row, table  # noqa: E402

SYN, ACK = 0x02, 0x10
HEADS_BYTES = 40


def packet(size: int = 100, *, ports: tuple[int, int] = (1000, 8443), flags: int = ACK, tag: int = 0) -> bytes:
    """A TCP packet of IPv4 from 10.0.0.1 to 10.0.0.2, or back unless the second port is 8443."""
    ends = (b"\x0a\0\0\1", b"\x0a\0\0\2")
    source, destination = ends if ports[1] == 8443 else ends[::-1]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 6, 0, source, destination)
    tcp = struct.pack("!HHLLBBHHH", *ports, 0, 0, 5 << 4, flags, 0, 0, 0)
    return ip + tcp + bytes([tag]) * (size - HEADS_BYTES)


def direction(condition: Condition = CLEAR) -> Direction:
    made = Direction(set(), seed=1)
    made.set(condition)
    return made


def test_clear_link_delivers_each_packet_at_once_and_in_order() -> None:
    link = direction()
    sent = [packet(tag=tag) for tag in range(5)]
    for each in sent:
        link.offer(each, 1.0)
    assert link.take(1.0) == sent
    assert link.next_s is None


def test_delay_holds_a_packet_back() -> None:
    link = direction(Condition(delay_ms=100))
    link.offer(packet(), 1.0)
    assert link.take(1.099) == []
    assert link.next_s == pytest.approx(1.1)
    assert link.take(1.101) == [packet()]


def test_rate_spaces_packets_and_its_full_queue_drops() -> None:
    link = direction(Condition(rate_mbit=8, queue_bytes=10_500))  # a byte each microsecond
    for _ in range(20):
        link.offer(packet(1000), 0.0)
    assert link.dropped == 9  # ten fill the queue, one more is being sent
    assert len(link.take(0.0050001)) == 5
    assert len(link.take(1.0)) == 6


def test_down_drops_packets_under_way_and_new_ones() -> None:
    link = direction(Condition(delay_ms=100))
    link.offer(packet(), 0.0)
    link.set(DOWN)
    link.offer(packet(), 0.0)
    assert link.dropped == 2
    link.set(CLEAR)
    assert link.take(10.0) == []


def test_mtu_hole_passes_small_packets_only() -> None:
    link = direction(Condition(largest_bytes=1000))
    link.offer(packet(1000, tag=1), 0.0)
    link.offer(packet(1001, tag=2), 0.0)
    assert link.take(0.0) == [packet(1000, tag=1)]


def test_forgetful_nat_passes_connections_opened_since_then_both_ways() -> None:
    flows: set[bytes] = set()
    there, back = Direction(flows, seed=1), Direction(flows, seed=2)
    old, new = (1000, 8443), (1001, 8443)
    there.offer(packet(ports=old, flags=SYN), 0.0)
    assert len(there.take(0.0)) == 1
    for each in (there, back):
        each.set(Condition(forgets=True))
    there.offer(packet(ports=old), 0.0)
    back.offer(packet(ports=old[::-1]), 0.0)
    there.offer(packet(ports=new, flags=SYN), 0.0)
    back.offer(packet(ports=new[::-1], flags=SYN | ACK), 0.0)
    there.offer(packet(ports=new), 0.0)
    assert len(there.take(0.0)) == 2
    assert len(back.take(0.0)) == 1


def test_loss_and_reordering_are_shares() -> None:
    lossy = direction(Condition(loss_percent=25))
    mixed = direction(Condition(delay_ms=10, reorder_percent=25))
    for _ in range(1000):
        lossy.offer(packet(), 0.0)
        mixed.offer(packet(), 0.0)
    assert 650 < len(lossy.take(0.0)) < 850
    early = len(mixed.take(0.0))
    assert 150 < early < 350
    assert len(mixed.take(1.0)) == 1000 - early


def test_packets_of_ipv6_are_dropped() -> None:
    link = direction()
    link.offer(b"\x60" + bytes(39), 0.0)
    assert link.take(1.0) == []


def test_lost_requests_are_late_ones_and_others_than_200() -> None:
    def one(began: float, took_s: float, status: int) -> dict[str, object]:
        said = "the target closed the connection" if status == 502 else ""
        return {"began": began, "took_s": took_s, "status": status, "target": "a1", "said": said}

    requests = Requests([one(0, 0.1, 200), one(1, 6, 200), one(2, 0.1, 502), one(3, 45, 0), one(4, 1, 200)])
    assert str(requests) == "3 of 5 (200, late: 1, 502: 1, none: 1)"
    assert requests.latest_s == 45
    assert requests.unnamed == ["the target closed the connection"]
    assert requests.first_success_s(0.5) == 4.5  # the one that began at 4 is whole before the late one
    assert requests.since(5).first_success_s(0) is None


def test_log_times_are_the_first_since_a_moment(tmp_path: pathlib.Path) -> None:
    process = object.__new__(processes.Process)
    process._log = tmp_path / "hub.log"
    process._log.write_text(
        'time=1970-01-01T00:00:10.250Z level=info msg="agent disconnected"\n'
        "    a traceback's line\n"
        'time=1970-01-01T00:01:00.500Z level=info msg="agent disconnected"\n'
    )
    assert process.logged_s("agent disconnected", 0) == 10.25
    assert process.logged_s("agent disconnected", 20) == 60.5
    assert process.logged_s("agent connected", 0) is None


def test_row_says_what_was_missed() -> None:
    row = Row("blackhole", "both", hub_s=46.2, lost="3 of 5 (502: 3)", first_s=0.25)
    row.bind("both know", False)
    row.bind("first success", True)
    assert not row.ok
    lines = table([row]).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "blackhole",
        "hub 46.2 s, agent never",
        "3 of 5 (502: 3)",
        "0.25 s",
        "–",
        "both know (MISSED); first success",
        "NO",
    ]
    assert len({len(line) for line in lines}) == 1


def test_row_that_failed_is_not_ok() -> None:
    assert not Row("blackhole", error="RuntimeError: no relay").ok


def test_without_root_it_says_so_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert command.main([]) == 1
    assert "chaos: root is needed" in capsys.readouterr().err


def test_missing_command_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert command.missing() == ["the command ip is missing: install the package iproute2."]


def test_leftovers_of_dead_runs_only_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    listed = "fpchaos11-0-hub (id: 3)\nfpchaos22-1-a1\nother\nfpchaos33x\n"
    running: Callable[[int], bool] = lambda pid: pid == 22  # noqa: E731 - one line beside its type
    monkeypatch.setattr(namespaces, "ip", lambda *arguments: listed)
    monkeypatch.setattr(namespaces, "_is_running", running)
    monkeypatch.setattr(namespaces, "_remove", removed.append)
    assert namespaces.remove_leftovers() == ["fpchaos11-0-hub"] == removed


def test_scenarios_have_names_and_titles_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({one.name for one in scenarios.SCENARIOS}) == len({one.title for one in scenarios.SCENARIOS})
    assert command.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(scenarios.SCENARIOS)
