"""The tunnel's fixtures: what a peer can do to a connection is tested between agent and hub."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

_spec = importlib.util.spec_from_file_location(
    "tunnel_conftest", Path(__file__).parent.parent / "tunnel" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_tunnel = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tunnel)

linked, raw_agent, raw_hub, tunnels = _tunnel.linked, _tunnel.raw_agent, _tunnel.raw_hub, _tunnel.tunnels
