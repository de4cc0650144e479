"""What `isinstance(end, asyncio.Transport)` finds in the compiled twin.

An extension type can't inherit from asyncio's Python classes (their slots lie where its fields would), so the compiled
end says that its `__class__` is this one; `type(end)` is the truth.
"""

from __future__ import annotations

import asyncio


class PipeEnd(asyncio.transports._FlowControlMixin):
    """One end of a pipe, as `isinstance` and libraries that look for asyncio's transports see it."""

    __slots__ = ()
