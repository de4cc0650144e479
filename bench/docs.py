"""Puts figures into documents: replaces the text between `<!--measured …-->` and `<!--/measured-->`.

    python -m bench docs [REPORT.json …]        docs/performance.md and README.md, from bench/results

    <!--measured ratio CASE | METRIC | OF | OVER-->14.3×<!--/measured-->         also `share`: −24%
    <!--measured median CASE | METRIC | VARIANT-->3.05 µs<!--/measured-->
    <!--measured where-->, short, goals, proposal, whole path, ways, connections, curves: paragraphs and tables

With several reports, the first report that has a figure wins. Tables mark figures from other reports with ◦. If no
report has a figure, the old figure stays and its name is printed.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import curve_report, goals
from .measuring import Measurement, Ratio, number
from .report import HERE, replace, value, where_it_ran
from .whole_path import CLIENTS, MODES, SIZES

__all__ = ["Reports", "fill", "filled"]

DOCUMENTS = (HERE.parent / "docs" / "performance.md", HERE.parent / "README.md")
MARKED = re.compile(r"(<!--measured ([^>]*)-->).*?(<!--/measured-->)", re.DOTALL)
PROPOSAL = (
    (
        "latency, p50",
        "1–5 µs → 0.1–0.5 µs, 10–50×",
        "pipe round trip 64 B",
        "round trip",
        "pipe",
        False,
        "64 B there and back between two Python protocols, the carrier alone",
    ),
    ("latency, p99", "10×", "pipe round trip 64 B", "round trip p99", "pipe", False, "the same"),
    (
        "… in the agent",
        "",
        "hop in-process target",
        "latency p99",
        "memory",
        False,
        "a request through manager, carrier and proxy, target in the process, p99",
    ),
    (
        "throughput",
        "10–50 → 50–100 GB/s, 2–5×",
        "pipe one way",
        "throughput",
        "pipe",
        False,
        "64 KiB writes of `bytes`, by reference: no byte is copied, so GB/s here is a count of writes",
    ),
    (
        "requests/s",
        "2×",
        "hop connection per request",
        "requests/s",
        "memory",
        False,
        "the agent's hop to nginx, a connection per request",
    ),
    ("… kept-alive", "2×", "hop kept-alive", "requests/s", "memory", False, "the same on 16 kept-alive connections"),
    (
        "CPU",
        "−20 to −40%",
        "hop kept-alive",
        "CPU per request",
        "memory",
        True,
        "the agent's hop, kept-alive, user and system time per request",
    ),
    (
        "… a connection per request",
        "−20 to −40%",
        "hop connection per request",
        "CPU per request",
        "memory",
        True,
        "the same, a connection per request",
    ),
    (
        "memory",
        "−30 to −50%",
        "open connections",
        "memory with the kernel's",
        "memory",
        True,
        "an open, idle connection from manager to proxy, process and kernel (Slab)",
    ),
    ("descriptors", "", "open connections", "descriptors", "memory", True, "the same"),
)
"""(label, what was expected, case, metric, variant that is compared with UDS, as a share, what was measured)."""


class Missing(LookupError):
    """No report has it."""


class Reports:
    """Figures of several runs, the first run's before the others'. curves: what curves.json holds, or None."""

    def __init__(self, contents: Sequence[dict[str, Any]], curves: dict[str, Any] | None = None) -> None:
        self.environments = [content["environment"] for content in contents]
        self.measurements: dict[tuple[str, str, str], tuple[Measurement, int]] = {}
        self.ratios: dict[tuple[str, str, str, str], tuple[Ratio, int]] = {}
        self.curves = curves
        for run, content in enumerate(contents):
            for item in (Measurement(**each) for each in content["measurements"]):
                self.measurements.setdefault((item.case, item.metric, item.variant), (item, run))
            for each in (Ratio(**each) for each in content["ratios"]):
                self.ratios.setdefault((each.case, each.metric, each.of, each.over), (each, run))

    def median(self, case: str, metric: str, variant: str) -> str:
        try:
            found, _ = self.measurements[case, metric, variant]
        except KeyError as error:
            raise Missing(*error.args) from None
        return value(found)

    def ratio(self, case: str, metric: str, of: str, over: str) -> Ratio:
        try:
            return self.ratios[case, metric, of, over][0]
        except KeyError as error:
            raise Missing(*error.args) from None

    def mark(self, case: str, metric: str, variant: str) -> str:
        return " ◦" if self.measurements[case, metric, variant][1] else ""


def share(ratio: Ratio) -> str:
    """How much less `of` takes."""
    return f"{1 / ratio.ratio - 1:+.0%}".replace("-", "−")


def cells(*texts: str) -> str:
    return "| " + " | ".join(texts) + " |"


def where(reports: Reports) -> str:
    marks = ["", " (marked ◦)", " (◦ too)"]
    said = [where_it_ran(each) + marks[min(run, 2)] for run, each in enumerate(reports.environments)]
    return "\n" + "\n\n".join(said) + "\n"


def proposal(reports: Reports) -> str:
    lines = [cells("metric", "proposal: UDS → memory", "measured: UDS → memory", "ratio", "what was measured")]
    lines.append("| --- | --- | --- | --- | --- |")
    for label, expected, case, metric, of, as_share, what in PROPOSAL:
        try:
            change = f"{reports.median(case, metric, 'UDS')} → {reports.median(case, metric, of)}"
        except Missing:
            continue
        found = reports.ratios.get((case, metric, of, "UDS"))
        gain = ""
        if found:
            ratio = found[0]
            gain = share(ratio) if as_share else f"{number(ratio.ratio)}× ({number(ratio.low)} – {number(ratio.high)})"
        lines.append(cells(label + reports.mark(case, metric, of), expected, change, gain, what))
    return "\n" + "\n".join(lines) + "\n"


def goals_table(reports: Reports) -> str:
    measurements = [item for item, _ in reports.measurements.values()]
    return "\n" + goals.table(measurements, [item for item, _ in reports.ratios.values()]) + "\n"


def many(clients: int) -> str:
    return f"{clients} client{'s' * (clients > 1)}"


def whole_path(reports: Reports) -> str:
    head = (
        "clients",
        "requests/s, memory",
        "UDS",
        "latency, memory",
        "agent's CPU per request, memory",
        "UDS",
        "hub's CPU per request",
        "failures, memory / UDS",
    )
    lines = [cells(*head), "| ---: | ---: | ---: | --- | ---: | ---: | ---: | --- |"]
    for clients in CLIENTS:
        case = f"whole path 1 KiB, {many(clients)}"
        try:
            rates = [reports.median(case, "requests/s", mode).removesuffix(" 1/s") for mode in MODES]
            latency = " / ".join(reports.median(case, metric, "memory") for metric in ("latency", "latency p99"))
            agents = [reports.median(case, "agent's CPU per request", mode) for mode in MODES]
            hub = reports.median(case, "hub's CPU per request", "memory")
            failures = " / ".join(worst(reports, case, mode) for mode in MODES)
        except Missing:
            continue
        label = f"{clients}{reports.mark(case, 'requests/s', 'memory')}"
        lines.append(cells(label, *rates, latency, *agents, hub, failures))
    return "\n" + "\n".join(lines) + "\n"


def worst(reports: Reports, case: str, mode: str) -> str:
    """The failures of the worst round."""
    found = reports.measurements.get((case, "failures", mode))
    if found is None:
        raise Missing(case, "failures", mode)
    return number(found[0].p99)


def ways(reports: Reports) -> str:
    """Every other way through the whole path: rates of memory and UDS, by the number of clients."""
    lines = [cells("memory / UDS", *(many(clients) for clients in CLIENTS), "failures")]
    lines.append("| --- |" + " ---: |" * len(CLIENTS) + " ---: |")
    for tls in ("", ", TLS target"):
        for size in SIZES.values():
            for how in ("", ", a connection per request"):
                metric = "requests/s" if size == "1 KiB" else "throughput"
                row, failures = [], 0.0
                for clients in CLIENTS:
                    case = f"whole path {size}, {many(clients)}{how}{tls}"
                    try:
                        both = [reports.median(case, metric, mode).rpartition(" ")[0] for mode in MODES]
                        failures += sum(reports.measurements[case, "failures", mode][0].p99 for mode in MODES)
                    except LookupError:
                        continue
                    row.append(" / ".join(both))
                if len(row) == len(CLIENTS):
                    unit = metric if metric == "requests/s" else "MB/s"
                    lines.append(cells(f"{size}{how or ', kept-alive'}{tls}, {unit}", *row, number(failures)))
    if len(lines) == 2:
        raise Missing("whole path", "other ways")
    return "\n" + "\n".join(lines) + "\n"


def connections(reports: Reports) -> str:
    lines = [cells("an open connection", "memory", "UDS", "ratio"), "| --- | ---: | ---: | ---: |"]
    for case, label in (("1,000 open connections", "of 1,000"), ("open connections", "of 10,000 (quick run: 4,000)")):
        for metric in ("memory in the process", "memory in the kernel", "memory with the kernel's", "descriptors"):
            try:
                both = [reports.median(case, metric, mode) for mode in MODES]
            except Missing:
                continue
            found = reports.ratios.get((case, metric, "memory", "UDS"))
            lines.append(cells(f"{metric}, {label}", *both, f"{number(found[0].ratio)}×" if found else ""))
    return "\n" + "\n".join(lines) + "\n"


def curves(reports: Reports) -> str:
    if reports.curves is None:
        raise Missing("curves.json")
    return f"\n{where_it_ran(reports.curves['environment'])}\n\n{curve_report.tables(reports.curves)}"


SHORT = (
    ("round trip of 64 bytes", "pipe round trip 64 B", "round trip", "pipe"),
    ("… its 99th percentile", "pipe round trip 64 B", "round trip p99", "pipe"),
    ("requests/s of the agent's hop, a connection each", "hop connection per request", "requests/s", "memory"),
    ("CPU of it for a request on a kept-alive connection", "hop kept-alive", "CPU per request", "memory"),
    ("an open connection, the kernel's part counted", "open connections", "memory with the kernel's", "memory"),
    ("requests/s of the whole path, 50 clients", "whole path 1 KiB, 50 clients", "requests/s", "memory"),
)
"""The README's: (label, case, metric, variant that is compared with UDS)."""


def short(reports: Reports) -> str:
    lines = [cells("", "UDS", "memory", "better"), "| --- | ---: | ---: | ---: |"]
    for label, case, metric, of in SHORT:
        try:
            both = [reports.median(case, metric, variant) for variant in ("UDS", of)]
            lines.append(cells(label, *both, f"{number(reports.ratio(case, metric, of, 'UDS').ratio)}×"))
        except Missing:
            continue
    return "\n" + "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[Reports], str]] = {
    "where": where,
    "short": short,
    "proposal": proposal,
    "goals": goals_table,
    "whole path": whole_path,
    "ways": ways,
    "connections": connections,
    "curves": curves,
}


def figure(reports: Reports, asked: str) -> str:
    """Return the text for a mark. Raises Missing if no report has the figure, ValueError for an unknown mark."""
    if asked in TABLES:
        return TABLES[asked](reports)
    kind, _, rest = asked.partition(" ")
    names = [name.strip() for name in rest.split("|")]
    if kind == "median" and len(names) == 3:
        return reports.median(names[0], names[1], names[2])
    if kind in ("ratio", "share") and len(names) == 4:
        ratio = reports.ratio(names[0], names[1], names[2], names[3])
        return share(ratio) if kind == "share" else f"{number(ratio.ratio)}×"
    raise ValueError(f"{asked!r} is no figure that a document can ask for")


def filled(text: str, reports: Reports) -> tuple[str, list[str]]:
    """The document with its figures, and what no report has."""
    missing = []

    def one(match: re.Match[str]) -> str:
        try:
            return f"{match[1]}{figure(reports, match[2].strip())}{match[3]}"
        except Missing:
            missing.append(match[2].strip())
            return match[0]

    return MARKED.sub(one, text), missing


def fill(paths: Sequence[pathlib.Path], results: pathlib.Path, documents: Sequence[pathlib.Path] = DOCUMENTS) -> int:
    """Fill the documents from these reports. Returns the exit code: 0, 2 where a report can't be read."""
    try:
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths or [results / "report.json"]]
        drawn = results / "curves.json"
        reports = Reports(contents, json.loads(drawn.read_text(encoding="utf-8")) if drawn.exists() else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"no reports to take figures from: {error!r}", file=sys.stderr)
        return 2
    for document in documents:
        text, missing = filled(document.read_text(encoding="utf-8"), reports)
        replace(document, text)
        left = f"; as they were: {', '.join(missing)}" if missing else ""
        print(f"{document.name}: {len(MARKED.findall(text)) - len(missing)} figures and tables written{left}")
    return 0
