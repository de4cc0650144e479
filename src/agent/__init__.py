"""A tunnel agent and its hub: what is used from Python. Each name's module is imported when the name is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config.schema import AgentConfig, ConfigErrors, HubConfig, LimitsConfig, MemoryCommConfig, TargetLimitsConfig
    from .errors import (
        AgentError,
        ConfigError,
        HubError,
        ListenError,
        PolicyError,
        Refused,
        TargetError,
        WireError,
    )
    from .hub.hub import Hub
    from .messages import RequestHead, Target
    from .policy.identity import RequestProcessor
    from .policy.router import Router
    from .policy.trust import CertificateProvider
    from .spoke.agent import Agent

    __version__: str

__all__ = [
    "Agent",
    "AgentConfig",
    "AgentError",
    "CertificateProvider",
    "ConfigError",
    "ConfigErrors",
    "Hub",
    "HubConfig",
    "HubError",
    "LimitsConfig",
    "ListenError",
    "MemoryCommConfig",
    "PolicyError",
    "Refused",
    "RequestHead",
    "RequestProcessor",
    "Router",
    "Target",
    "TargetError",
    "TargetLimitsConfig",
    "WireError",
    "__version__",
]

_HOMES = {
    "Agent": "spoke.agent",
    "AgentConfig": "config.schema",
    "AgentError": "errors",
    "CertificateProvider": "policy.trust",
    "ConfigError": "errors",
    "ConfigErrors": "config.schema",
    "Hub": "hub.hub",
    "HubConfig": "config.schema",
    "HubError": "errors",
    "LimitsConfig": "config.schema",
    "ListenError": "errors",
    "MemoryCommConfig": "config.schema",
    "PolicyError": "errors",
    "Refused": "errors",
    "RequestHead": "messages",
    "RequestProcessor": "policy.identity",
    "Router": "policy.router",
    "Target": "messages",
    "TargetError": "errors",
    "TargetLimitsConfig": "config.schema",
    "WireError": "errors",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("fastpipe-agent")
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
