"""The benchmark's bookkeeping: ratios round by round, the reports' schema, what `compare` calls better and worse."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import itertools
import json
import mmap
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
if not (ROOT / "bench" / "measuring.py").exists():
    pytest.skip("the benchmark is in the repository only", allow_module_level=True)

from bench import compare, docs, goals, measuring, report  # noqa: E402

TIME = measuring.Metric("time", "µs")
RATE = measuring.Metric("rate", "1/s", more_is_better=True)


def case(times: Mapping[str, Sequence[float]], order: list[str] | None = None) -> measuring.Case:
    """A case whose variants take the given times, one per round. The rate is 1 divided by the time."""

    def turn(name: str) -> measuring.Turn:
        left = iter(times[name])

        def take() -> measuring.Samples:
            if order is not None:
                order.append(name)
            time = next(left)
            return {TIME: [time], RATE: [1 / time]}

        return take

    @contextlib.contextmanager
    def open_case(scale: measuring.Scale) -> Iterator[Mapping[str, measuring.Turn]]:
        yield {name: turn(name) for name in times}

    rounds = len(next(iter(times.values())))
    return measuring.Case("a case", "A case", open_case, [("pipe", "UDS")], rounds=(rounds, rounds))


def measured(times: Mapping[str, Sequence[float]]) -> tuple[list[measuring.Measurement], list[measuring.Ratio]]:
    return measuring.measured(case(times), quick=False, report=lambda _: None)


def test_ratio_is_made_within_each_round_and_above_one_is_better_for_either_kind_of_metric() -> None:
    _, ratios = measured({"pipe": [1.0, 2.0, 10.0], "UDS": [2.0, 8.0, 30.0]})
    assert [(item.metric, item.ratio, item.low, item.high) for item in ratios] == [
        ("time", 3.0, 2.0, 4.0),
        ("rate", pytest.approx(3.0), pytest.approx(2.0), pytest.approx(4.0)),
    ]


def test_rivals_take_turns_and_none_is_always_first() -> None:
    order: list[str] = []
    one = case({"pipe": [1.0, 1.0, 1.0], "UDS": [1.0, 1.0, 1.0]}, order)
    measuring.measured(one, quick=True, report=lambda _: None)
    assert order == ["pipe", "UDS", "UDS", "pipe", "pipe", "UDS"]


def test_spread_is_between_the_rounds() -> None:
    measurements, _ = measured({"pipe": [9.0, 10.0, 12.0], "UDS": [5.0, 5.0, 5.0]})
    first = next(item for item in measurements if (item.variant, item.metric) == ("pipe", "time"))
    assert (first.median, first.n) == (10.0, 3)
    assert first.spread == pytest.approx(0.3)


MEMORY = measuring.Metric("memory", "bytes", resolution=128)


def found_of(values: Sequence[float], metric: measuring.Metric = MEMORY) -> measuring.Measurement:
    """The measurement of a variant whose rounds gave these values."""
    rounds: list[dict[str, measuring.Samples]] = [{"memory": {metric: [value]}} for value in values]
    return measuring._measurement(case({"memory": [1.0]}), "memory", metric, rounds)


def test_spread_is_a_share_of_the_absolute_median() -> None:
    found = found_of([-24.9, -25.9], measuring.Metric("difference", "bytes"))
    assert found.median == pytest.approx(-25.4)
    assert found.spread == pytest.approx(1 / 25.4)
    assert measuring.spread(found) == "±2%"


@pytest.mark.parametrize("values", [[-24.9, -25.9], [0.0, 0.0], [0.0, 127.9, 1.0], [3.0, -90.0]], ids=str)
def test_value_below_the_resolution_is_told_as_that(values: list[float]) -> None:
    found = found_of(values)
    assert (report.value(found), measuring.spread(found)) == ("below 128 bytes", "")
    assert 0 <= found.spread <= 1


@pytest.mark.parametrize(("values", "told"), [([128.0], "128 bytes"), ([-4096.0], "-4,096 bytes")], ids=str)
def test_value_that_the_resolution_can_tell_is_told_with_its_spread(values: list[float], told: str) -> None:
    found = found_of(values)
    assert (report.value(found), measuring.spread(found)) == (told, "±0%")


def test_there_is_no_ratio_of_what_is_below_the_resolution() -> None:
    both = case({"pipe": [1.0], "UDS": [1.0]})
    rounds: list[dict[str, measuring.Samples]] = [{"pipe": {MEMORY: [60.0]}, "UDS": {MEMORY: [4000.0]}}]
    assert measuring._ratio(both, MEMORY, "pipe", "UDS", rounds) is None
    rounds = [{"pipe": {MEMORY: [200.0]}, "UDS": {MEMORY: [4000.0]}}]
    ratio = measuring._ratio(both, MEMORY, "pipe", "UDS", rounds)
    assert ratio is not None
    assert ratio.ratio == 20


@pytest.mark.parametrize(
    ("bound", "at_most", "worst", "verdict"),
    [
        (6144, True, False, "yes"),
        (6144, True, True, "yes"),
        (100, True, False, "**no**"),
        (0, False, False, "**no**"),
    ],
)
def test_goal_whose_value_is_below_the_resolution_says_so(
    monkeypatch: pytest.MonkeyPatch, bound: float, at_most: bool, worst: bool, verdict: str
) -> None:
    goal = goals.Goal("memory", "a case", "memory", "memory", "", bound, "bytes", at_most, worst)
    monkeypatch.setattr(goals, "GOALS", (goal,))
    line = goals.table([found_of([-24.9, -25.9])], []).splitlines()[-1]
    assert line.endswith(f"| below 128 bytes | below the resolution | {verdict} |")


def test_reports_of_before_resolutions_are_still_read() -> None:
    item: dict[str, Any] = {
        "case": "c",
        "variant": "v",
        "metric": "m",
        "unit": "s",
        "median": 0.0,
        "p99": 0.0,
        "spread": 0.0,
        "n": 1,
    }
    assert report.value(measuring.Measurement(**item)) == "0 s"


def test_no_published_figure_is_below_its_resolution() -> None:
    for path in (ROOT / "docs" / "performance.md", ROOT / "README.md", ROOT / "bench" / "results" / "report.md"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall("±[-−]", text)
        assert not re.findall(r"\| -[0-9.,]+ bytes", text)
        assert not re.findall(r"±[0-9]{4,}%", text)


def written(folder: pathlib.Path, times: Mapping[str, Sequence[float]]) -> pathlib.Path:
    one = case(times)
    measurements, ratios = measuring.measured(one, quick=False, report=lambda _: None)
    report.write(folder, [one], measurements, ratios, report.environment(quick=False, took_s=1, failed=[]))
    return folder / "report.json"


def test_reports_have_the_schema_that_their_readers_expect(tmp_path: pathlib.Path) -> None:
    content: dict[str, Any] = json.loads(written(tmp_path, {"pipe": [1.0], "UDS": [2.0]}).read_text())
    assert set(content) == {"measurements", "ratios", "environment"}
    fields = {"case", "variant", "metric", "unit", "median", "p99", "spread", "n", "resolution"}
    assert all(set(item) == fields for item in content["measurements"])
    assert all(set(item) == {"case", "metric", "of", "over", "ratio", "low", "high"} for item in content["ratios"])
    assert {"commit", "machine", "python", "loop", "twin"} <= set(content["environment"])
    assert "| time | pipe | UDS | 2.00× |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("now", "code", "said"),
    [
        ([1.0, 1.1, 1.05], 0, "0 better, 0 worse"),
        ([0.2, 0.2, 0.2], 0, "2 better, 0 worse"),
        ([4.0, 4.0, 4.0], 1, "0 better, 2 worse"),
    ],
    ids=["same", "better", "worse"],
)
def test_compare_tells_what_moved_beyond_the_spread(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], now: list[float], code: int, said: str
) -> None:
    old = written(tmp_path / "old", {"pipe": [1.0, 1.1, 1.2], "UDS": [2.0, 2.0, 2.0]})
    new = written(tmp_path / "new", {"pipe": now, "UDS": [2.0, 2.0, 2.0]})
    assert compare.compare([old, new]) == code
    assert said in capsys.readouterr().out


def test_a_difference_within_the_spread_of_both_is_none(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(tmp_path / "old", {"pipe": [1.0, 1.1, 1.2], "UDS": [2.0, 2.0, 2.0]})
    new = written(tmp_path / "new", {"pipe": [1.25, 1.35, 1.5], "UDS": [2.0, 2.0, 2.0]})
    assert compare.compare([old, new]) == 0
    assert "0 better, 0 worse" in capsys.readouterr().out


def test_what_one_pair_says_and_the_other_does_not_counts_for_nothing(tmp_path: pathlib.Path) -> None:
    calm = {"pipe": [1.0, 1.0, 1.0], "UDS": [2.0, 2.0, 2.0]}
    old, new = written(tmp_path / "old", calm), written(tmp_path / "new", calm)
    slow = written(tmp_path / "slow", calm | {"pipe": [4.0, 4.0, 4.0]})
    assert compare.compare([old, slow]) == 1
    assert compare.compare([old, slow, old, new]) == 0
    assert compare.compare([old, slow, old, slow]) == 1


def test_compare_says_that_a_file_is_no_report(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.json").write_text("[]")
    assert compare.compare([tmp_path / "no.json"] * 2) == 2
    assert "no two reports" in capsys.readouterr().err


def test_requests_go_through_the_hop_over_both_carriers() -> None:
    pytest.importorskip("fastpipe._pipe_c")
    from bench import hop, pipe

    for mode in ("memory", "UDS"):
        found = pipe.on_loop("uvloop", hop.requests(mode, None, 40, 4, close=False))
        assert len(found[measuring.Metric("latency", "µs")]) == 40


def test_heads_that_differ_all_do() -> None:
    pytest.importorskip("fastpipe._pipe_c")
    from bench import hop, pipe

    heads = {hop.VARIED % (number, number) for number in range(100)}
    assert len({head.split(b"\r\n")[0] for head in heads}) == len({head.partition(b"\r\n")[2] for head in heads}) == 100
    found = pipe.on_loop("uvloop", hop.requests("memory", None, 40, 4, close=False, varied=True))
    assert len(found[measuring.Metric("latency", "µs")]) == 40


def test_an_upload_arrives_whole_through_each_rival_and_its_memory_is_told() -> None:
    pytest.importorskip("fastpipe._pipe_c")
    from bench import hop, pipe, resources, uploads

    with uploads.sink() as port:
        for mode in hop.MODES:
            found = pipe.on_loop("uvloop", uploads.upload(mode, port, 3_000_001))
            assert len(found[resources.GROWTH]) == 1


def test_a_peak_of_memory_is_seen_after_it_has_gone() -> None:
    from bench import resources

    with resources.growing() as growth, mmap.mmap(-1, 64 << 20) as held:  # memory that this process didn't have yet
        held.write(b"x" * len(held))
    assert growth[0] >= 60


def test_without_a_pool_each_request_dials() -> None:
    pytest.importorskip("fastpipe._pipe_c")
    from agent.messages import Target
    from agent.proxy import Upstreams
    from bench import hop, pipe, pooling

    async def dials(kind: type[Upstreams]) -> int:
        made = 0

        async def connect(protocol: asyncio.Protocol) -> asyncio.Transport:
            nonlocal made
            made += 1
            return await hop.in_process(protocol)

        target = Target("http://in-process/1k", connect=connect)
        async with hop.stack("memory", lambda _: target, upstreams=kind()) as made_stack:
            sent = itertools.repeat(hop.KEPT % b"1k")
            await hop.counted(made_stack.manager, made_stack.packets, sent, 20, 2, False)
        return made

    assert pipe.on_loop("uvloop", dials(Upstreams)) == 2
    assert pipe.on_loop("uvloop", dials(pooling.Unpooled)) == 22


def test_a_constant_is_changed_wherever_it_is_used() -> None:
    script = (
        "from agent.tunnel import server, session, sizes; import inspect, fastpipe._queue_py as turn;"
        "print(sizes.WINDOW_BYTES, inspect.signature(server.TunnelServer).parameters['window_bytes'].default,"
        "session.INITIAL_WINDOW_BYTES, turn.TURN_CALLS)"
    )
    program = (
        "from bench import with_constants; with_constants.install(['agent.tunnel.sizes:WINDOW_BYTES=4096',"
        f"'agent.tunnel.window:INITIAL_WINDOW_BYTES=2048', 'fastpipe._limits:TURN_CALLS=7']); exec({script!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4096", "4096", "2048", "7"]


def test_a_constant_that_is_not_there_is_not_changed_in_silence() -> None:
    install = "from bench import with_constants; with_constants.install(['agent.tunnel.window:NO_BYTES=1'])"
    program = f"{install}; import agent.tunnel.window"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "LookupError: agent.tunnel.window assigns NO_BYTES 0 times" in done.stderr


def test_curves_show_the_default_among_what_was_not_chosen(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("fastpipe._pipe_c")
    from bench import curve_report, curves

    variants = ["1", "4"]
    turns = lambda _: lambda at: {TIME: [float(at)]}  # noqa: E731
    one = curves.curve("a curve", "By size", "`size`", "4", "reasons", variants, turns)
    measurements, _ = measuring.measured(one.case, quick=False, report=lambda _: None)
    curve_report.write(tmp_path, [one], measurements, report.environment(quick=False, took_s=1, failed=[]))
    content = json.loads((tmp_path / "curves.json").read_text())
    assert [(each["case"], each["chosen"]) for each in content["curves"]] == [("a curve", "4")]
    assert [item["median"] for item in content["measurements"]] == [1.0, 4.0]
    assert "| 1 | 1.00 µs ±0% |\n| **4** | **4.00 µs** ±0% |" in (tmp_path / "curves.md").read_text()
    assert (tmp_path / "curves.svg").read_text().count("<circle") == 2


def test_documents_get_their_figures_and_keep_what_no_report_has(tmp_path: pathlib.Path) -> None:
    old = json.loads(written(tmp_path / "old", {"pipe": [1.0], "UDS": [2.0]}).read_text())
    new = json.loads(written(tmp_path / "new", {"pipe": [0.5], "UDS": [2.0]}).read_text())
    reports = docs.Reports([new, old])
    one = "a case | time | pipe"
    asked = (f"ratio {one} | UDS", f"median {one}", f"share {one} | UDS", "ways")
    text = ", ".join(f"<!--measured {each}-->as it was<!--/measured-->" for each in asked)
    found, missing = docs.filled(text, reports)
    plain = docs.MARKED.sub(lambda match: match[0][len(match[1]) : -len(match[3])], found)
    assert plain == "4.00×, 0.50 µs, −75%, as it was"
    assert missing == ["ways"]
    assert docs.filled(found, reports)[0] == found
    with pytest.raises(ValueError, match="no figure that a document can ask for"):
        docs.filled("<!--measured rates-->1<!--/measured-->", reports)


def test_every_mark_in_the_documents_can_be_filled() -> None:
    asked = [match[2].strip() for path in docs.DOCUMENTS for match in docs.MARKED.finditer(path.read_text())]
    assert len(asked) > 10
    for each in asked:
        with pytest.raises(docs.Missing) if each not in docs.TABLES else contextlib.suppress(docs.Missing):
            docs.figure(docs.Reports([]), each)


def test_every_goal_names_a_case_that_runs() -> None:
    pytest.importorskip("fastpipe._pipe_c")
    from bench import command

    names = {one.name for one in command.all_cases()}
    assert [goal.case for goal in goals.GOALS if not fnmatch.filter(names, goal.case)] == []


def test_a_failure_in_one_round_of_many_is_told() -> None:
    measurements = [
        measuring.Measurement(f"whole path 1 KiB, 50 clients{how}", "memory", "failures", "requests", 0, worst, 0, 3)
        for how, worst in (("", 0.0), (", TLS target", 2.0))
    ]
    assert "| failures, 50 clients | ≤ 0 | 2.00 | worst of 6 | **no** |" in goals.table(measurements, [])


@pytest.mark.parametrize("path", ["/c1/1k", "/c1/watch"])
def test_users_stay_connected_while_ten_of_them_ask(path: str) -> None:
    from bench import users

    found = users.measured_with(
        "memory", path, 20, 100
    )  # it checks each response, and that all users are connected at the end
    assert set(found) == {users.MEMORY, users.HUB_MEMORY, users.CPU, users.HUB_CPU}


def test_a_turns_budget_is_measured_in_a_process_of_its_own() -> None:
    pytest.importorskip("fastpipe._pipe_c")
    from bench import curves

    found = curves.turn_of_budget("64")
    assert set(found) == {curves.ROUND_TRIP, curves.ROUND_TRIP_P99, curves.LATE}
    assert all(value > 0 for values in found.values() for value in values)
