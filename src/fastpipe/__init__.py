"""An in-memory duplex transport for asyncio: `create_pipe()` gives two connected ends.

It selects the compiled twin if that was built, and else the Python twin (see `fastpipe.extensions`).
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final, Literal

from fastpipe.extensions import are_enabled, select_twins

select_twins(__path__)

from fastpipe._errors import PipeBrokenError, PipeBusyError, PipeClosedError, PipeError  # noqa: E402 - after the choice
from fastpipe._socket import PipeSocket  # noqa: E402 - as above

# A type checker reads the compiled twin's stub.
if TYPE_CHECKING or (are_enabled() and importlib.util.find_spec("fastpipe._pipe_c")):
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
