"""The door to the queue of packets: the compiled build of `scheduler_py` where there is one, else the file itself.

It goes with the data plane: `framing` has chosen, and what compiled code hands compiled code is never Python's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .framing import IMPLEMENTATION

if TYPE_CHECKING or IMPLEMENTATION == "python":
    from .scheduler_py import Outbound, Scheduler
else:
    from .scheduler_c import Outbound, Scheduler

__all__ = ["Outbound", "Scheduler"]
