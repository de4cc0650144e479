"""The manifests in deploy/ and the page of metrics agree with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import Agent, AgentConfig
from agent.cli.checks import IMPERSONATION_RIGHTS, REVIEW_RIGHT
from agent.config.loading import load
from agent.config.schema import ProcessConfig
from agent.connections import ConnectionLimits
from agent.policy.services import parse_services
from agent.spoke.agent import DRAIN_TIMEOUT_S
from agent.spoke.metrics import read

ROOT = Path(__file__).parents[1]
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy" / "agent.yaml").read_text("utf-8")))


def the(kind: str, name: str = "fastpipe-agent") -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


@pytest.fixture
def configured(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """(The ConfigMap's file, the mounts). Existing files replace the paths from volumes."""
    text: str = the("ConfigMap")["data"]["agent.toml"]
    container = the("Deployment")["spec"]["template"]["spec"]["containers"][0]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    for path in re.findall(r'"(/[^"]+)"', text):
        there = tmp_path / path.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text("")
        text = text.replace(path, str(there))
    (tmp_path / "agent.toml").write_text(text)
    return tmp_path / "agent.toml", mounts


def test_the_manifests_configuration_is_right(configured: tuple[Path, dict[str, str]]) -> None:
    path, mounts = configured
    (config, _), _ = load((AgentConfig, ProcessConfig), flags={}, environ={}, config_file=str(path))
    assert config.memory_percent == 0
    assert config.memory_comm.enable_metrics
    for file in (config.hub_ca_file, config.hub_token_file, config.hub_kubeconfig, config.service_allow_file):
        inside = "/" + str(Path(file).relative_to(path.parent))
        assert str(Path(inside).parent) in mounts
    pod = the("Deployment")["spec"]["template"]["spec"]
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    limits = ConnectionLimits()
    drain_s = config.drain_grace_s + 2 * limits.outcome_timeout_s + limits.listed_s + limits.settle_timeout_s
    assert pod["terminationGracePeriodSeconds"] > drain_s + DRAIN_TIMEOUT_S  # a Go hub closes its clients meanwhile
    assert the("Deployment")["spec"]["strategy"] == {"type": "Recreate"}  # and two agents at once lock it up
    container = pod["containers"][0]
    assert str(container["ports"][0]["containerPort"]) == config.health_address.rpartition(":")[2]
    assert (container["readinessProbe"]["httpGet"]["path"], container["livenessProbe"]["httpGet"]["path"]) == (
        "/readyz",
        "/healthz",
    )
    assert parse_services([the("ConfigMap")["data"]["services"].encode()]) == frozenset()


def test_the_manifests_command_is_one(configured: tuple[Path, dict[str, str]]) -> None:
    path, _ = configured
    container = the("Deployment")["spec"]["template"]["spec"]["containers"][0]
    arguments = [str(path) if each.endswith("agent.toml") else each for each in container["args"]]
    ended = subprocess.run(
        [sys.executable, "-m", "agent", *arguments, "--print-config"], capture_output=True, text=True, check=True
    )
    assert 'cluster_name = "c1"' in ended.stdout
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    assert 'ENTRYPOINT ["/opt/agent/bin/fastpipe-agent"]' in dockerfile
    extras = re.search(r"/src\[([a-z,]+)\]", dockerfile)
    assert extras is not None
    assert extras[1].split(",") == ["kubernetes", "metrics"]  # what the manifests' configuration needs


def test_the_manifests_rights_are_those_that_check_asks_for() -> None:
    roles = [the("ClusterRole", f"fastpipe-agent-{name}") for name in ("reviewer", "impersonator")]
    rules = [rule for role in roles for rule in role["rules"]]
    given = {(rule["verbs"][0], rule["apiGroups"][0], rule["resources"][0]) for rule in rules}
    assert given == {REVIEW_RIGHT, *IMPERSONATION_RIGHTS}
    assert all(len(rule["verbs"]) == len(rule["resources"]) == 1 for rule in rules)


@pytest.mark.loops("asyncio")
async def test_every_metric_is_on_the_page() -> None:
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z_]+?)(?:_total)?`", page[page.index("| metric | labels |") :]))
    agent = Agent(AgentConfig("127.0.0.1:1", "c1", insecure=True, routes=["/=http://127.0.0.1:9"]))
    assert {metric.name for metric in read(agent)} <= named
