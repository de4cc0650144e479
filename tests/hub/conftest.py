"""The hub's own parts, one at a time."""

from __future__ import annotations
