"""The configuration's schema: right values, wrong values and their errors, and which source wins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.loading import load as load_all
from agent.config.loading import settings as settings_of
from agent.config.schema import (
    COMMANDS,
    AgentConfig,
    ConfigErrors,
    HubConfig,
    LimitsConfig,
    MemoryCommConfig,
    ProcessConfig,
    ProxyConfig,
    TargetLimitsConfig,
)
from agent.errors import ConfigError
from agent.syntax import (
    Address,
    Route,
    is_loopback,
    parse_address,
    parse_authority,
    parse_connect_entry,
    parse_reference,
)

AGENT: dict[str, Any] = {"hub_address": "hub:8443", "cluster_name": "c1"}


def errors_of(make: Any) -> dict[str, ConfigError]:
    with pytest.raises(ConfigErrors) as caught:
        make()
    return {error.field: error for error in caught.value.errors}


# In Python --------------------------------------------------------------------------------------------------------


def test_defaults_are_the_contracts() -> None:
    config = AgentConfig(hub_address="hub:8443", cluster_name="c1")
    assert not config.use_memory_comm
    assert config.memory_comm == MemoryCommConfig(buffer_size=65536, max_connections=1000, enable_metrics=False)
    assert not config.insecure
    assert config.health_address == ""
    assert config.static_routes == ()
    assert config.app is None


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AgentConfig(**AGENT).insecure = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given_addresses", "expected"),
    [
        ("hub:8443", [("hub", 8443)]),
        (["a:1", "b.example:2"], [("a", 1), ("b.example", 2)]),
        (("10.0.0.1:1", "[::1]:2"), [("10.0.0.1", 1), ("::1", 2)]),
        ("my_hub:65535", [("my_hub", 65535)]),
    ],
)
def test_hub_address_is_one_or_several(given_addresses: Any, expected: list[tuple[str, int]]) -> None:
    assert list(AgentConfig(given_addresses, "c1").hub_addresses) == expected


@pytest.mark.parametrize(
    "routes",
    [
        ["/=http://a", "/api/=http://b/v1/"],
        [("/", "http://a"), ("/api", "http://b/v1")],
        {"/": "http://a", "/api": "http://b/v1"},
        iter(["/=http://a", ("/api", "http://b/v1")]),
        [{"prefix": "/", "url": "http://a"}, {"url": "http://b/v1/", "prefix": "/api/", "host": "client"}],
        ["/=http://a", {"prefix": "/api", "url": "http://b/v1", "strip_prefix": True, "rewrite": True}],
    ],
    ids=["texts", "pairs", "table", "iterator", "tables", "mixed"],
)
def test_routes_are_written_in_any_of_four_ways(routes: Any) -> None:
    found = AgentConfig(**AGENT, routes=routes).static_routes
    assert found == (Route("/", "http://a"), Route("/api", "http://b/v1"))
    assert AgentConfig(**AGENT, routes=found).static_routes == found


@pytest.mark.parametrize(
    ("url", "host", "expected"),
    [
        ("http://a", None, "client"),
        ("HTTP://a", None, "client"),
        ("https://a", None, "target"),
        ("h2://a", None, "target"),
        ("h2c://a", None, "client"),
        ("HTTPS://a", None, "target"),
        ("https://a", "client", "client"),
        ("https://a", "Client", "client"),
        ("http://a", "target", "target"),
        ("http://a", "a.name", "a.name"),
        ("http://a", "a.name:8080", "a.name:8080"),
        ("http://a", "localhost", "localhost"),
        ("http://a", "10.0.0.1:1", "10.0.0.1:1"),
        ("http://a", "[::1]", "[::1]"),
        ("http://a", "[::1]:65535", "[::1]:65535"),
    ],
)
def test_host_of_a_route_is_the_clients_for_http_and_the_targets_for_https(
    url: str, host: str | None, expected: str
) -> None:
    route = {"prefix": "/", "url": url} | ({} if host is None else {"host": host})
    found = AgentConfig(**AGENT, routes=[route]).static_routes[0]
    assert (found.host, found.strip_prefix, found.rewrite) == (expected, True, True)
    assert found.url == url.lower()


WRONG: list[tuple[type, dict[str, Any], str, str]] = [
    (AgentConfig, {"hub_address": "hub"}, "hub_address", "HOST:PORT with a port from 1 to 65535"),
    (AgentConfig, {"hub_address": "hub:0"}, "hub_address", "from 1 to 65535"),
    (AgentConfig, {"hub_address": "hub:65536"}, "hub_address", "from 1 to 65535"),
    (AgentConfig, {"hub_address": "hub:http"}, "hub_address", "HOST:PORT"),
    (AgentConfig, {"hub_address": ":8443"}, "hub_address", "HOST:PORT"),
    (AgentConfig, {"hub_address": "::1:8443"}, "hub_address", "IPv6 address in brackets"),
    (AgentConfig, {"hub_address": "[::g]:8443"}, "hub_address", "IPv6"),
    (AgentConfig, {"hub_address": "https://hub:8443"}, "hub_address", "HOST:PORT"),
    (AgentConfig, {"hub_address": "hub :8443"}, "hub_address", "HOST:PORT"),
    (AgentConfig, {"hub_address": "hub:٣"}, "hub_address", "HOST:PORT"),
    (AgentConfig, {"hub_address": []}, "hub_address", "at least one"),
    (AgentConfig, {"hub_address": ["a:1", 2]}, "hub_address", "must be text"),
    (AgentConfig, {"hub_address": 7}, "hub_address", "a text or a list"),
    (AgentConfig, {"cluster_name": ""}, "cluster_name", "RFC 1123 label"),
    (AgentConfig, {"cluster_name": "C1"}, "cluster_name", "RFC 1123 label"),
    (AgentConfig, {"cluster_name": "a.b"}, "cluster_name", "RFC 1123 label"),
    (AgentConfig, {"cluster_name": "c1\n"}, "cluster_name", "RFC 1123 label"),
    (AgentConfig, {"cluster_name": "x" * 64}, "cluster_name", "1 to 63"),
    (AgentConfig, {"cluster_name": None}, "cluster_name", "must be text"),
    (AgentConfig, {"insecure": "true"}, "insecure", "true or false"),
    (AgentConfig, {"use_memory_comm": 1}, "use_memory_comm", "true or false"),
    (AgentConfig, {"memory_comm": {"buffer_size": 1}}, "memory_comm", "must be a MemoryCommConfig"),
    (AgentConfig, {"hub_ca_file": "/none/such"}, "hub_ca_file", "readable file"),
    (AgentConfig, {"hub_ca_file": "/"}, "hub_ca_file", "readable file"),
    (AgentConfig, {"target_ca_file": ["/none/such"]}, "target_ca_file", "readable file"),
    (AgentConfig, {"hub_client_key_file": __file__}, "hub_client_key_file", "together with hub_client_cert_file"),
    (AgentConfig, {"insecure": True, "hub_ca_file": __file__}, "hub_ca_file", "not be set with insecure"),
    (AgentConfig, {"insecure": True, "hub_server_name": "h"}, "hub_server_name", "not be set with insecure"),
    (AgentConfig, {"insecure": True, "hub_client_cert_file": __file__}, "hub_client_cert_file", "with insecure"),
    (AgentConfig, {"routes": ["/a"]}, "route", "PREFIX=URL"),
    (AgentConfig, {"routes": ["a=http://h"]}, "route", "starts with '/'"),
    (AgentConfig, {"routes": ["/a=http://h?q"]}, "route", "no query"),
    (AgentConfig, {"routes": ["/a=http://h", "/a/=http://g"]}, "route", "once only"),
    (AgentConfig, {"routes": [3]}, "route", "PREFIX=URL"),
    (AgentConfig, {"routes": 3}, "route", "list"),
    *(
        (AgentConfig, {"routes": ["/=http://h", {"prefix": "/a", "url": "http://h"} | keys]}, "route", text)
        for keys, text in (
            ({"hots": "client"}, "the entry with the prefix '/a': must have no key 'hots', perhaps host is meant"),
            ({"zzz": 1}, "only prefix, url, host, strip_prefix, rewrite, http2"),
            ({"strip_prefix": "yes"}, "'/a': must have true or false for strip_prefix, not 'yes'"),
            ({"rewrite": 0}, "'/a': must have true or false for rewrite, not 0"),
            ({"http2": "yes"}, "'/a': must have true or false for http2, not 'yes'"),
            ({"http2": True}, "http2 for /a must be set only with an https URL"),
            ({"url": "h2://h", "http2": True}, "only with an https URL: the scheme h2 decides"),
            ({"url": "h3://h"}, "or the same with https, h2 or h2c"),
            ({"host": 5}, "'/a': must have text for host, not 5"),
            ({"host": True}, "must have text for host"),
            ({"url": ["http://u:secret@h"]}, "'/a': must have text for url"),
            ({"prefix": 7}, "the entry with the prefix 7: must have text for prefix"),
            ({"prefix": "/\0"}, "must have text for prefix"),
            ({"prefix": "a"}, "starts with '/'"),
            ({"prefix": "/"}, "the prefix / once only"),
            ({"url": "ftp://h"}, "'/a': the URL for /a must be http://"),
        )
    ),
    *(
        (
            AgentConfig,
            {"routes": [{"prefix": "/a", "url": "http://h", "host": host}]},
            "route",
            "'/a': the host for /a must",
        )
        for host in (
            "",
            "a b",
            "http://h",
            "h/x",
            "h:",
            "h:0",
            "h:65536",
            "h:x",
            "h:1:2",
            "::1",
            "[::g]",
            "[h]",
            "u@h",
            "a..b",
            ".a",
            "-a",
            "h\r\nX: y",
            "h\n",
            "é",
            "h:٣",
        )
    ),
    (
        AgentConfig,
        {"routes": [{"url": "http://h"}]},
        "route",
        "the entry with the prefix None: must have the key prefix",
    ),
    (AgentConfig, {"routes": [{"prefix": "/a"}]}, "route", "'/a': must have the key url"),
    (AgentConfig, {"routes": [{}]}, "route", "must have the key prefix, and must have the key url"),
    (AgentConfig, {"routes": {"prefix": "/a", "url": "http://h"}}, "route", "[[routes]], not [routes]"),
    (AgentConfig, {"routes": {"/a": {"url": "http://h"}}}, "route", "must be text"),
    (ProxyConfig, {"routes": [{"prefix": "/a", "url": "http://h", "host": "?"}]}, "route", "the host for /a"),
    (AgentConfig, {"app": "module"}, "app", "module:name"),
    (AgentConfig, {"app": "mod ule:app"}, "app", "module:name"),
    (AgentConfig, {"app": 3}, "app", "ASGI application"),
    (AgentConfig, {"app": "m:app", "routes": ["/=http://h"]}, "app", "not be set together with route"),
    (AgentConfig, {"health_address": "8080"}, "health_address", "HOST:PORT"),
    (AgentConfig, {"drain_grace_s": -1}, "drain_grace_s", "from 0 to 3600 (seconds)"),
    (AgentConfig, {"drain_grace_s": float("nan")}, "drain_grace_s", "seconds"),
    (AgentConfig, {"drain_grace_s": True}, "drain_grace_s", "seconds"),
    (AgentConfig, {"drain_grace_s": "3"}, "drain_grace_s", "seconds"),
    (AgentConfig, {"uds_socket_path": "/" + "x" * 103}, "uds_socket_path", "at most 103 bytes"),
    (AgentConfig, {"uds_socket_path": "/a\0"}, "uds_socket_path", "must be text"),
    (MemoryCommConfig, {"buffer_size": 4095}, "buffer_size", "from 4096 to 67108864 (bytes)"),
    (MemoryCommConfig, {"buffer_size": "64KiB"}, "buffer_size", "bytes"),
    (MemoryCommConfig, {"max_connections": 0}, "max_connections", "from 1 to 1000000 (connections)"),
    (MemoryCommConfig, {"max_connections": True}, "max_connections", "whole number"),
    (MemoryCommConfig, {"max_connections": 1.5}, "max_connections", "whole number"),
    (MemoryCommConfig, {"canary_percent": 101}, "canary_percent", "from 0 to 100 (percent)"),
    (MemoryCommConfig, {"canary_percent": -1}, "canary_percent", "from 0 to 100 (percent)"),
    (MemoryCommConfig, {"canary_percent": 0.5}, "canary_percent", "whole number"),
    (TargetLimitsConfig, {"keep_alive_s": 0}, "keep_alive_s", "from 0.1 to 86400 (seconds)"),
    (TargetLimitsConfig, {"head_timeout_s": 3601}, "head_timeout_s", "from 0.1 to 3600 (seconds)"),
    (TargetLimitsConfig, {"request_head_bytes": 0}, "request_head_bytes", "from 1024 to 1048576 (bytes)"),
    (TargetLimitsConfig, {"idle_upstreams_per_target": 0}, "idle_upstreams_per_target", "connections"),
    (AgentConfig, {"limits": LimitsConfig()}, "limits", "must be a TargetLimitsConfig"),
    (HubConfig, {"max_clients": 0}, "max_clients", "from 1 to 1000000 (connections)"),
    (HubConfig, {"cluster_parser": "x"}, "cluster_parser", "module:name"),
    (HubConfig, {"cluster_parser": 3}, "cluster_parser", "a function from a RequestHead"),
    (HubConfig, {"cluster_from": "header"}, "cluster_from", "one of path, host"),
    (HubConfig, {"cluster_from": "host"}, "cluster_from", "together with cluster_domain, the clusters' domain"),
    (HubConfig, {"cluster_domain": "a.example"}, "cluster_domain", "together with cluster_from = host"),
    *[
        (HubConfig, {"cluster_from": "host", "cluster_domain": domain}, "cluster_domain", "must be a DNS name")
        for domain in (
            "*.a.example",
            ".a.example",
            "a..b",
            "a_b.example",
            "10.0.0.1",
            "[::1]",
            "a.example:443",
            "b\xfc.de",
            "http://a.example",
            "a.example..",
            ".",
            "a" * 64,
            ".".join(["a" * 60] * 4),
            "\u212a.example",
        )
    ],
    (HubConfig, {"cluster_from": "host", "cluster_domain": 3}, "cluster_domain", "must be text"),
    (
        HubConfig,
        {"cluster_from": "host", "cluster_domain": "a.example", "cluster_parser": "m:f"},
        "cluster_parser",
        "not be set with cluster_from = host",
    ),
    (
        HubConfig,
        {"cluster_from": "host", "cluster_domain": "a.example", "index": True},
        "index",
        "not be set with cluster_from = host",
    ),
    (HubConfig, {"cluster_parser": "m:f", "index": True}, "index", "not be set with cluster_from = host"),
    (HubConfig, {"user_ca_file": __file__}, "user_ca_file", "together with http_cert_file"),
    (HubConfig, {"allow_any_user": True}, "allow_any_user", "together with user_ca_file"),
    (HubConfig, {"grpc_address": "0.0.0.0:0"}, "grpc_address", "--allow-any-agent"),
    (HubConfig, {"grpc_address": ":0"}, "grpc_address", "--agent-ca-file"),
    (HubConfig, {"grpc_address": "hub.example:8443"}, "grpc_address", "--agent-token-file"),
    (HubConfig, {"grpc_address": "[::]:1"}, "grpc_address", "loopback"),
    (HubConfig, {"grpc_address": ""}, "grpc_address", "HOST:PORT"),
    (HubConfig, {"http_address": "x"}, "http_address", "HOST:PORT"),
    (HubConfig, {"grpc_key_file": __file__}, "grpc_key_file", "together with grpc_cert_file"),
    (HubConfig, {"http_key_file": __file__}, "http_key_file", "together with http_cert_file"),
    (HubConfig, {"proxy_protocol": True}, "proxy_protocol", "together with trusted_proxies"),
    (AgentConfig, {"connect_allow": "db"}, "connect_allow", "a port or a range, as db.prod.svc:5432"),
    (AgentConfig, {"connect_allow": "db:0"}, "connect_allow", "a port or a range"),
    (AgentConfig, {"connect_allow": "db:2-1"}, "connect_allow", "the lower one first"),
    (AgentConfig, {"connect_allow": "db:1-65536"}, "connect_allow", "from 1 to 65535"),
    (AgentConfig, {"connect_allow": "*:80"}, "connect_allow", "*. and a DNS name"),
    (AgentConfig, {"connect_allow": "a.*.svc:80"}, "connect_allow", "*. and a DNS name"),
    (AgentConfig, {"connect_allow": "127.1:80"}, "connect_allow", "an IP address or a network"),
    (AgentConfig, {"connect_allow": "10.0.0.1/8:80"}, "connect_allow", "without host bits"),
    (AgentConfig, {"connect_allow": "fd00::1:80"}, "connect_allow", "in brackets"),
    (AgentConfig, {"connect_allow": ["a:1", "http://b:80/"]}, "connect_allow", "'http://b:80/'"),
    (AgentConfig, {"connect_allow": [443]}, "connect_allow", "must be text"),
    (HubConfig, {"trusted_proxies": ["10.0.0.1/8"]}, "trusted_proxies", "without host bits, as 10.0.0.0/8"),
    (HubConfig, {"trusted_proxies": "lb.example"}, "trusted_proxies", "(names are not resolved), not 'lb.example'"),
    (HubConfig, {"trusted_proxies": ["10.0.0.0/33", "::1", "fe80::1%eth0"]}, "trusted_proxies", "'fe80::1%eth0'"),
    (HubConfig, {"trusted_proxies": "10.0.0.0/255.0.0.0"}, "trusted_proxies", "IP addresses or networks"),
    (HubConfig, {"trusted_proxies": ["10.0.0.0/"]}, "trusted_proxies", "IP addresses or networks"),
    (HubConfig, {"trusted_proxies": [""]}, "trusted_proxies", "IP addresses or networks"),
    (HubConfig, {"trusted_proxies": [10]}, "trusted_proxies", "must be text"),
    (HubConfig, {"trusted_proxies": 10}, "trusted_proxies", "a list of texts"),
    (HubConfig, {"agent_ca_file": __file__}, "agent_ca_file", "together with grpc_cert_file"),
    (ProxyConfig, {}, "route", "at least one PREFIX=URL"),
    (ProxyConfig, {"routes": ["/=http://h"], "listen": "127.0.0.1"}, "listen", "HOST:PORT"),
    (ProcessConfig, {"log_level": "loud"}, "log_level", "debug, info, warning, error"),
    (ProcessConfig, {"loop": "trio"}, "loop", "auto, uvloop, asyncio"),
]


@pytest.mark.parametrize(
    ("cls", "values", "field", "expected"), WRONG, ids=[f"{n}-{row[2]}" for n, row in enumerate(WRONG)]
)
def test_a_wrong_value_names_its_field_and_what_would_be_right(
    cls: type, values: dict[str, Any], field: str, expected: str
) -> None:
    found = errors_of(lambda: cls(**(AGENT if cls is AgentConfig else {}) | values))
    assert list(found) == [field]
    assert expected in found[field].expected
    assert found[field].source in ("argument", "default")


@pytest.mark.parametrize(
    "values",
    [
        {"grpc_address": "127.0.0.1:0"},
        {"grpc_address": "127.8.9.1:0"},
        {"grpc_address": "localhost:0"},
        {"grpc_address": "[::1]:0"},
        {"grpc_address": "0.0.0.0:0", "allow_any_agent": True},
        {"grpc_address": ":8443", "agent_token_file": __file__},
        {"grpc_address": "hub:8443", "agent_ca_file": __file__, "grpc_cert_file": __file__},
        {"http_address": "0.0.0.0:8080"},
    ],
)
def test_a_hub_starts_where_only_this_machine_or_known_agents_reach_it(values: dict[str, Any]) -> None:
    HubConfig(**values)


@pytest.mark.parametrize("given", ["tunnel.example.com", "Tunnel.EXAMPLE.com.", "tunnel.example.com."])
def test_a_domain_is_in_lower_case_without_a_trailing_dot(given: str) -> None:
    assert HubConfig(cluster_from="HOST", cluster_domain=given).cluster_domain == "tunnel.example.com"


def test_entries_of_connect_allow_are_kept_in_one_form() -> None:
    given = [
        "DB.Prod.svc.:5432",
        "*.Svc:1-65535",
        "10.0.0.0/8:443",
        "[fd00::0:1]:80",
        "fd00::/8:80",
        "[fd00::]/8:80-80",
    ]
    config = AgentConfig(**AGENT, connect_allow=given)
    assert config.connect_allow == (
        *("db.prod.svc:5432", "*.svc:1-65535", "10.0.0.0/8:443", "[fd00::1]:80", "[fd00::/8]:80", "[fd00::/8]:80"),
    )
    assert AgentConfig(**AGENT, connect_allow="::ffff:10.0.0.0/104:80").connect_allow == ("10.0.0.0/8:80",)
    assert AgentConfig(**AGENT).connect_entries == ()


def test_networks_are_kept_in_one_form() -> None:
    given = ["127.0.0.1", "10.0.0.0/8", "FD00:0::/8", "::1/128", "::ffff:192.0.2.0/120", "::ffff:192.0.2.9", "::/0"]
    kept = ("127.0.0.1", "10.0.0.0/8", "fd00::/8", "::1", "192.0.2.0/24", "192.0.2.9", "::/0")
    assert HubConfig(trusted_proxies=given, proxy_protocol=True).trusted_proxies == kept
    assert HubConfig().trusted_proxies == ()


def test_every_wrong_value_is_reported_at_once() -> None:
    found = errors_of(
        lambda: AgentConfig(
            hub_address="hub",
            cluster_name="C1",
            insecure="x",
            drain_grace_s=-1,  # type: ignore[arg-type]
            routes=["x"],
            hub_client_key_file=__file__,
        )
    )
    assert list(found) == [
        "hub_address",
        "cluster_name",
        "insecure",
        "route",
        "drain_grace_s",
        "hub_client_key_file",
    ]


@pytest.mark.parametrize(
    ("name", "given_items", "said"),
    [
        ("hub_address", ["a", "b:1", "c:0"], ["not 'a'", "not 'c:0'"]),
        ("routes", ["/=ftp://x", "b", "/c=http://c", "/c=http://d"], ["the URL for /", "PREFIX=URL", "/c once only"]),
        ("target_ca_file", ["/no/such", __file__, "/nor/such", 7], ["/no/such", "/nor/such", "not 7"]),
        ("allow_hub_system_groups", ["a b", "c", "", 7], ["not 'a b'", "not ''", "not 7"]),
    ],
)
def test_every_wrong_entry_of_a_list_is_said(name: str, given_items: list[Any], said: list[str]) -> None:
    values: dict[str, Any] = {"hub_address": "h:1", "cluster_name": "c1"} | {name: given_items}
    (error,) = errors_of(lambda: AgentConfig(**values)).values()
    text = error.expected
    assert len(text.split(", and ")) == len(said)
    for part, expected in zip(text.split(", and "), said, strict=True):
        assert expected in part


def test_config_errors_read_as_one_config_error() -> None:
    with pytest.raises(ConfigError) as caught:
        AgentConfig(hub_address="hub", cluster_name="C1")
    assert caught.value.field == "hub_address"
    assert len(str(caught.value).splitlines()) == 2


# From flags, environment and file ---------------------------------------------------------------------------------


def load(
    tmp_path: Path, toml: str = "", environ: dict[str, str] | None = None, cls: type = AgentConfig, **flags: Any
) -> Any:
    path = tmp_path / "agent.toml"
    path.write_text(toml)
    flags = {name.replace("__", "."): value for name, value in flags.items()}
    return load_config(cls, flags=flags, environ=environ or {}, config_file=str(path) if toml else "")


def load_config(cls: type, **given: Any) -> Any:
    """A command's configuration and its process's."""
    (config, process), _ = load_all((cls, ProcessConfig), others=COMMANDS, **given)
    return config, process


BASE = {"AGENT_HUB_ADDRESS": "hub:8443", "AGENT_CLUSTER_NAME": "c1"}


def test_a_flag_wins_over_the_variable_over_the_file_over_the_default(tmp_path: Path) -> None:
    toml = 'cluster_name = "file"\nhub_address = "file:1"\n[memory_comm]\nbuffer_size = 5000\nmax_connections = 7\n'
    environ = {"AGENT_HUB_ADDRESS": "env:2", "AGENT_MEMORY_COMM_BUFFER_SIZE": "6000", "AGENT_LOG_LEVEL": "debug"}
    config, process = load(tmp_path, toml, environ, memory_comm__buffer_size="7000", log_level="ERROR")
    assert config.cluster_name == "file"
    assert config.hub_addresses == (Address("env", 2),)
    assert config.memory_comm == MemoryCommConfig(buffer_size=7000, max_connections=7)
    assert process.log_level == "error"
    assert process.loop == "auto"


def test_a_flag_switches_off_what_the_file_switches_on(tmp_path: Path) -> None:
    config, _ = load(tmp_path, "use_memory_comm = true\ninsecure = true", BASE, use_memory_comm=False)
    assert (config.use_memory_comm, config.insecure) == (False, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("1", True),
        ("Yes", True),
        ("on", True),
        ("FALSE", False),
        ("0", False),
        ("no", False),
        ("off", False),
    ],
)
def test_a_boolean_variable(tmp_path: Path, text: str, expected: bool) -> None:
    config, _ = load(tmp_path, environ=BASE | {"AGENT_USE_MEMORY_COMM": text})
    assert config.use_memory_comm is expected


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    config, _ = load(tmp_path, "drain_grace_s = 3", BASE | {"AGENT_DRAIN_GRACE_S": "", "AGENT_ROUTE": ""})
    assert config.drain_grace_s == 3.0


def test_lists_in_variables_flags_and_file(tmp_path: Path) -> None:
    environ = BASE | {"AGENT_HUB_ADDRESS": "a:1, b:2\n[::1]:3", "AGENT_ROUTE": "/=http://a /b=http://b/x,y"}
    config, _ = load(tmp_path, environ=environ)
    assert [str(address) for address in config.hub_addresses] == ["a:1", "b:2", "[::1]:3"]
    assert config.static_routes == (Route("/", "http://a"), Route("/b", "http://b/x,y"))

    config, _ = load(tmp_path, environ=BASE, hub_address=("c:1", "d:2"), route=("/=http://c",))
    assert [str(address) for address in config.hub_addresses] == ["c:1", "d:2"]
    assert config.static_routes == (Route("/", "http://c"),)

    toml = 'hub_address = ["e:1", "f:2"]\ncluster_name = "c1"\n[route]\n"/" = "http://e"\n"/f" = "http://f"\n'
    config, _ = load(tmp_path, toml)
    assert config.hub_addresses == (Address("e", 1), Address("f", 2))
    assert config.static_routes == (Route("/", "http://e"), Route("/f", "http://f"))

    config, _ = load(tmp_path, 'route = ["/=http://e"]', BASE)
    assert config.static_routes == (Route("/", "http://e"),)


@pytest.mark.parametrize("between", [" ", "\n", ",", ", ", " ,\t", ",,"])
def test_routes_in_a_variable_may_have_commas_in_their_urls(tmp_path: Path, between: str) -> None:
    routes = ["/=http://a/1,2", "/b=http://b/,/x", "/c=https://c"]
    config, _ = load(tmp_path, environ=BASE | {"AGENT_ROUTE": between.join(routes)})
    assert [f"{route.prefix}={route.url}" for route in config.static_routes] == routes


def test_each_error_names_the_source_of_its_value(tmp_path: Path) -> None:
    toml = 'hub_address = 7\nuse_memory_comm = "yes"\nclustername = "c1"\n[memory_comm]\nbufer_size = 1\n'
    environ = {"AGENT_DRAIN_GRACE_S": "soon", "AGENT_MEMORY_COMM_MAX_CONNECTIONS": "1e3"}
    found = errors_of(lambda: load(tmp_path, toml, environ, route=("/a",), log_level="loud"))
    path = str(tmp_path / "agent.toml")
    assert {name: error.source for name, error in found.items()} == {
        "clustername": path,
        "memory_comm.bufer_size": path,
        "hub_address": path,
        "use_memory_comm": path,
        "cluster_name": "--cluster-name, AGENT_CLUSTER_NAME or the file",
        "memory_comm.max_connections": "AGENT_MEMORY_COMM_MAX_CONNECTIONS",
        "route": "--route",
        "drain_grace_s": "AGENT_DRAIN_GRACE_S",
        "log_level": "--log-level",
    }
    assert "perhaps cluster_name is meant" in found["clustername"].expected
    assert "perhaps memory_comm.buffer_size is meant" in found["memory_comm.bufer_size"].expected


@pytest.mark.parametrize(
    ("cls", "toml", "field", "expected"),
    [
        (AgentConfig, "[memory_com]\nbuffer_size = 4096", "memory_com", "perhaps [memory_comm] is meant"),
        (AgentConfig, "[limit]\nkeep_alive_s = 1", "limit", "perhaps [limits] is meant"),
        (AgentConfig, "[nothing]\na = 1", "nothing", "is not a table here, the command's --help lists them"),
        (HubConfig, "[memory_comm]\nbuffer_size = 4096", "memory_comm", "is a table of `run`, not of this command"),
        (AgentConfig, 'grpc_address = "a:1"', "grpc_address", "is a setting of `hub`, not of this command"),
        (AgentConfig, 'listen = "a:1"', "listen", "is a setting of `proxy`, not of this command"),
        (AgentConfig, "max_clients = 3", "max_clients", "is a setting of `hub` and `proxy`, not of this command"),
        (HubConfig, 'route = "/=http://a"', "route", "is a setting of `run` and `proxy`, not of this command"),
        (HubConfig, "[[routes]]\na = 1", "routes", "is a setting of `run` and `proxy`, not of this command"),
        (HubConfig, 'hub_address = "a:1"', "hub_address", "is a setting of `run`, not of this command"),
        (HubConfig, "[limits]\ntls_timeout_s = 1", "limits.tls_timeout_s", "is a setting of `run` and `proxy`"),
        (ProxyConfig, 'agent_token_file = "a"', "agent_token_file", "is a setting of `hub`, not of this command"),
        (AgentConfig, "buffer_size = 4096", "buffer_size", "is a field of the table [memory_comm]"),
        (
            AgentConfig,
            "[limits]\ninsecure = true",
            "limits.insecure",
            "is not a field of [limits], since insecure is above",
        ),
        (AgentConfig, "[limits]\nkeepalive_s = 1", "limits.keepalive_s", "perhaps limits.keep_alive_s is meant"),
        (AgentConfig, 'log_levl = "info"', "log_levl", "perhaps log_level is meant"),
    ],
)
def test_a_key_that_nothing_reads_is_said_with_where_it_belongs(
    tmp_path: Path, cls: type, toml: str, field: str, expected: str
) -> None:
    found = errors_of(lambda: load(tmp_path, toml, BASE | {"AGENT_ROUTE": "/=http://a"}, cls=cls))
    assert list(found) == [field]
    assert expected in found[field].expected


@pytest.mark.parametrize(
    ("toml", "field"),
    [
        ("a = ", "config"),
        ("memory_comm = 3", "memory_comm"),
        ("[hub_address]\na = 1", "hub_address"),
        ("é = 1", "config"),
    ],
)
def test_a_wrong_file_is_an_error_with_its_name(tmp_path: Path, toml: str, field: str) -> None:
    found = errors_of(lambda: load(tmp_path, toml, {"AGENT_CLUSTER_NAME": "c1"} if field == "hub_address" else BASE))
    assert found[field].source == str(tmp_path / "agent.toml")


@pytest.mark.parametrize("toml", ["hub_address =", None])
def test_of_a_file_that_cant_be_read_nothing_is_said_to_be_missing(tmp_path: Path, toml: str | None) -> None:
    path = tmp_path / "agent.toml"
    if toml is not None:
        path.write_text(toml)
    environ = {"AGENT_DRAIN_GRACE_S": "long"}
    found = errors_of(
        lambda: load_config(AgentConfig, flags={"insecure": True}, environ=environ, config_file=str(path))
    )
    assert list(found) == ["config", "drain_grace_s"]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    found = errors_of(lambda: load_config(AgentConfig, flags={}, environ=BASE, config_file=path))
    assert found["config"].source == path


def test_a_route_from_any_source_never_shows_its_password(tmp_path: Path) -> None:
    for flags, environ in (
        ({"route": ("/=http://u:secret@h",)}, BASE),
        ({}, BASE | {"AGENT_ROUTE": "/=http://u:secret@h"}),
    ):
        found = errors_of(lambda: load(tmp_path, environ=environ, **flags))  # noqa: B023
        assert "secret" not in str(found["route"])


ROUTES = """
[[routes]]
prefix = "/grafana/"
url = "http://grafana:3000/"
host = "grafana.example.com"
strip_prefix = false

[[routes]]
prefix = "/"
url = "https://web:8443/base"
host = "client"
rewrite = false
"""


@pytest.mark.parametrize("cls", [AgentConfig, ProxyConfig])
def test_routes_of_a_file_are_an_array_of_tables(tmp_path: Path, cls: type) -> None:
    base = BASE if cls is AgentConfig else {}
    config, _ = load(tmp_path, ROUTES, base, cls=cls)
    assert config.static_routes == (
        Route("/grafana", "http://grafana:3000", "grafana.example.com", strip_prefix=False),
        Route("/", "https://web:8443/base", "client", rewrite=False),
    )
    for environ, flags in (({"AGENT_ROUTE": "/b=http://b"}, {}), ({}, {"route": ("/b=http://b",)})):
        config, _ = load(tmp_path, ROUTES, base | environ, cls=cls, **flags)
        assert config.static_routes == (Route("/b", "http://b"),)
    config, _ = load(tmp_path, "", base | {"AGENT_ROUTE": "/b=h2c://b,/c=h2://c,/=https://d"}, cls=cls)
    assert [route.url for route in config.static_routes] == ["h2c://b", "h2://c", "https://d"]


@pytest.mark.parametrize(
    ("toml", "field", "expected"),
    [
        ('route = ["/=http://a"]' + ROUTES, "routes", "must not be set beside route, which is the same setting"),
        (ROUTES + '[route]\n"/" = "http://a"', "routes", "must not be set beside route"),
        (ROUTES + '[[routes]]\nprefix = "/grafana"\nurl = "http://b"', "route", "'/grafana': must have the prefix"),
        (ROUTES + "[[routes]]\nhost = 1", "route", "must have text for host, not 1, and must have the key prefix"),
        ('[routes]\nprefix = "/"\nurl = "http://a"', "route", "[[routes]], not [routes]"),
        ("routes = 3", "route", "list"),
        ('[[routes]]\nprefix = "/"\nurl = "http://u:secret@a"', "route", "user info"),
    ],
)
def test_wrong_routes_of_a_file_are_errors_that_name_the_entry(
    tmp_path: Path, toml: str, field: str, expected: str
) -> None:
    found = errors_of(lambda: load(tmp_path, toml, BASE))
    assert list(found) == [field]
    assert expected in found[field].expected
    assert found[field].source == str(tmp_path / "agent.toml")
    assert "secret" not in str(found[field])


@pytest.mark.parametrize("cls", [AgentConfig, HubConfig, ProxyConfig, ProcessConfig])
def test_field_flag_and_variable_are_one_name_with_help(cls: type) -> None:
    names = [setting.name for setting in settings_of(cls)]
    assert len(set(names)) == len(names)
    for setting in settings_of(cls):
        plain = setting.name.replace(".", "_")
        assert setting.flag == "--" + plain.replace("_", "-")
        assert setting.variable == ("HUB_" if cls is HubConfig else "AGENT_") + plain.upper()
        assert setting.old_variable == "AGENT_" + plain.upper()
        assert setting.help
        if not setting.required and setting.default is not None:
            setting.convert(setting.default)


# The syntax -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), (":80", ("", 80)), ("[::]:0", ("::", 0)), ("a-b:65535", ("a-b", 65535))],
)
def test_addresses_to_listen_on(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text, listen=True) == expected


@settings(deadline=None)
@given(text=st.one_of(st.text(max_size=30), st.from_regex(r"\[?[0-9a-f:.]*\]?:[0-9]*", fullmatch=True)))
def test_an_address_is_refused_or_comes_back_as_it_was(text: str) -> None:
    try:
        found = parse_address(text, listen=True)
    except ValueError:
        return
    assert parse_address(str(found), listen=True) == found


@settings(deadline=None)
@given(text=st.one_of(st.text(max_size=30), st.from_regex(r"\[?[*a-c0-9:./]*\]?:[0-9]*-?[0-9]*", fullmatch=True)))
def test_an_entry_of_connect_allow_is_refused_or_comes_back_as_it_was(text: str) -> None:
    try:
        found = parse_connect_entry(text)
    except ValueError:
        return
    assert parse_connect_entry(str(found)) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("db:5432", ("db", 5432)),
        ("DB.prod.:00080", ("DB.prod.", 80)),
        ("[::1]:65535", ("::1", 65535)),
        ("[::FFFF:127.0.0.1]:1", ("::FFFF:127.0.0.1", 1)),
        ("1.2.3.4:1", ("1.2.3.4", 1)),
        ("a_b:1", ("a_b", 1)),
    ],
)
def test_the_target_of_a_connect(text: str, expected: tuple[str, int]) -> None:
    assert parse_authority(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":80",
            "db",
            "db:",
            "db:0",
            "db:65536",
            "db:080000",
            "db:-1",
            "db:80 ",
            "db:80/",
            "/db:80",
            "db..prod:80",
        ),
        *(
            "-db:80",
            "db-:80",
            "u@db:80",
            "u:p@db:80",
            "http://db:80",
            "d%62:80",
            "[::1",
            "[::1]",
            "::1:80",
            "[::1%lo]:80",
        ),
        *("[::1%25lo]:80", "[db]:80", "[1.2.3.4]:80", "[]:80", "db:\u0661", "d\u0431:80", "db:80\n", "a" * 254 + ":80"),
    ],
)
def test_what_is_no_target_of_a_connect(text: str) -> None:
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        parse_authority(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_references_split_at_the_colon() -> None:
    assert parse_reference("a.b:c.d") == ("a.b", "c.d")
