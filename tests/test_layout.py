"""Each module of src has a test file of its name, or a line in one table."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src"
if not SOURCE.exists():
    pytest.skip("the tests are here without the source", allow_module_level=True)

COVERED_BY = {
    "agent/cli/check": "policy/test_check",
    "agent/cli/checks": "policy/test_check whole/test_hub_proxy test_deploy",
    "agent/cli/configured": "cli/test_main",
    "agent/cli/demo": "cli/test_main",
    "agent/cli/demonstration": "cli/test_main",
    "agent/cli/hub": "cli/test_main whole/test_cli",
    "agent/cli/output": "cli/test_main",
    "agent/cli/process": "cli/test_main whole/test_signals",
    "agent/cli/proxy": "cli/test_main",
    "agent/cli/proxy_server": "cli/test_main",
    "agent/cli/run": "cli/test_main whole/test_cli",
    "agent/cli/version": "cli/test_main",
    "agent/cli/forward": "whole/test_forward",
    "agent/config/fields": "config/test_schema config/test_dump",
    "agent/config/limits": "config/test_loading proxy/test_named_limits",
    "agent/config/tables": "config/test_listeners config/test_schema",
    "agent/connections/acceptor": "connections/test_uds",
    "agent/connections/agent_connection": "connections/test_connection",
    "agent/connections/counters": "connections/test_manager",
    "agent/connections/hub_connection": "connections/test_connection",
    "agent/connections/limits": "connections/test_manager",
    "agent/connections/listed": "connections/test_drain",
    "agent/connections/memory": "connections/test_manager",
    "agent/connections/mixed": "connections/test_carrier_policy",
    "agent/connections/probing": "connections/test_connection",
    "agent/connections/socket_end": "connections/test_uds",
    "agent/forward/carrier": "forward/test_http1",
    "agent/forward/http2": "whole/test_forward",
    "agent/forward/joining": "whole/test_forward",
    "agent/forward/local_ports": "whole/test_forward",
    "agent/forward/standard_streams": "whole/test_forward",
    "agent/http2/data_plane": "http2/test_connection http2/test_receiving",
    "agent/http2/errors": "http2/test_connection http2/test_framing",
    "agent/http2/frames": "http2/test_framing http2/test_connection",
    "agent/http2/header_block_rules": "http2/test_header_blocks",
    "agent/http2/liveness": "proxy/test_http2_hostile proxy/test_http2_targets",
    "agent/http2/peer_limits": "http2/test_connection proxy/test_http2_hostile",
    "agent/http2/sizes": "http2/test_receiving http2/test_socket_options",
    "agent/http2/stream": "http2/test_connection",
    "agent/http2/stream_plane": "http2/test_frame_errors http2/test_connection",
    "agent/hub/connect_ports": "whole/test_listeners",
    "agent/hub/entrance": "hub/test_user_door",
    "agent/hub/http2_answer": "hub/test_user_door",
    "agent/hub/hub": "whole/test_hub whole/test_our_hub",
    "agent/hub/known_clusters": "whole/test_known_clusters",
    "agent/hub/metrics": "telemetry/test_metrics_are_documented rollout/test_metrics_page",
    "agent/hub/session": "whole/test_goaway whole/test_endings whole/test_extensions",
    "agent/outcome": "connections/test_endings",
    "agent/policy/api_client": "policy/test_reviews policy/test_api_server",
    "agent/policy/exec_plugin": "policy/test_api_server",
    "agent/policy/impersonation": "policy/test_attacks",
    "agent/policy/kubeconfig": "policy/test_api_server",
    "agent/policy/plugins": "policy/test_assembly",
    "agent/policy/reloading": "policy/test_trust",
    "agent/policy/selection": "policy/test_identity",
    "agent/proxy/backlog": "proxy/test_turns",
    "agent/proxy/chunked": "proxy/test_heads proxy/test_fuzz",
    "agent/proxy/client_side": "proxy/test_requests",
    "agent/proxy/client_states": "proxy/test_server",
    "agent/proxy/context": "proxy/test_requests",
    "agent/proxy/decision": "proxy/test_requests",
    "agent/proxy/fixed_port": "whole/test_listeners",
    "agent/proxy/headers": "proxy/test_heads",
    "agent/proxy/http2_responses": "proxy/test_http2_clients",
    "agent/proxy/http2_target_connection": "proxy/test_http2_targets proxy/test_http2_target_peers",
    "agent/proxy/http2_target_heads": "proxy/test_http2_hostile_targets",
    "agent/proxy/http2_target_stream": "proxy/test_http2_targets proxy/test_http2_hostile_targets",
    "agent/proxy/liveness": "proxy/test_leaving",
    "agent/proxy/metrics": "proxy/test_times telemetry/test_metrics",
    "agent/proxy/pieces": "proxy/test_streaming",
    "agent/proxy/port": "whole/test_listeners",
    "agent/proxy/proxy": "proxy/test_requests proxy/test_responses",
    "agent/proxy/readers": "proxy/test_heads proxy/test_rules",
    "agent/proxy/relay": "proxy/test_requests proxy/test_responses proxy/test_faults",
    "agent/proxy/response_reader": "proxy/test_responses proxy/test_head_twins",
    "agent/proxy/response_writer": "proxy/test_responses proxy/test_http10",
    "agent/proxy/head_writer": "proxy/test_heads proxy/test_kept_heads",
    "agent/proxy/upstream": "proxy/test_targets proxy/test_dial",
    "agent/proxy/upstream_stream": "proxy/test_targets",
    "agent/runtime/alpn": "proxy/test_http2_target_peers policy/test_check",
    "agent/runtime/deadlines": "proxy/test_clock tunnel/test_liveness",
    "agent/runtime/histogram": "telemetry/test_metrics",
    "agent/spoke/capacity": "rollout/test_few_descriptors whole/test_descriptors",
    "agent/spoke/hub_endpoint": "test_pipes",
    "agent/spoke/links": "whole/test_links",
    "agent/spoke/metrics": "telemetry/test_metrics_are_documented rollout/test_metrics_page",
    "agent/syntax": "config/test_schema proxy/test_heads",
    "agent/telemetry/shared_metrics": "telemetry/test_metrics telemetry/test_metrics_are_documented",
    "agent/tunnel/call": "tunnel/test_misbehaving_hub",
    "agent/tunnel/connect": "spoke/test_outbound_proxy whole/test_hub_proxy",
    "agent/tunnel/flow": "tunnel/test_scheduler tunnel/test_window",
    "agent/tunnel/grpc": "tunnel/test_client",
    "agent/tunnel/message_rules": "tunnel/test_messages tunnel/test_messages_twins",
    "agent/tunnel/server": "tunnel/test_ours_to_ours tunnel/test_grpcio_agent",
    "agent/tunnel/session": "tunnel/test_ours_to_ours tunnel/test_goaway",
    "agent/tunnel/sizes": "tunnel/test_scheduler tunnel/test_window",
    "agent/x509/expiry": "hub/test_user_door",
    "fastpipe/_chunk_py": "fastpipe/test_pipe_bytes",
    "fastpipe/_errors": "fastpipe/test_pipe_states",
    "fastpipe/_facade": "fastpipe/test_pipe_types",
    "fastpipe/_limits": "fastpipe/test_pipe_conformance",
    "fastpipe/_pipe_c": "fastpipe/test_pipe_states fastpipe/test_pipe_twins",
    "fastpipe/_pipe_py": "fastpipe/test_pipe_states fastpipe/test_pipe_twins",
    "fastpipe/_pool": "fastpipe/test_pipe_bytes",
    "fastpipe/_queue_py": "fastpipe/test_pipe_delivery",
    "fastpipe/_socket": "fastpipe/test_pipe_libraries",
    "fastpipe/_statistics_py": "fastpipe/test_pipe_life",
    "fastpipe/_waiting_py": "fastpipe/test_pipe_states",
    "fastpipe/aiohttp": "fastpipe/test_adapter_http",
    "fastpipe/anyio": "fastpipe/test_adapter_anyio",
    "fastpipe/asgi": "fastpipe/test_adapter_http",
    "fastpipe/extensions": "test_twins",
    "fastpipe/httpx": "fastpipe/test_adapter_http",
}
"""Module → its tests, for a module without a test file of its name. A test file of the name replaces the line."""

MODULES = {
    path.relative_to(SOURCE).with_suffix("").as_posix(): path
    for suffix in ("*.py", "*.pyx")
    for path in sorted(SOURCE.rglob(suffix))
    if not path.stem.startswith("__")
}


def own_tests(module: str) -> Path:
    """The test file of a module's name: tests/ROOM/test_MODULE.py. Twins share one."""
    *rooms, name = module.removeprefix("agent/").split("/")
    return TESTS.joinpath(*rooms, f"test_{name.strip('_').removesuffix('_c').removesuffix('_py')}.py")


def test_each_module_has_tests_of_its_name_or_a_line_in_the_table() -> None:
    assert {module for module in MODULES if not own_tests(module).exists()} == set(COVERED_BY)


@pytest.mark.parametrize("module", COVERED_BY)
def test_the_table_names_test_files_that_exist(module: str) -> None:
    assert all((TESTS / f"{name}.py").exists() for name in COVERED_BY[module].split())
