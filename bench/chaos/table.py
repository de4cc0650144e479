"""Rows of the one table that a run prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

__all__ = ["Bound", "Row", "as_json", "table"]

HEADS = ("fault", "both sides know after", "requests lost", "first success after", "measured", "bound", "ok")


@dataclasses.dataclass(frozen=True)
class Bound:
    """A promise, and whether this run kept it."""

    text: str
    holds: bool


@dataclasses.dataclass
class Row:
    """One fault.

    hub_s, agent_s: seconds until that side knows.
    first_s: seconds until the first success. None means not measured, or never.
    knowing: who must detect the fault, "hub", "agent", "both" or "".
    """

    fault: str
    knowing: str = ""
    hub_s: float | None = None
    agent_s: float | None = None
    lost: str = "–"
    first_s: float | None = None
    measured: str = ""
    bounds: list[Bound] = dataclasses.field(default_factory=list)
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and all(bound.holds for bound in self.bounds)

    def bind(self, text: str, holds: bool) -> None:
        self.bounds.append(Bound(text, holds))

    @property
    def known(self) -> str:
        sides = [("hub", self.hub_s), ("agent", self.agent_s)]
        known = [f"{side} {_seconds(took_s)}" for side, took_s in sides if self.knowing in (side, "both")]
        return ", ".join(known) or "–"

    @property
    def cells(self) -> tuple[str, ...]:
        first = "–" if self.first_s is None else _seconds(self.first_s)
        bounds = "; ".join(bound.text + ("" if bound.holds else " (MISSED)") for bound in self.bounds)
        verdict = "yes" if self.ok else "NO"
        return (self.fault, self.known, self.lost, first, self.error or self.measured or "–", bounds, verdict)


def _seconds(took_s: float | None) -> str:
    if took_s is None:
        return "never"
    return f"{took_s:.1f} s" if took_s >= 1 else f"{took_s:.2f} s"


def table(rows: Sequence[Row]) -> str:
    """All rows, as a table in Markdown with aligned columns."""
    lines = [HEADS, *(row.cells for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    printed = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    printed.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(printed)


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows for programs."""
    return [dataclasses.asdict(row) | {"ok": row.ok} for row in rows]
