"""Draws the ratios as bars on a logarithmic axis, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from .measuring import Ratio

__all__ = ["svg"]

SHOWN = (
    ("Round trip, 64 B", "pipe round trip 64 B", "round trip", "pipe", "UDS"),
    ("… its p99", "pipe round trip 64 B", "round trip p99", "pipe", "UDS"),
    ("… delivered inline", "pipe round trip 64 B", "round trip", "pipe, inline", "UDS"),
    ("… the Python twin", "pipe round trip 64 B", "round trip", "Python twin", "UDS"),
    ("One way, 64 KiB writes", "pipe one way", "throughput", "pipe", "UDS"),
    ("Make, connect and close", "pipe life", "life", "pipe", "UDS"),
    ("Round trip through streams", "streams round trip", "round trip", "pipe", "UDS"),
    ("HTTP request through uvicorn", "uvicorn request", "time", "pipe", "UDS"),
    ("Agent's hop: CPU, kept-alive", "hop kept-alive", "CPU per request", "memory", "UDS"),
    ("… connection per request, 1/s", "hop connection per request", "requests/s", "memory", "UDS"),
    ("… p99, in-process target", "hop in-process target", "latency p99", "memory", "UDS"),
    ("Memory of an open connection", "open connections", "memory with the kernel's", "memory", "UDS"),
    ("Whole path, 50 clients, 1/s", "whole path 1 KiB, 50 clients", "requests/s", "memory", "UDS"),
)
"""(label, case, metric, of, over), in order. The chart omits cases that have not run."""

LEFT, WIDTH, ROW, TOP = 250, 760, 30, 66


def svg(ratios: Sequence[Ratio], environment: dict[str, Any]) -> str:
    """The picture, with the range of the rounds as a line on each bar."""
    found = {(item.case, item.metric, item.of, item.over): item for item in ratios}
    rows = [(label, found[key]) for label, *rest in SHOWN if (key := (rest[0], rest[1], rest[2], rest[3])) in found]
    most = max([2.0, *(item.high for _, item in rows)])
    lowest = min([1.0, *(item.low for _, item in rows)])
    bottom = math.log10(lowest) if lowest < 1 else 0.0
    scale = (WIDTH - LEFT - 90) / (math.log10(most) - bottom)
    height = TOP + ROW * len(rows) + 34

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - bottom) * scale

    title = "In memory against a Unix socket: how many times better"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{title}" font-family="system-ui, sans-serif" font-size="13">',
        "<style>text{fill:#1f2328}.quiet{fill:#59636e}.bar{fill:#2f81f7}.less{fill:#bc4c00}"
        ".axis{stroke:#8c959f;stroke-width:1}.range{stroke:#0a3069;stroke-width:1.5}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#9198a1}.range{stroke:#cae8ff}}</style>",
        f'<text x="16" y="26" font-size="16" font-weight="600">{title}</text>',
        '<text x="16" y="46" class="quiet">Both in one run, in turns; the median of the rounds, the line from the '
        "worst to the best; logarithmic.</text>",
    ]
    for number, (label, item) in enumerate(rows):
        y = TOP + number * ROW
        start, end = sorted((x(1), x(item.ratio)))
        look = "bar" if item.ratio >= 1 else "less"
        middle = y + 10
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{start:.1f}" y="{y}" width="{max(1.0, end - start):.1f}" height="20" rx="2" class="{look}"/>',
            f'<line x1="{x(item.low):.1f}" y1="{middle}" x2="{x(item.high):.1f}" y2="{middle}" class="range"/>',
            f'<text x="{max(end, x(item.high)) + 8:.1f}" y="{y + 15}" font-weight="600">{item.ratio:.3g}×</text>',
        ]
    axis_bottom = TOP + ROW * len(rows)
    parts.append(f'<line x1="{x(1):.1f}" y1="{TOP - 6}" x2="{x(1):.1f}" y2="{axis_bottom}" class="axis"/>')
    where = f"{environment['processor']}, {environment['cores']} cores; Python {environment['python']}, "
    where += f"{environment['loop']}; commit {environment['commit']}; {environment['date'][:10]}"
    parts.append(f'<text x="16" y="{axis_bottom + 20}" class="quiet" font-size="11">{escape(where)}</text></svg>')
    return "\n".join(parts) + "\n"
