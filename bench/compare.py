"""Two reports side by side: what got better or worse by more than both runs' own spread."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from .report import number

__all__ = ["compare"]

LEAST = 0.05
"""A ratio that moved by less is no news, however calm both runs were."""


def compare(old_path: pathlib.Path, new_path: pathlib.Path) -> int:
    """Print the differences of the ratios, and of the figures. Returns 1 if a ratio got worse, 2 for unreadable files.

    Ratios decide, for both rivals of one ran on the same machine at the same time. Figures are compared only where both
    runs were on the same processor and Python, and never decide.
    """
    try:
        old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (old_path, new_path))
        old_ratios, new_ratios = (_by(report["ratios"], "case", "metric", "of", "over") for report in (old, new))
        worse = _ratios(old_ratios, new_ratios)
        if all(old["environment"].get(key) == new["environment"].get(key) for key in ("processor", "python", "quick")):
            _figures(*(_by(report["measurements"], "case", "variant", "metric") for report in (old, new)))
        else:
            print("other processor, Python or amounts: figures aren't compared, ratios are")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"no two reports that can be compared: {error!r}", file=sys.stderr)
        return 2
    return 1 if worse else 0


Key = tuple[str, ...]


def _by(items: list[dict[str, Any]], *names: str) -> dict[Key, dict[str, Any]]:
    return {tuple(item[name] for name in names): item for item in items}


def _ratios(old: dict[Key, dict[str, Any]], new: dict[Key, dict[str, Any]]) -> int:
    """Better and worse are told where the ranges of the rounds don't touch. Returns how many are worse."""
    better, worse, same = [], [], 0
    for key, now in new.items():
        was = old.get(key)
        if was is None:
            continue
        case, metric, of, over = key
        moved = now["ratio"] / was["ratio"] - 1
        line = f"{case}, {metric}: {of} against {over} {number(was['ratio'])}× → {number(now['ratio'])}× ({moved:+.0%})"
        if now["low"] > was["high"] and moved > LEAST:
            better.append(line)
        elif now["high"] < was["low"] and moved < -LEAST:
            worse.append(line)
        else:
            same += 1
    for title, lines in (("better", better), ("worse", worse)):
        for line in lines:
            print(f"{title:7}{line}")
    gone, added = len(old.keys() - new.keys()), len(new.keys() - old.keys())
    print(f"ratios: {len(better)} better, {len(worse)} worse, {same} within the spread, {added} new, {gone} gone")
    return len(worse)


def _figures(old: dict[Key, dict[str, Any]], new: dict[Key, dict[str, Any]]) -> None:
    moved = []
    for key, now in new.items():
        was = old.get(key)
        if was is None or not was["median"] or not now["median"]:
            continue
        change = now["median"] / was["median"] - 1
        if abs(change) > LEAST + was["spread"] + now["spread"]:
            case, variant, metric = key
            values = f"{number(was['median'])} → {number(now['median'])} {now['unit']}"
            moved.append(f"moved  {case}, {metric}, {variant}: {values} ({change:+.0%})")
    print("\n".join([*moved, f"figures: {len(moved)} moved beyond the spread"]))
