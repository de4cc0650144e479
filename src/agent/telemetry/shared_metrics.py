"""The metrics that agent and hub share: what runs, whether it is ready, its certificates, its log and its requests."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import fastpipe

from ..runtime.histogram import Histogram
from . import logs
from .metrics import Metric

__all__ = ["Credentials", "Measured", "Service", "of_requests", "of_service"]

CERTIFICATE_HELP = "When the certificates of a setting's files expire, in seconds since 1970."


class Credentials(Protocol):
    """The files that a service presents to its peers."""

    @property
    def expiries(self) -> Mapping[str, float]:
        """When the first certificate of a setting's files expires, in seconds since 1970, by setting."""


class Service(Protocol):
    """The attributes of an agent or a hub that these metrics read."""

    @property
    def ready(self) -> bool: ...
    @property
    def credentials(self) -> Credentials: ...


class Measured(Protocol):
    """A proxy's measurements of its requests. responses, own: counts by the first digit of the status."""

    @property
    def responses(self) -> Sequence[int]: ...
    @property
    def own(self) -> Sequence[int]: ...
    @property
    def upgraded(self) -> int: ...
    @property
    def cut(self) -> int: ...
    @property
    def stages(self) -> Mapping[str, Histogram]: ...


def of_service(service: Service) -> Iterator[Metric]:
    """The metrics of a process: its versions, whether it is ready, when its certificates expire, and its log."""
    from importlib.metadata import version  # brings 33 modules, which most agents never need

    values = {
        "version": version("fastpipe-agent"),
        "fastpipe": fastpipe.IMPLEMENTATION,
        "python": platform.python_version(),
        "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
    }
    yield Metric("build_info", "gauge", "What is running.", tuple(values), [(tuple(values.values()), 1)])
    yield Metric.single("ready", "gauge", "1 where /readyz says ready.", int(service.ready))
    expiries = dict(sorted(service.credentials.expiries.items()))
    yield Metric.by_label("certificate_expiry_timestamp_seconds", "gauge", CERTIFICATE_HELP, "setting", expiries)
    yield from logs.read()


def of_requests(
    measured: Mapping[tuple[str, ...], Measured], labels: tuple[str, ...], *, upstream: str, own: str, policy: bool
) -> Iterator[Metric]:
    """Responses, and how long requests took.

    measured: by the values of `labels`, () where there is one proxy. upstream, own: the words for the party that the
    proxy asks, and for the proxy itself. policy: whether requests have a stage in which a policy decides.
    """
    responses: dict[tuple[str, ...], float] = {}
    for key, measures in measured.items():
        for source, by_digit in ((upstream, measures.responses), (own, measures.own)):
            for digit, count in enumerate(by_digit):
                if count or (digit == 2 and source == upstream):
                    responses[*key, source, f"{digit}xx"] = count
        responses[*key, upstream, "upgraded"] = measures.upgraded
    yield Metric.by_labels(
        "responses",
        "counter",
        "Responses by whose they are and the first digit of their status.",
        (*labels, "source", "status"),
        responses,
    )
    cut = {key: measures.cut for key, measures in measured.items()}
    yield Metric.by_labels("responses_cut", "counter", "Responses that ended unfinished.", labels, cut)
    stages = f"connect (new connections to {upstream}s), head and body of the response; whole."
    yield Metric(
        "request_stage_seconds",
        "histogram",
        f"How long requests took: {'policy, ' if policy else ''}{stages}",
        (*labels, "stage"),
        [
            ((*key, stage), took)
            for key, measures in measured.items()
            for stage, took in measures.stages.items()
            if policy or stage != "policy"
        ],
    )
