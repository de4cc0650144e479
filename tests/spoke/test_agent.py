"""The agent: a reload hands each setting that it applies to the room that uses it."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from agent.config.loading import settings_by_reload
from agent.config.schema import AgentConfig, MemoryCommConfig, TargetLimitsConfig
from agent.spoke.agent import Agent

OLD = AgentConfig("127.0.0.1:1", "c1", use_memory_comm=True, routes=["/=http://127.0.0.1:2"])
OTHERS = {name: (value or 0) + 1 for name, value in dataclasses.asdict(TargetLimitsConfig()).items()}
NEW = dataclasses.replace(
    OLD,
    hub_address="127.0.0.1:3",
    insecure=True,
    use_memory_comm=False,
    memory_comm=MemoryCommConfig(buffer_size=8192, max_connections=7, canary_percent=100),
    limits=TargetLimitsConfig(**OTHERS),
    routes=["/=http://127.0.0.1:4"],
    target_http2=True,
    connect_allow=["db:5432"],
    drain_grace_s=1.0,
)
FILES = {"hub_ca_file", "hub_client_cert_file", "hub_client_key_file", "hub_server_name", "hub_token_file"}
"""The settings that `insecure` excludes or that need a file. tests/rollout has reloads of those."""


async def test_a_reload_hands_each_setting_to_its_room(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent.spoke.agent")
    agent = Agent(OLD)
    await agent.reload(NEW)
    changed = {record.__dict__["setting"] for record in caplog.records if record.msg == "setting changed"}
    by_reload = settings_by_reload(AgentConfig)
    assert changed == (by_reload["apply"] | by_reload["redial"]) - FILES - {"service_allow_file"}
    assert agent.config == NEW
    for name, value in OTHERS.items():
        assert getattr(agent.upstreams.limits, name) == value
        assert getattr(agent.proxy.limits, name) >= value  # some are later towards the hub
    assert agent.upstreams.limits.buffer_bytes == agent.proxy.limits.buffer_bytes == 8192
    assert agent.carrier_policy.buffer_bytes == 8192
    assert agent.proxy.max_connections == 7
