"""The reports of a run: report.json for programs, report.md with every table, report.svg with the ratios as bars."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

from . import chart, goals
from .measuring import Case, Measurement, Ratio, number, spread

__all__ = ["environment", "replace", "rounded", "value", "where_it_ran", "write"]

HERE = pathlib.Path(__file__).parent


def environment(*, quick: bool, took_s: float, failed: Sequence[str]) -> dict[str, Any]:
    """Return the environment of the figures."""
    import fastpipe

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "loop": f"uvloop {importlib.metadata.version('uvloop')}",
        "twin": fastpipe.IMPLEMENTATION,
        "quick": quick,
        "took_s": round(took_s, 1),
        "failed": list(failed),
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit}, with changes" if git("status", "--porcelain", "--untracked-files=no", "../src") else commit


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


def value(item: Measurement) -> str:
    """A measurement's median with its unit, or a note that the median is below the resolution."""
    figure = number(item.median) if item.is_resolved else f"below {number(item.resolution)}"
    return f"{figure} {item.unit}".strip()


def write(
    folder: pathlib.Path,
    cases: Sequence[Case],
    measurements: Sequence[Measurement],
    ratios: Sequence[Ratio],
    where: dict[str, Any],
) -> None:
    """Write the three files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "environment": where,
        "measurements": [rounded(item) for item in measurements],
        "ratios": [rounded(item) for item in ratios],
    }
    replace(folder / "report.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    replace(folder / "report.md", _markdown(cases, measurements, ratios, where))
    replace(folder / "report.svg", chart.svg(ratios, where))


def replace(path: pathlib.Path, text: str) -> None:
    """Write a file, whole or not at all."""
    beside = path.with_suffix(path.suffix + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def rounded(item: Measurement | Ratio) -> dict[str, Any]:
    """As a report has it, with five digits that count."""
    given = dataclasses.asdict(item)
    return {key: float(f"{each:.5g}") if isinstance(each, float) else each for key, each in given.items()}


def where_it_ran(where: dict[str, Any]) -> str:
    """The environment of the figures, in words."""
    quick = ", quick run" if where["quick"] else ""
    return (
        f"{where['date']}, commit {where['commit']}. {where['processor']}, {where['cores']} cores, {where['system']}, "
        f"load {where['load_average']}. Python {where['python']}, {where['loop']}, twin `{where['twin']}`{quick}, "
        f"{where['took_s']:.0f} s. Take the ratios rather than the figures: rivals took turns within each round."
    )


def _markdown(
    cases: Sequence[Case], measurements: Sequence[Measurement], ratios: Sequence[Ratio], where: dict[str, Any]
) -> str:
    lines = [
        "# Measured",
        "",
        where_it_ran(where),
        "",
    ]
    if where["failed"]:
        lines += [f"**Failed, and missing here: {', '.join(where['failed'])}.**", ""]
    lines += ["## Against the goals", "", goals.table(measurements, ratios), ""]
    for case in cases:
        own = [item for item in measurements if item.case == case.name]
        if not own:
            continue
        compared = [item for item in ratios if item.case == case.name]
        lines += [f"## {case.name}", "", case.title + ".", ""]
        lines += ["| metric | variant | median | p99 | spread | n |", "| --- | --- | ---: | ---: | ---: | ---: |"]
        for item in sorted(own, key=lambda item: item.metric):
            p99 = number(item.p99) if item.is_resolved or abs(item.p99) >= item.resolution else ""
            lines.append(f"| {item.metric} | {item.variant} | {value(item)} | {p99} | {spread(item)} | {item.n:,} |")
        if compared:
            lines += ["", "| metric | better | than | ratio | from – to |", "| --- | --- | --- | ---: | ---: |"]
            for ratio in compared:
                lines.append(
                    f"| {ratio.metric} | {ratio.of} | {ratio.over} | {number(ratio.ratio)}× "
                    f"| {number(ratio.low)} – {number(ratio.high)} |"
                )
        lines.append("")
    return "\n".join(lines)
