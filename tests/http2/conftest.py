"""The tunnel's fixtures: what a peer can do to a connection is tested between agent and hub."""

from __future__ import annotations

from ..tunnel.conftest import linked, raw_agent, raw_hub, tunnels

__all__ = ["linked", "raw_agent", "raw_hub", "tunnels"]
