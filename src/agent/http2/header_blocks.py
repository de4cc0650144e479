"""Selects the compiled twin of HPACK if that was built, and else the Python twin (`fastpipe.extensions`)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from fastpipe.extensions import are_enabled

# A type checker reads the compiled twin's stub.
if TYPE_CHECKING or (are_enabled() and importlib.util.find_spec("agent.http2.header_blocks_c")):
    from .header_blocks_c import BlockDecoder, BlockEncoder
else:
    from .header_blocks_py import BlockDecoder, BlockEncoder

__all__ = ["BlockDecoder", "BlockEncoder"]
