"""A configuration can name pipes, as a shell's `<(command)`. Each is read once, and blocks nothing."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from agent.config.credentials import CredentialWatch
from agent.config.schema import AgentConfig, HubConfig
from agent.policy.agent_identity import AgentPolicy
from agent.spoke.hub_endpoint import EndpointSource
from agent.x509.peer import fault_of_own

pytestmark = [
    pytest.mark.timeout(20),  # a second read of a named pipe waits for a writer for ever
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here"),
]

Pipe = Callable[[str, bytes], str]


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """Makes a named pipe that gives this content to one reader."""
    writers: list[threading.Thread] = []

    def make(name: str, content: bytes) -> str:
        path = tmp_path / name
        os.mkfifo(path)
        writers.append(threading.Thread(target=path.write_bytes, args=(content,), daemon=True))
        writers[-1].start()
        return str(path)

    yield make
    for writer in writers:
        writer.join(10)
        assert not writer.is_alive()


def agent(**given: object) -> AgentConfig:
    return AgentConfig("127.0.0.1:8443", "c1", **given)  # type: ignore[arg-type]  # each test gives its own few


def test_a_token_from_a_pipe_is_for_every_dial_and_reload(pipe: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    config = agent(insecure=True, hub_token_file=pipe("token", b"secret\n"))
    endpoints = EndpointSource(config)
    watch = CredentialWatch(config)
    watch.look()
    for _ in range(3):
        endpoints.endpoint(0)
        assert endpoints.metadata() == [("authorization", "Bearer secret")]
        endpoints.check(config)
        watch.look(again=True)
    assert not endpoints.files_changed
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_another_pipe_of_a_reload_is_read(pipe: Pipe) -> None:
    endpoints = EndpointSource(agent(insecure=True, hub_token_file=pipe("token", b"old")))
    new = agent(insecure=True, hub_token_file=pipe("token2", b"new"))
    endpoints.check(new)
    endpoints.config = new
    assert endpoints.metadata() == endpoints.metadata() == [("authorization", "Bearer new")]


def test_a_key_from_a_pipe_is_for_every_dial(pipe: Pipe, tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("c1")
    (tmp_path / "c1.pem").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    key = pipe("c1.key", issued.private_key_pem.bytes())
    config = agent(hub_client_cert_file=str(tmp_path / "c1.pem"), hub_client_key_file=key)
    endpoints = EndpointSource(config)
    CredentialWatch(config).look()
    context = endpoints.endpoint(0).ssl
    assert context is not None
    assert endpoints.endpoint(0).ssl is context
    assert fault_of_own(key) == ""


def test_a_hub_s_tokens_from_a_pipe_are_kept(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pipe("tokens", b"c1 secret\n")
    config = HubConfig(agent_token_file=path)
    policy = AgentPolicy(token_file=path)
    CredentialWatch(config).look()
    tokens = policy._tokens
    assert tokens is not None
    os.utime(path)  # as a second writer does
    assert tokens.refresh(now=True)
    assert tokens.problem is None
