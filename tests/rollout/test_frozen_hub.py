"""A hub that is still there but silent: stopped by a debugger, or on a machine that swaps."""

from __future__ import annotations

import pathlib
import time

import pytest

from .rollout_processes import HubProcess, running_agent

pytestmark = pytest.mark.loops("asyncio")


@pytest.mark.parametrize(("grace_s", "within_s"), [(0, 8.0), (25, 9.5)])
async def test_an_agent_whose_hub_is_frozen_ends_without_using_up_its_grace(
    tmp_path: pathlib.Path, grace_s: int, within_s: float
) -> None:
    """The agent waits once for the hub, 5 s or drain_grace_s (at least 1 s). The socket's end gets 2 s."""
    hub = HubProcess(tmp_path / "hub.log")
    try:
        grace = f"--drain-grace-s={grace_s}"
        async with running_agent(tmp_path, hub, "--route=/=http://127.0.0.1:9", grace) as agent:
            hub.signal("SIGSTOP")
            began_s = time.monotonic()
            agent.signal("SIGTERM")
            assert await agent.ends() == 0
            assert time.monotonic() - began_s < within_s, agent.log
            assert agent.log.count("did not respond to DRAIN") == 1
    finally:
        hub.signal("SIGCONT")
        hub.close()
