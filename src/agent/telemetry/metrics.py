"""Metrics as Prometheus reads them, made from what the rooms have counted, when somebody asks and not before.

Nothing here is on the way of a request. prometheus-client (the extra `metrics`) is imported with the first page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from ..errors import ConfigError
from ..runtime.histogram import BOUNDS_S, Histogram

if TYPE_CHECKING:
    from prometheus_client.registry import Collector
else:
    Collector = object  # what it derives from matters to type checkers only

__all__ = ["Kind", "Metric", "MetricsPage"]

PREFIX = "fastpipe_agent_"


Kind = Literal["counter", "gauge", "histogram"]
LabelValues = TypeVar("LabelValues", bound=tuple[str, ...])


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One family of samples.

    name: without the prefix, with its unit, and without a counter's `_total`.
    labels: the labels' names.
    samples: the labels' values with the number, or with the durations of a histogram. The values are the operator's or
        ours, never a client's.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    samples: Iterable[tuple[tuple[str, ...], float | Histogram]]

    @classmethod
    def single(cls, name: str, kind: Kind, help: str, value: float) -> Self:
        """A metric without labels."""
        return cls(name, kind, help, (), [((), value)])

    @classmethod
    def by_label(cls, name: str, kind: Kind, help: str, label: str, values: Mapping[str, float]) -> Self:
        """A metric with one label. values: a number for each of the label's values."""
        return cls(name, kind, help, (label,), [((key,), value) for key, value in values.items()])

    @classmethod
    def by_labels(
        cls, name: str, kind: Kind, help: str, labels: tuple[str, ...], values: Mapping[LabelValues, float]
    ) -> Self:
        """A metric with several labels, sorted. values: a number for each combination of the labels' values."""
        return cls(name, kind, help, labels, sorted(values.items()))


class MetricsPage:
    """Renders what `read` gives, and the process's own CPU time, memory and descriptors.

    prefix: of every name. field: the configuration's that asks for it.
    Raises ConfigError where prometheus-client isn't installed.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Metric]],
        *,
        prefix: str = PREFIX,
        field: str = "memory_comm.enable_metrics",
    ) -> None:
        try:
            from prometheus_client import CollectorRegistry, ProcessCollector
            from prometheus_client.exposition import choose_encoder
        except ImportError as error:
            expected = "must be false: prometheus-client isn't there; pip install 'fastpipe-agent[metrics]' brings it"
            raise ConfigError(field, "configuration", expected) from error
        self._registry = CollectorRegistry(auto_describe=False)
        self._choose_encoder = choose_encoder
        self._registry.register(_Families(read, prefix))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[str, bytes]:
        """(content type, page), in the format that the request's Accept asks for."""
        encoder, content_type = self._choose_encoder(accept)
        page: bytes = encoder(self._registry)
        return content_type, page


class _Families(Collector):
    """Metrics as prometheus-client's families."""

    def __init__(self, read: Callable[[], Iterable[Metric]], prefix: str) -> None:
        self._read = read
        self._prefix = prefix

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for metric in self._read():
            name = self._prefix + metric.name
            if metric.kind == "histogram":
                histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
                for values, durations in metric.samples:
                    assert isinstance(durations, Histogram)
                    bounds = [*map(str, BOUNDS_S), "+Inf"]
                    histogram.add_metric(values, list(zip(bounds, durations.cumulative, strict=True)), durations.sum_s)
                yield histogram
            else:
                family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                plain = family(name, metric.help, labels=metric.labels)
                for values, number in metric.samples:
                    assert not isinstance(number, Histogram)
                    plain.add_metric(values, number)
                yield plain
