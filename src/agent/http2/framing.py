"""Selects the compiled twin of the data plane if that was built, and else the Python twin (`fastpipe.extensions`)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final, Literal

from fastpipe.extensions import are_enabled

from .frames import (
    DATA,
    DEFAULT_WINDOW,
    GOAWAY,
    MAX_WINDOW,
    MIN_MAX_FRAME_SIZE,
    PREFACE,
    RST_STREAM,
    WINDOW_UPDATE,
    FrameHandler,
)

# A type checker reads the compiled twin's stub.
if TYPE_CHECKING or (are_enabled() and importlib.util.find_spec("agent.http2.framing_c")):
    from .framing_c import FrameReader, FrameWriter, StreamReader, frame
else:
    from .framing_py import FrameReader, FrameWriter, StreamReader, frame

__all__ = [
    "DATA",
    "DEFAULT_WINDOW",
    "GOAWAY",
    "IMPLEMENTATION",
    "MAX_WINDOW",
    "MIN_MAX_FRAME_SIZE",
    "PREFACE",
    "RST_STREAM",
    "WINDOW_UPDATE",
    "FrameHandler",
    "FrameReader",
    "FrameWriter",
    "StreamReader",
    "frame",
]

IMPLEMENTATION: Final[Literal["c", "python"]] = "c" if FrameReader.__module__ == "agent.http2.framing_c" else "python"
