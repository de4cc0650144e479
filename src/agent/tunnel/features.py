"""The features that both ends of a tunnel negotiate beyond the base protocol (wire.md, "Extensions")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["CLOSE", "CONNECT", "FEATURES", "FORWARDED", "GOAWAY", "NAME", "WINDOW", "read_features", "write_features"]

NAME: Final = b"tunnel-features"
"""The metadata in which an agent offers features and a hub accepts them: lower-case names, separated by commas."""

CLOSE: Final = "close"
WINDOW: Final = "window"
GOAWAY: Final = "goaway"
FORWARDED: Final = "forwarded"
CONNECT: Final = "connect"

FEATURES: Final = frozenset({CLOSE, CONNECT, FORWARDED, GOAWAY, WINDOW})
"""The features that this version knows."""


def read_features(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[str]:
    """Return the features that a request's or response's head names, unknown names included."""
    value = b",".join(value for name, value in headers if name == NAME).decode("latin-1")
    return frozenset(name.strip(" \t") for name in value.split(",")) - {""}


def write_features(features: frozenset[str]) -> list[tuple[bytes, bytes]]:
    """Return the head's field that names the features, or no field if there are no features."""
    return [(NAME, ",".join(sorted(features)).encode())] if features else []
