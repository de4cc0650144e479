"""docs/operating.md has every metric of agent and hub, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent import Agent, AgentConfig, Hub, HubConfig, RequestHead, Target
from agent.hub.metrics import read as read_hub
from agent.spoke.metrics import read as read_agent
from agent.telemetry.metrics import Metric

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
if not PAGE.exists():
    pytest.skip("the page of metrics is missing", allow_module_level=True)

pytestmark = pytest.mark.loops("asyncio")


class Reviewing:
    """A request processor that counts token reviews."""

    class Counters:
        def __init__(self) -> None:
            self.reviews = {"managed": 0}
            self.cache_hits = self.shared = 0

    def __init__(self) -> None:
        self.counters = self.Counters()

    def process(self, request: RequestHead, target: Target) -> RequestHead:
        return request


def documented() -> tuple[set[str], set[str]]:
    """The names in the page's two tables: the agent's and the hub's."""
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    [text] = [part for part in section if part.startswith("Health and metrics\n")]
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    names = [
        {name for row in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
        for table in tables
    ]
    agent, hub = [found for found in names if "build_info" in found]
    return agent, hub


def shown(metrics: list[Metric]) -> set[str]:
    return {metric.name + ("_total" if metric.kind == "counter" else "") for metric in metrics}


async def test_the_page_has_every_metric_of_the_agent_and_no_other() -> None:
    config = AgentConfig("127.0.0.1:1", "c1", insecure=True, routes=["/=http://127.0.0.1:9"])
    agent = Agent(config, request_processor=Reviewing())
    assert documented()[0] == shown(list(read_agent(agent)))


async def test_the_page_has_every_metric_of_the_hub_and_no_other() -> None:
    assert documented()[1] == shown(list(read_hub(Hub(HubConfig()))))
