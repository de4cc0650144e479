"""The door to the data plane: picks the compiled twin where it was built, the Python one elsewhere.

FASTPIPE_NO_EXTENSIONS=1 (0 and empty mean no) picks the Python one too. A compiled twin that is there but can't be
imported raises: nobody is made slow in silence.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Final, Literal

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
    frame,
)

# What a type checker reads is the compiled twin's stub.
if TYPE_CHECKING or (
    os.environ.get("FASTPIPE_NO_EXTENSIONS", "") in ("", "0") and importlib.util.find_spec("agent.http2.framing_c")
):
    from .framing_c import FrameReader, FrameWriter, StreamReader
else:
    from .framing_py import FrameReader, FrameWriter, StreamReader

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
