"""An in-memory duplex transport for asyncio: `create_pipe()` gives two connected ends.

The door: it picks the compiled twin where it was built, the Python one elsewhere or with FASTPIPE_NO_EXTENSIONS=1
(0 and empty mean no). A compiled twin that is there but can't be imported raises: nobody is made slow in silence.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Final, Literal

from fastpipe._errors import PipeBrokenError, PipeBusyError, PipeClosedError, PipeError
from fastpipe._socket import PipeSocket

# What a type checker reads is the compiled twin's stub.
if TYPE_CHECKING or (
    os.environ.get("FASTPIPE_NO_EXTENSIONS", "") in ("", "0") and importlib.util.find_spec("fastpipe._pipe_c")
):
    from fastpipe._pipe_c import Chunk, ChunkPool, PipeEnd, PipeStatistics, create_pipe
else:
    from fastpipe._pipe_py import Chunk, ChunkPool, PipeEnd, PipeStatistics, create_pipe

IMPLEMENTATION: Final[Literal["c", "python"]] = "c" if PipeEnd.__module__ == "fastpipe._pipe_c" else "python"

from fastpipe.listener import Listener  # noqa: E402 - these stand on the twin that was chosen
from fastpipe.streams import PipeReader, PipeWriter, open_pipe_streams, open_streams  # noqa: E402

__all__ = [
    "IMPLEMENTATION",
    "Chunk",
    "ChunkPool",
    "Listener",
    "PipeBrokenError",
    "PipeBusyError",
    "PipeClosedError",
    "PipeEnd",
    "PipeError",
    "PipeReader",
    "PipeSocket",
    "PipeStatistics",
    "PipeWriter",
    "create_pipe",
    "open_pipe_streams",
    "open_streams",
]
