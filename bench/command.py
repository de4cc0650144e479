"""The command line: which cases run, where the reports go, the defaults' curves, `compare` and `docs`."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from typing import Any

from .measuring import Case, Measurement, Ratio, Shared, measured

__all__ = ["main"]

RESULTS = pathlib.Path(__file__).parent / "results"


def all_cases() -> list[Case]:
    """Every case, in the order of the report."""
    from . import (
        calls,
        forwarded,
        hop,
        idle_connections,
        pipe,
        pooling,
        resources,
        streams,
        tunnel,
        uploads,
        users,
        whole_path,
    )

    rooms = (
        pipe,
        streams,
        tunnel,
        idle_connections,
        hop,
        uploads,
        pooling,
        whole_path,
        calls,
        forwarded,
        users,
        resources,
    )
    return [case for room in rooms for case in room.CASES]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 1 where a case failed, or something got worse."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, with every rival in the same run.")
    parser.add_argument("--quick", action="store_true", help="the named subset, in under 90 s")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument("--list", action="store_true", help="name the cases and exit")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    comparing = commands.add_parser("compare", help="list what got better or worse beyond the spread")
    comparing.add_argument(
        "reports",
        type=pathlib.Path,
        nargs="+",
        metavar="OLD.json NEW.json",
        help="more pairs may follow, and a change counts only if all pairs show it",
    )
    commands.add_parser("curves", help="measure each default beside what was not chosen (--only, --output as above)")
    documenting = commands.add_parser("docs", help="put the figures into docs/performance.md and README.md")
    documenting.add_argument("reports", type=pathlib.Path, nargs="*", metavar="REPORT.json", help="default: the last")
    given = parser.parse_args(arguments)
    if given.command == "compare":
        from .compare import compare

        return compare(given.reports)
    if given.command == "docs":
        from .docs import fill

        return fill(given.reports, given.output)
    if given.command == "curves":
        return run_curves(given.only, output=given.output)
    cases = [
        case
        for case in all_cases()
        if (case.quick or not given.quick) and (not given.only or any(text in case.name for text in given.only))
    ]
    if given.list:
        for case in cases:
            print(f"{case.name:40} {case.title}")
        return 0
    if not cases:
        parser.error("no case has such a name")
    return run(cases, quick=given.quick, output=given.output)


def run(cases: list[Case], *, quick: bool, output: pathlib.Path) -> int:
    """Measure and write the reports. A failed case is reported, and the other cases still run."""
    from . import goals, report

    measurements, ratios, environment = measure_all(cases, quick=quick)
    report.write(output, cases, measurements, ratios, environment)
    print(goals.table(measurements, ratios))
    return said(output, environment)


def run_curves(names: list[str], *, output: pathlib.Path) -> int:
    """Measure the defaults' curves and write their reports."""
    from . import curve_report, curves

    wanted = [curve for curve in curves.CURVES if not names or any(text in curve.case.name for text in names)]
    measurements, _, environment = measure_all([curve.case for curve in wanted], quick=False)
    curve_report.write(output, wanted, measurements, environment)
    return said(output, environment)


def said(output: pathlib.Path, environment: dict[str, Any]) -> int:
    """Report the duration and the failed cases. Returns the exit code."""
    print(f"{environment['took_s']:.0f} s, reports in {output}", file=sys.stderr)
    if environment["failed"]:
        print(f"failed: {', '.join(environment['failed'])}", file=sys.stderr)
    return 1 if environment["failed"] else 0


def measure_all(cases: list[Case], *, quick: bool) -> tuple[list[Measurement], list[Ratio], dict[str, Any]]:
    """Measure, and report progress. Returns the measurements and their environment."""
    from . import report

    measurements: list[Measurement] = []
    ratios: list[Ratio] = []
    failed: list[str] = []
    began = time.monotonic()
    shared, room = Shared(), ""
    try:
        for number, case in enumerate(cases, 1):
            so_far = f"[{number}/{len(cases)}, {time.monotonic() - began:.0f} s]"
            print(so_far, case.title, file=sys.stderr, flush=True)
            if case.room != room:
                shared.close()
                room = case.room
            try:
                found, compared = measured(case, quick=quick, shared=shared)
            except Exception as error:  # the others are still worth having
                failed.append(case.name)
                shared.close()  # what has failed once may have left a part of it broken
                print(f"  FAILED: {error!r}", file=sys.stderr, flush=True)
                continue
            measurements += found
            ratios += compared
    finally:
        shared.close()
    return measurements, ratios, report.environment(quick=quick, took_s=time.monotonic() - began, failed=failed)
