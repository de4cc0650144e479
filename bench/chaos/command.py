"""The command line: checks what it needs, runs the scenarios, prints the table. Exit 1 if a bound is missed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from .lab import Lab
from .namespaces import Namespace, prefix, remove_leftovers
from .relay import open_tun
from .scenarios import SCENARIOS, Scenario
from .table import Row, as_json, table

__all__ = ["main", "missing"]

AT_ONCE = 6
"""Scenarios that run beside each other: each starts half a dozen interpreters, and then waits."""
SCENARIO_TIMEOUT_S = 240.0


def missing() -> list[str]:
    """List what this machine lacks, one sentence each."""
    if sys.platform != "linux":
        return ["Linux is needed, because only Linux has network namespaces."]
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root is needed, for network namespaces and TUN devices: sudo make chaos.")
    if shutil.which("ip") is None:
        lacks.append("the command ip is missing: install the package iproute2.")
    if importlib.util.find_spec("aiohttp") is None:
        lacks.append("aiohttp is missing: install the extra [test].")
    return lacks or _unusable()


def _unusable() -> list[str]:
    """Try a namespace and a TUN device: a container may forbid both to its root."""
    try:
        Namespace(f"{prefix()}-try").close()
    except (RuntimeError, OSError) as error:
        return [f"network namespaces can't be made here: {error}."]
    try:
        os.close(open_tun("fpchaos-try"))
    except OSError as error:
        return [f"TUN devices can't be made here (/dev/net/tun, CAP_NET_ADMIN): {error}."]
    return []


async def run(chosen: Sequence[Scenario], folder: pathlib.Path, at_once: int) -> list[Row]:
    """Run scenarios, those that measure throughput after all others and one by one. Cancelled: all is removed."""
    numbers = itertools.count()
    rows = {scenario.name: Row(scenario.title) for scenario in chosen}
    turns = asyncio.Semaphore(at_once)

    async def one(scenario: Scenario) -> None:
        row = rows[scenario.name]

        def make(part: str = "", **options: Any) -> Lab:
            return Lab(f"{prefix()}-{next(numbers)}", folder / scenario.name / part, **options)

        async with turns:
            print(f"{scenario.name} …", file=sys.stderr, flush=True)
            shutil.rmtree(folder / scenario.name, ignore_errors=True)  # of an earlier run with the same --logs
            try:
                async with asyncio.timeout(SCENARIO_TIMEOUT_S):
                    await scenario.run(make, row)
            except Exception as error:  # the other rows are worth having
                row.error = f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ")
                print(f"{scenario.name}: {error}", file=sys.stderr, flush=True)
            print(f"{scenario.name}: {'ok' if row.ok else 'NOT ok'}", file=sys.stderr, flush=True)

    await asyncio.gather(*(one(scenario) for scenario in chosen if not scenario.alone))
    for scenario in chosen:
        if scenario.alone:
            await one(scenario)
    return list(rows.values())


async def _until_signalled(chosen: Sequence[Scenario], folder: pathlib.Path, at_once: int) -> list[Row] | None:
    """As run(); None if a signal ended it."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(run(chosen, folder, at_once))
    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(which, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, or 1 where something is missing or a bound is."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description="Faults on links between real processes. Needs root."
    )
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="scenarios whose name has TEXT")
    parser.add_argument("--list", action="store_true", help="name the scenarios and exit")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, metavar="N", help=f"default: {AT_ONCE}")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--logs", type=pathlib.Path, metavar="FOLDER", help="keep all logs there")
    given = parser.parse_args(arguments)
    chosen = [one for one in SCENARIOS if not given.only or any(text in one.name for text in given.only)]
    if given.list:
        for one in chosen:
            print(f"{one.name:16} {one.title}")
        return 0
    lacks = missing()
    for sentence in lacks:
        print(f"chaos: {sentence}", file=sys.stderr)
    if lacks:
        return 1
    for name in remove_leftovers():
        print(f"chaos: removed the namespace {name} of a run that was killed", file=sys.stderr)
    folder = given.logs or pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))
    began_s = time.monotonic()
    rows = asyncio.run(_until_signalled(chosen, folder, max(1, given.at_once)))
    if rows is None:
        print("chaos: stopped by a signal", file=sys.stderr)
        if given.logs is None:
            shutil.rmtree(folder, ignore_errors=True)
        return 1
    print(table(rows))
    ok = bool(rows) and all(row.ok for row in rows)
    took_s = time.monotonic() - began_s
    print(f"{sum(row.ok for row in rows)} of {len(rows)} faults within their bounds, {took_s:.0f} s")
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(rows), indent=1) + "\n", encoding="utf-8")
    if ok and given.logs is None:
        shutil.rmtree(folder)
    else:
        print(f"logs: {folder}")
    return 0 if ok else 1
