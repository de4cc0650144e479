"""What two ends of a tunnel agree on beyond the base protocol (wire.md, "Extensions")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["CLOSE", "FEATURES", "GOAWAY", "NAME", "WINDOW", "read_features", "write_features"]

NAME: Final = b"tunnel-features"
"""The metadata that an agent offers them in, and a hub answers in: names in lower case, with commas between."""

CLOSE: Final = "close"
WINDOW: Final = "window"
GOAWAY: Final = "goaway"

FEATURES: Final = frozenset({CLOSE, GOAWAY, WINDOW})
"""What this version knows."""


def read_features(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[str]:
    """The features that a call's or an answer's head names; names not known here are among them."""
    value = b",".join(value for name, value in headers if name == NAME).decode("latin-1")
    return frozenset(name.strip(" \t") for name in value.split(",")) - {""}


def write_features(features: frozenset[str]) -> list[tuple[bytes, bytes]]:
    """The head's field that names them; none where there are none."""
    return [(NAME, ",".join(sorted(features)).encode())] if features else []
