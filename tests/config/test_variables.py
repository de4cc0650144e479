"""Variables that look like ours: errors suggest the right name, and other programs' variables are ignored."""

from __future__ import annotations

import pytest

from agent.config.loading import ConfigErrors, load, settings
from agent.config.schema import COMMANDS, HubConfig, ProcessConfig
from agent.config.variables import MOST, find_doubts, find_outdated, list_config_variables


def told(prefix: str, *variables: str) -> dict[str, str]:
    return dict(find_doubts(dict.fromkeys(variables, "secret"), prefix, ProcessConfig, COMMANDS))


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("AGENT_HUB_TOKENFILE", "AGENT_HUB_TOKEN_FILE"),
        ("AGENT_HUB_ADRESS", "AGENT_HUB_ADDRESS"),
        ("AGENT_MEMORYCOMM_BUFFER_SIZE", "AGENT_MEMORY_COMM_BUFFER_SIZE"),
        ("AGENT_LOGLEVEL", "AGENT_LOG_LEVEL"),
        ("AGENT_CONFG", "AGENT_CONFIG"),
        ("HUB_GRPC_ADRESS", "HUB_GRPC_ADDRESS"),
        ("FASTPIPE_NO_EXTENSION", "FASTPIPE_NO_EXTENSIONS"),
    ],
)
@pytest.mark.parametrize("prefix", ["AGENT_", "HUB_"])
def test_a_misspelt_variable_is_told_with_what_is_meant(prefix: str, variable: str, meant: str) -> None:
    assert told(prefix, variable) == {variable: f"perhaps {meant} is meant"}


@pytest.mark.parametrize("prefix", ["AGENT_", "HUB_"])
def test_no_variable_that_a_command_reads_is_told(prefix: str) -> None:
    both = [(settings(cls), settings(ProcessConfig, cls.variable_prefix)) for cls in COMMANDS.values()]
    read = [each for pair in both for part in pair for each in part]
    names = {each.variable for each in read} | {each.old_variable for each in read}
    assert {"HUB_AGENT_TOKEN_FILE", "AGENT_AGENT_TOKEN_FILE", "AGENT_LISTEN", "HUB_LOOP"} <= names
    assert told(prefix, *names, "AGENT_CONFIG", "HUB_CONFIG", "FASTPIPE_NO_EXTENSIONS") == {}


@pytest.mark.parametrize("service", ["AGENT", "HUB", "FASTPIPE_AGENT", "AGENT_HUB", "HUB_GRPC", "AGENT_HUB_TOKEN"])
@pytest.mark.parametrize("prefix", ["AGENT_", "HUB_"])
def test_what_kubernetes_sets_for_a_service_is_not_told(prefix: str, service: str) -> None:
    names = [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_GRPC",
        "SERVICE_PORT_HTTP_ADMIN",
        "PORT",
        "PORT_8443_TCP",
        "PORT_8443_TCP_PROTO",
        "PORT_8443_TCP_PORT",
        "PORT_8443_TCP_ADDR",
        "PORT_53_UDP",
        "PORT_53_UDP_ADDR",
        "PORT_132_SCTP",
    ]
    assert told(prefix, *(f"{service}_{name}" for name in names)) == {}


def test_an_unknown_variable_is_told_with_the_commands_own_prefix_only() -> None:
    assert list(told("AGENT_", "AGENT_FLAVOUR", "HUB_FLAVOUR", "FASTPIPE_FLAVOUR", "OTHER")) == ["AGENT_FLAVOUR"]
    assert list(told("HUB_", "AGENT_FLAVOUR", "HUB_FLAVOUR", "FASTPIPE_FLAVOUR", "OTHER")) == ["HUB_FLAVOUR"]


def test_another_commands_setting_is_told_with_its_own_variable() -> None:
    assert told("HUB_", "HUB_ROUTE") == {"HUB_ROUTE": "`run` reads AGENT_ROUTE"}
    assert told("AGENT_", "HUB_CLUSTER_NAME") == {"HUB_CLUSTER_NAME": "`run` reads AGENT_CLUSTER_NAME"}


def test_few_are_told_of_many_and_none_with_its_value() -> None:
    found = told("AGENT_", *(f"AGENT_ITEM_{number}" for number in range(200)))
    assert len(found) == MOST
    assert "secret" not in str(found)


# The hub's own prefix ----------------------------------------------------------------------------------------------


def hub(environ: dict[str, str], **flags: str) -> tuple[HubConfig, ProcessConfig, dict[str, str]]:
    (config, process), sources = load((HubConfig, ProcessConfig), flags=flags, environ=environ)
    return config, process, sources


def test_every_hub_setting_has_its_own_variable_and_the_old_one() -> None:
    for each in (*settings(HubConfig), *settings(ProcessConfig, "HUB_")):
        assert each.variable.startswith("HUB_")
        assert each.old_variable == "AGENT_" + each.variable.removeprefix("HUB_")


def test_the_new_name_wins_over_the_old_one_and_a_flag_over_both() -> None:
    both = {"HUB_LIMITS_KEEP_ALIVE_S": "3", "AGENT_LIMITS_KEEP_ALIVE_S": "4", "AGENT_LOG_LEVEL": "error"}
    config, process, sources = hub(both | {"HUB_LOG_LEVEL": "debug"})
    assert (config.limits.keep_alive_s, process.log_level) == (3, "debug")
    assert sources == {"limits.keep_alive_s": "HUB_LIMITS_KEEP_ALIVE_S", "log_level": "HUB_LOG_LEVEL"}
    config, process, sources = hub(both, log_level="warning")
    assert (config.limits.keep_alive_s, process.log_level) == (3, "warning")


def test_the_old_name_alone_is_read_and_told() -> None:
    config, process, sources = hub({"AGENT_MAX_CLIENTS": "7", "AGENT_LOOP": "asyncio", "HUB_HTTP_ADDRESS": "[::1]:0"})
    assert (config.max_clients, process.loop, config.http_address) == (7, "asyncio", "[::1]:0")
    declared = {each.name: each for each in (*settings(HubConfig), *settings(ProcessConfig, "HUB_"))}
    assert dict(find_outdated(sources, declared)) == {
        "AGENT_MAX_CLIENTS": "it is called HUB_MAX_CLIENTS now",
        "AGENT_LOOP": "it is called HUB_LOOP now",
    }


def test_an_empty_new_name_keeps_the_agents_variable_out() -> None:
    config, _, sources = hub({"HUB_HEALTH_ADDRESS": "", "AGENT_HEALTH_ADDRESS": "127.0.0.1:8081"})
    assert (config.health_address, sources) == ("", {})


def test_an_error_names_the_variable_that_gave_the_value() -> None:
    for name in ("HUB_MAX_CLIENTS", "AGENT_MAX_CLIENTS"):
        with pytest.raises(ConfigErrors) as caught:
            hub({name: "many"})
        assert caught.value.source == name


def test_only_the_hub_has_an_old_name() -> None:
    assert list_config_variables("AGENT_") == ["AGENT_CONFIG"]
    assert list_config_variables("HUB_") == ["HUB_CONFIG", "AGENT_CONFIG"]
    for command in ("run", "proxy"):
        assert all(each.variable == each.old_variable for each in settings(COMMANDS[command]))
