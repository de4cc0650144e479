"""The door to the path that every packet takes: the compiled build of `flow_py` where there is one, else the file.

It goes with the data plane: `framing` has chosen, and what compiled code hands compiled code is never Python's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .framing import IMPLEMENTATION

if TYPE_CHECKING or IMPLEMENTATION == "python":
    from .flow_py import NOBODY, ConnectionFlow, Http2Stream, ReceivePool, Sender, TunnelFlow
else:
    from .flow_c import NOBODY, ConnectionFlow, Http2Stream, ReceivePool, Sender, TunnelFlow

__all__ = ["NOBODY", "ConnectionFlow", "Http2Stream", "ReceivePool", "Sender", "TunnelFlow"]
