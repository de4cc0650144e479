"""Measures a case: its rivals take turns, several times, and each turn checks what arrived.

    Case ── open(scale) ──► {variant: one turn} ── turns, interleaved ──► Rounds ──► Measurement, Ratio

A turn gives samples for each metric. Each round has its own ratios, between turns that ran right after each other. So a
machine that is slow for some seconds is slow for both. Reports have the median, the lowest and the highest ratio.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

__all__ = [
    "Case",
    "Measurement",
    "Metric",
    "Ratio",
    "Samples",
    "Scale",
    "Shared",
    "Turn",
    "latency",
    "measured",
    "no_collection",
    "number",
    "one",
    "percentile",
    "spread",
]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Metric:
    """One measured quantity. unit: as reports show it. more_is_better: true for requests/s, false for seconds.

    resolution: the smallest value, in `unit`, that the method can distinguish from 0. Exact counts have 0.
    """

    name: str
    unit: str
    more_is_better: bool = False
    resolution: float = 0.0


Samples = Mapping[Metric, Sequence[float]]
Turn = Callable[[], Samples]


class Shared:
    """A resource that neighbouring cases share, such as processes. The first case makes it, the last removes it."""

    def __init__(self) -> None:
        self._made: dict[object, Any] = {}
        self._stack = contextlib.ExitStack()

    def get(self, make: Callable[[], contextlib.AbstractContextManager[T]]) -> T:
        """The resource from `make`, made now or for an earlier case."""
        if make not in self._made:
            self._made[make] = self._stack.enter_context(make())
        found: T = self._made[make]
        return found

    def close(self) -> None:
        self._made.clear()
        self._stack.close()


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much a run does. quick: the named subset of `make bench-quick`. rounds: turns of each variant."""

    quick: bool
    rounds: int
    shared: Shared

    def of(self, whole: int, quick: int) -> int:
        """An amount of work."""
        return quick if self.quick else whole


@dataclasses.dataclass(frozen=True)
class Case:
    """Rivals that do the same work.

    open: makes the turns by variant, and takes away behind them what they needed. ratios: (of, over) pairs of variants.
    quick: belongs to `make bench-quick`. rounds: turns of each variant, (whole run, quick run). room: cases of one
    room that run one after another have one `Scale.shared`.
    """

    name: str
    title: str
    open: Callable[[Scale], contextlib.AbstractContextManager[Mapping[str, Turn]]]
    ratios: Sequence[tuple[str, str]] = ()
    quick: bool = False
    rounds: tuple[int, int] = (5, 3)
    room: str = ""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One metric of one variant, over all rounds.

    median: of the rounds' medians.
    p99: the 99th percentile of all samples. If a turn gives one value, of the rounds' values.
    spread: from the lowest to the highest round's median, as a share of the larger of absolute median and resolution.
    n: the number of samples.
    resolution: the metric's.
    """

    case: str
    variant: str
    metric: str
    unit: str
    median: float
    p99: float
    spread: float
    n: int
    resolution: float = 0.0  # reports of before have none

    @property
    def is_resolved(self) -> bool:
        """Whether the median is a value, and not the noise of the way it was measured."""
        return abs(self.median) >= self.resolution


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How much better `of` is than `over`: the median of the rounds' ratios, and the lowest and highest of them.

    Above 1, `of` is better, whether more or less of the metric is.
    """

    case: str
    metric: str
    of: str
    over: str
    ratio: float
    low: float
    high: float


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample at `share` (0 to 1) of the sorted samples."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


def number(value: float) -> str:
    """A figure with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(item: Measurement) -> str:
    """How far the rounds' medians lay from their middle, "" below the resolution."""
    return f"±{item.spread * 50:.0f}%" if item.is_resolved else ""


def one(metric: Metric, value: float) -> Samples:
    """The samples of a turn with one value."""
    return {metric: [value]}


def latency(name: str, samples: Sequence[float], unit: str = "µs") -> Samples:
    """Single latencies, and their 99th percentile as a separate metric, so that it has ratios too."""
    return {Metric(name, unit): samples, Metric(f"{name} p99", unit): [percentile(samples, 0.99)]}


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection within: it would fall on one rival or the other."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measured(
    case: Case,
    *,
    quick: bool,
    shared: Shared | None = None,
    report: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> tuple[list[Measurement], list[Ratio]]:
    """Run a case. report: called with each step. Raises the error of a failed turn, AssertionError for wrong bytes."""
    with contextlib.closing(Shared()) as own:
        return _measured(case, Scale(quick, case.rounds[quick], shared or own), report)


def _measured(case: Case, scale: Scale, report: Callable[[str], None]) -> tuple[list[Measurement], list[Ratio]]:
    rounds: list[dict[str, Samples]] = []
    began = time.monotonic()
    with case.open(scale) as turns:
        names = list(turns)
        for number in range(scale.rounds):
            report(f"  round {number + 1} of {scale.rounds}: {', '.join(names)}")
            start = number % len(names)  # nobody is always the first
            rounds.append({name: turns[name]() for name in names[start:] + names[:start]})
    report(f"  {time.monotonic() - began:.1f} s")
    found = [_measurement(case, name, metric, rounds) for name in names for metric in rounds[0][name]]
    ratios = [
        _ratio(case, metric, of, over, rounds)
        for of, over in case.ratios
        if of in turns and over in turns
        for metric in rounds[0][of]
        if metric in rounds[0][over]
    ]
    return found, [ratio for ratio in ratios if ratio is not None]


def _measurement(case: Case, variant: str, metric: Metric, rounds: Sequence[Mapping[str, Samples]]) -> Measurement:
    turns = [turn[variant][metric] for turn in rounds]
    medians = [statistics.median(samples) for samples in turns]
    every = [sample for samples in turns for sample in samples]
    median = statistics.median(medians)
    unit = max(abs(median), metric.resolution)
    spread = (max(medians) - min(medians)) / unit if unit else 0.0
    p99 = percentile(every, 0.99)
    return Measurement(case.name, variant, metric.name, metric.unit, median, p99, spread, len(every), metric.resolution)


def _ratio(case: Case, metric: Metric, of: str, over: str, rounds: Sequence[Mapping[str, Samples]]) -> Ratio | None:
    """None where nothing was measured, as with failures that did not happen, or nothing above the resolution."""
    pairs = [(statistics.median(turn[of][metric]), statistics.median(turn[over][metric])) for turn in rounds]
    least = metric.resolution
    if any(mine <= 0 or other <= 0 or mine < least or other < least for mine, other in pairs):
        return None
    each = [mine / other if metric.more_is_better else other / mine for mine, other in pairs]
    return Ratio(case.name, metric.name, of, over, statistics.median(each), min(each), max(each))
