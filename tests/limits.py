"""How long tests wait before they fail: one factor for all wall-clock limits.

FASTPIPE_SLOW=3 triples the limits on a busy or slow machine. A test that passes never waits for its limit.
"""

from __future__ import annotations

import os

SLOW = float(os.environ.get("FASTPIPE_SLOW") or 1)


def scaled(seconds: float) -> float:
    """A limit in seconds on this machine. seconds: the limit on an idle machine of two cores."""
    return seconds * SLOW
