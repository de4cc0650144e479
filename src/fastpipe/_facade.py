"""The class that `isinstance(end, asyncio.Transport)` finds in the compiled twin.

An extension type can't inherit from asyncio's Python classes, because their slots occupy the place of its fields. So
the compiled end reports this class as its `__class__`. `type(end)` is the real class.
"""

from __future__ import annotations

import asyncio


class PipeEnd(asyncio.transports._FlowControlMixin):
    """One end of a pipe, as `isinstance` and libraries that look for asyncio's transports see it."""

    __slots__ = ()
