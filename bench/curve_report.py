"""The curves' reports: curves.json for programs, curves.md with tables, curves.svg with a chart for each metric."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from .measuring import Measurement, number, spread
from .report import replace, rounded, value, where_it_ran

if TYPE_CHECKING:
    from .curves import Curve  # curves need the compiled pipe, a report's tables do not

__all__ = ["tables", "write"]

COLUMNS, WIDTH, HEIGHT = 3, 300, 178
LEFT, RIGHT, TOP, BOTTOM = 18, 18, 56, 34


def write(folder: pathlib.Path, curves: Sequence[Curve], found: Sequence[Measurement], where: dict[str, Any]) -> None:
    """Write the three files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    named = [
        {
            "case": each.case.name,
            "title": each.case.title,
            "setting": each.setting,
            "chosen": each.chosen,
            "why": each.why,
        }
        for each in curves
    ]
    content = {"environment": where, "curves": named, "measurements": [rounded(item) for item in found]}
    replace(folder / "curves.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    replace(folder / "curves.md", f"# Defaults and their curves\n\n{where_it_ran(where)}\n\n{tables(content)}")
    replace(folder / "curves.svg", svg(content))


def tables(content: dict[str, Any]) -> str:
    """Markdown: a table for each curve, the default's row in bold."""
    lines = []
    for each in content["curves"]:
        own = [item for item in content["measurements"] if item["case"] == each["case"]]
        if not own:
            continue
        metrics = list(dict.fromkeys(item["metric"] for item in own))
        lines += [f"### {each['case']}", "", f"{each['title']}. Set by {each['setting']}: {each['why']}.", ""]
        lines += ["| | " + " | ".join(metrics) + " |", "| --- |" + " ---: |" * len(metrics)]
        for variant in dict.fromkeys(item["variant"] for item in own):
            bold = "**" if variant == each["chosen"] else ""
            cells = [
                f"{bold}{value(item)}{bold} {spread(item)}".strip()
                for metric in metrics
                for item in (Measurement(**each) for each in own)
                if (item.variant, item.metric) == (variant, metric)
            ]
            lines.append(f"| {bold}{variant}{bold} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def svg(content: dict[str, Any]) -> str:
    """The picture: medians as a line, the rounds' spread as bars, the default as a large dot."""
    charts = []
    for each in content["curves"]:
        own = [item for item in content["measurements"] if item["case"] == each["case"]]
        metrics = dict.fromkeys(item["metric"] for item in own)
        charts += [(each, [item for item in own if item["metric"] == metric]) for metric in metrics]
    rows = -(-len(charts) // COLUMNS)
    width, height = COLUMNS * WIDTH, rows * HEIGHT + 74
    title = "Each default beside what was not chosen"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{title}" font-family="system-ui, sans-serif" font-size="11">',
        "<style>text{fill:#1f2328}.quiet{fill:#59636e}.line{stroke:#2f81f7;stroke-width:2;fill:none}.dot{fill:#2f81f7}"
        ".chosen{fill:#bc4c00}.range{stroke:#8c959f;stroke-width:1}.axis{stroke:#d1d9e0;stroke-width:1}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#9198a1}.axis{stroke:#3d444d}}</style>",
        f'<text x="16" y="26" font-size="16" font-weight="600">{title}</text>',
        '<text x="16" y="46" class="quiet">The median of the rounds, and their spread; the large dot is the default. '
        "Every axis begins at 0.</text>",
    ]
    for index, (each, points) in enumerate(charts):
        x0, y0 = index % COLUMNS * WIDTH, 60 + index // COLUMNS * HEIGHT
        parts += chart(each, points, x0, y0)
    where = content["environment"]
    footer = f"{where['processor']}, {where['cores']} cores, Python {where['python']}, {where['loop']}, "
    footer += f"commit {where['commit']}; {where['date'][:10]}"
    parts.append(f'<text x="16" y="{height - 8}" class="quiet">{escape(footer)}</text></svg>')
    return "\n".join(parts) + "\n"


def chart(each: dict[str, Any], points: Sequence[dict[str, Any]], x0: float, y0: float) -> list[str]:
    """One small chart with its corner at x0, y0."""
    most = max(item["median"] * (1 + item["spread"] / 2) for item in points) or 1.0
    step = (WIDTH - LEFT - RIGHT) / max(1, len(points))
    floor = y0 + HEIGHT - BOTTOM

    def y(value: float) -> float:
        return floor - max(0.0, value) / most * (HEIGHT - TOP - BOTTOM)

    places = [(x0 + LEFT + step * (place + 0.5), item) for place, item in enumerate(points)]
    unit = points[0]["unit"]
    parts = [
        f'<text x="{x0 + LEFT}" y="{y0 + 18}" font-weight="600">{escape(each["case"])}</text>',
        f'<text x="{x0 + LEFT}" y="{y0 + 32}" class="quiet">{escape(points[0]["metric"])}, {escape(unit)}</text>',
        f'<line x1="{x0 + LEFT}" y1="{floor}" x2="{x0 + WIDTH - RIGHT}" y2="{floor}" class="axis"/>',
        '<polyline class="line" points="' + " ".join(f"{x:.1f},{y(item['median']):.1f}" for x, item in places) + '"/>',
    ]
    for x, item in places:
        half, chosen = abs(item["median"]) * item["spread"] / 2, item["variant"] == each["chosen"]
        look, size = ("chosen", 5) if chosen else ("dot", 3)
        top = y(item["median"] + half)
        parts += [
            f'<line x1="{x:.1f}" y1="{y(item["median"] - half):.1f}" x2="{x:.1f}" y2="{top:.1f}" class="range"/>',
            f'<circle cx="{x:.1f}" cy="{y(item["median"]):.1f}" r="{size}" class="{look}"/>',
            f'<text x="{x:.1f}" y="{top - 8:.1f}" text-anchor="middle" font-size="10">{number(item["median"])}</text>',
        ]
        for line, text in enumerate(item["variant"].split(", ")):
            parts.append(
                f'<text x="{x:.1f}" y="{floor + 14 + 11 * line}" text-anchor="middle" class="quiet" font-size="10">'
                f"{escape(text)}</text>"
            )
    return parts
