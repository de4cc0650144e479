"""The packets' control codes (wire.md, "Base protocol" and "Extensions"), as the rooms behind the tunnel need them."""

from __future__ import annotations

from typing import Final

__all__ = ["CLOSE", "DATA", "ERROR", "FEATURE_CLOSE", "FEATURE_WINDOW"]

DATA: Final = 0
ERROR: Final = 1
CLOSE: Final = 3  # only where the feature `close` was negotiated

FEATURE_CLOSE: Final = "close"
FEATURE_WINDOW: Final = "window"
