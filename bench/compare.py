"""Compares reports: lists changes beyond the spread of both runs, in every pair of reports."""

from __future__ import annotations

import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from .measuring import number

__all__ = ["compare"]

LEAST = 0.1
"""A ratio that moved by less is no news, however calm both runs were: processes alone differ by so much."""

Key = tuple[str, ...]
Pair = tuple[dict[str, Any], dict[str, Any]]


def compare(paths: Sequence[pathlib.Path]) -> int:
    """Print the differences between OLD and NEW of each pair. Returns 1 if a ratio got worse, 2 without reports.

    Ratios decide, because both rivals of a ratio ran on the same machine at the same time. A 99th percentile is shown
    but decides nothing. All pairs must show the same change, because one pair may hit a bad minute of the machine.
    Figures never decide. They appear only if both runs had the same processor and Python.
    """
    if not paths or len(paths) % 2:
        print("reports are compared in pairs: OLD.json NEW.json", file=sys.stderr)
        return 2
    try:
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        pairs = list(zip(reports[::2], reports[1::2], strict=True))
        worse = _ratios(pairs)
        if all(
            old["environment"].get(key) == new["environment"].get(key)
            for key in ("processor", "python", "quick")
            for old, new in pairs
        ):
            _figures(pairs)
        else:
            print("other processor, Python or amounts: figures aren't compared, ratios are")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"no two reports that can be compared: {error!r}", file=sys.stderr)
        return 2
    return 1 if worse else 0


def _by(items: list[dict[str, Any]], *names: str) -> dict[Key, dict[str, Any]]:
    return {tuple(item[name] for name in names): item for item in items}


def _moved(was: dict[str, Any], now: dict[str, Any], value: str) -> int:
    """1 where it is more by more than both spreads, -1 where it is less, else 0."""
    if was[value] <= 0 or now[value] <= 0:
        return 0
    change = math.log(now[value] / was[value])
    if abs(change) <= LEAST + _spread(was) + _spread(now):
        return 0
    return 1 if change > 0 else -1


def _spread(item: dict[str, Any]) -> float:
    """Between the worst and the best round, as a share."""
    return float(item["spread"] if "spread" in item else (item["high"] - item["low"]) / item["ratio"])


def _ratios(pairs: Sequence[Pair]) -> int:
    """Print what is better and worse in every pair. Returns the number of ratios that got worse."""
    runs = [tuple(_by(report["ratios"], "case", "metric", "of", "over") for report in pair) for pair in pairs]
    first_old, first_new = runs[0]
    found: dict[int, list[str]] = {1: [], -1: [], 0: []}
    worse = 0
    for key in first_new:
        both = [(old[key], new[key]) for old, new in runs if key in old and key in new]
        if not both:
            continue
        moves = {_moved(was, now, "ratio") for was, now in both}
        move = moves.pop() if len(moves) == 1 else 0
        case, metric, of, over = key
        was, now = both[0]
        change = f"{number(was['ratio'])}× → {number(now['ratio'])}× ({now['ratio'] / was['ratio'] - 1:+.0%})"
        decides = not metric.endswith("p99")
        found[move].append(f"{case}, {metric}: {of} against {over} {change}{'' if decides else ', decides nothing'}")
        worse += move < 0 and decides
    for title, move in (("better", 1), ("worse", -1)):
        for line in found[move]:
            print(f"{title:7}{line}")
    gone, added = len(first_old.keys() - first_new.keys()), len(first_new.keys() - first_old.keys())
    print(
        f"ratios: {len(found[1])} better, {len(found[-1])} worse, {len(found[0])} within the spread, {added} new, "
        f"{gone} gone"
    )
    return worse


def _figures(pairs: Sequence[Pair]) -> None:
    runs = [tuple(_by(report["measurements"], "case", "variant", "metric") for report in pair) for pair in pairs]
    moved = []
    for key in runs[0][1]:
        both = [(old[key], new[key]) for old, new in runs if key in old and key in new]
        moves = {_moved(was, now, "median") for was, now in both}
        if len(moves) == 1 and moves != {0}:
            was, now = both[0]
            case, variant, metric = key
            values = f"{number(was['median'])} → {number(now['median'])} {now['unit']}"
            moved.append(f"moved  {case}, {metric}, {variant}: {values} ({now['median'] / was['median'] - 1:+.0%})")
    print("\n".join([*moved, f"figures: {len(moved)} moved beyond the spread"]))
