"""The whole path as its users have it: wrk or curl → hub → agent → nginx, each a process of its own.

One hub has two agents, one in each mode; the load goes to one after the other. Client, hub, agent and nginx share the
machine's cores, so requests/s say what all four cost together; what the agent alone costs is its CPU per request.
"""

from __future__ import annotations

import contextlib
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence

from .measuring import Case, Metric, Samples, Scale, Turn
from .peers import Nginx, Program, agent, hub, load, nginx, program

__all__ = ["CASES"]

RATE = Metric("requests/s", "1/s", more_is_better=True)
P50 = Metric("latency", "ms")
P99 = Metric("latency p99", "ms")
FAILURES = Metric("failures", "requests")
AGENT_CPU = Metric("agent's CPU per request", "µs")
HUB_CPU = Metric("hub's CPU per request", "µs")
SPEED = Metric("throughput", "MB/s", more_is_better=True)
AGENT_CPU_MS = Metric("agent's CPU", "ms")


class Path:
    """A hub, an nginx, and agents by mode; addresses: where the target is reached by variant."""

    def __init__(self, hub: Program, http: str, agents: Mapping[str, Program], server: Nginx) -> None:
        self.hub, self.agents, self.server = hub, agents, server
        self.addresses = {mode: f"http://{http}/{mode.lower()}" for mode in agents}
        self.addresses["nginx alone"] = server.url

    def check(self, variant: str, name: str) -> None:
        """Fetch a file once. Raises AssertionError where it isn't what nginx serves."""
        with urllib.request.urlopen(f"{self.addresses[variant]}/{name}", timeout=20) as answer:
            if answer.read() != self.server.files[name]:
                raise AssertionError(f"{variant}: /{name} arrived changed")

    def under_load(self, variant: str, name: str, clients: int, seconds: float, *, close: bool) -> Samples:
        """wrk's figures, and what each process spent."""
        self.check(variant, name)
        url = f"{self.addresses[variant]}/{name}"
        own = self.agents.get(variant)
        before = (own.cpu_s(), self.hub.cpu_s()) if own else (0.0, 0.0)
        found = load(url, clients, seconds, close=close)
        samples: dict[Metric, list[float]] = {
            RATE: [found["requests_per_s"]],
            P50: [found["p50_ms"]],
            P99: [found["p99_ms"]],
            FAILURES: [found["failures"]],
        }
        if own and found["requests"]:
            samples[AGENT_CPU] = [(own.cpu_s() - before[0]) / found["requests"] * 1e6]
            samples[HUB_CPU] = [(self.hub.cpu_s() - before[1]) / found["requests"] * 1e6]
        if name != "1k":
            samples[SPEED] = [found["requests_per_s"] * len(self.server.files[name]) / 1e6]
        self.check(variant, name)
        return samples

    def download(self, variant: str) -> Samples:
        """1 GiB by curl, after 1 MiB whose every byte is looked at."""
        self.check(variant, "1m")
        own = self.agents.get(variant)
        before = own.cpu_s() if own else 0.0
        form = "%{http_code} %{size_download} %{time_total}"
        command = [program("curl"), "-s", "-o", "/dev/null", "-w", form, f"{self.addresses[variant]}/1g"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        status, size, took_s = done.stdout.split()
        if (status, int(size)) != ("200", 1 << 30):
            raise AssertionError(f"{variant}: {done.stdout}")
        samples = {SPEED: [(1 << 30) / float(took_s) / 1e6]}
        if own:
            samples[AGENT_CPU_MS] = [(own.cpu_s() - before) * 1e3]
        return samples


@contextlib.contextmanager
def whole_path() -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(nginx())
        running, grpc, http = stack.enter_context(hub())
        agents = {
            mode: stack.enter_context(agent(grpc, mode.lower(), server.url, memory=mode == "memory"))
            for mode in ("memory", "UDS")
        }
        yield Path(running, http, agents, server)


VARIANTS = ("memory", "UDS", "nginx alone")


def loaded(name: str, clients: int, *, close: bool = False, quick: bool = False) -> Case:
    """name: of the file, "1k" or "1m"."""

    @contextlib.contextmanager
    def open_case(scale: Scale) -> Iterator[Mapping[str, Turn]]:
        seconds = 2.0 if clients == 50 and scale.quick else scale.of(3, 1)
        with whole_path() as path:
            for mode in ("memory", "UDS"):
                load(f"{path.addresses[mode]}/{name}", clients, 1)  # connections and pools are made before
            yield {
                who: lambda who=who: path.under_load(who, name, clients, seconds, close=close)  # type: ignore[misc]
                for who in (VARIANTS[:2] if scale.quick else VARIANTS)
            }

    size = {"1k": "1 KiB", "1m": "1 MiB"}[name]
    how = ", a connection per request" if close else ""
    text = f"whole path {size}, {clients} client{'s' * (clients > 1)}{how}"
    title = f"wrk → hub → agent → nginx, {size}, {clients} client{'s' * (clients > 1)}{how or ', kept-alive'}"
    return Case(text, title, open_case, [("memory", "UDS")], quick=quick, rounds=(3, 2))


@contextlib.contextmanager
def open_download(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    with whole_path() as path:
        yield {
            who: lambda who=who: path.download(who)  # type: ignore[misc]
            for who in (VARIANTS[:2] if scale.quick else VARIANTS)
        }


CASES: Sequence[Case] = (
    *(loaded("1k", clients, quick=clients in (1, 50, 500)) for clients in (1, 10, 50, 200, 500)),
    loaded("1k", 50, close=True),
    loaded("1m", 1),
    loaded("1m", 50),
    Case(
        "whole path 1 GiB download",
        "curl → hub → agent → nginx, 1 GiB",
        open_download,
        [("memory", "UDS")],
        quick=True,
        rounds=(3, 2),
    ),
)
