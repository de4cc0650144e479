"""Makes the endpoints that an agent dials: hubs' addresses, TLS and token, from the files at each dial."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from ..config.schema import AgentConfig
from ..errors import ConfigError
from ..policy.reloading import is_pipe, read_token
from ..policy.trust import client_context, roots_context
from ..syntax import is_loopback
from ..tunnel.client import HubEndpoint
from .outbound_proxy import proxy_for

__all__ = ["EndpointSource"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Metadata = list[tuple[str, str | bytes]]
Stamp = list[tuple[int, int, int] | None]


class EndpointSource:
    """Makes the endpoints of all hubs of an agent.

    config: the configuration for the next dials. It may be replaced by one with as many addresses.

    A file that becomes invalid later does not stop a running agent. The agent uses the last good content, and logs an
    ERROR. A pipe (`--hub-token-file <(command)`) is read once, and all dials use its content.
    Raises ConfigError for files that can't be used now.
    """

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self._of_pipes: dict[tuple[str, ...], Any] = {}  # the results of files of which one is a pipe
        self._tls = self._read_tls()
        _check_proxies(config)
        self._metadata = self._read_metadata()
        self._stamp = self._look()
        exposed = [str(address) for address in config.hub_addresses if not is_loopback(address.host)]
        if config.insecure and config.hub_token_file and exposed:
            logger.warning("the hub's token goes over the network in plaintext (insecure)", extra={"hubs": exposed})

    def endpoint(self, number: int, ip: str = "") -> HubEndpoint:
        """The endpoint of one hub.

        number: the number of the hub, from 0.
        ip: the one of its addresses to dial, "" for its name.
        """
        self._stamp = self._look()
        self._tls = _or_last_good(self._read_tls, self._tls)
        address = self.config.hub_addresses[number]
        proxy = proxy_for(address, os.environ)
        return HubEndpoint(
            ip or address.host,
            address.port,
            self._tls,
            self.config.hub_server_name or (address.host if ip else None),
            proxy,
            proxy_ssl=roots_context([], True, ["http/1.1"]) if proxy is not None and proxy.scheme == "https" else None,
            cert_file=self.config.hub_client_cert_file,
        )

    def is_proxied(self, number: int) -> bool:
        """Whether the hub of this number is dialled through a proxy."""
        return proxy_for(self.config.hub_addresses[number], os.environ) is not None

    def metadata(self) -> Metadata:
        """The metadata of the tunnel's call, besides the cluster's name: the token, if there is one."""
        self._metadata = _or_last_good(self._read_metadata, self._metadata)
        return self._metadata

    @property
    def files_changed(self) -> bool:
        """Whether a file has changed since the last dial."""
        return self._look() != self._stamp

    def check(self, config: AgentConfig) -> None:
        """Raise ConfigError if a file or a proxy of this configuration can't be used now."""
        self._read_tls(config)
        _check_proxies(config)
        self._read_metadata(config)

    def _read_tls(self, config: AgentConfig | None = None) -> ssl.SSLContext | None:
        config = config or self.config
        if config.insecure:
            return None
        ca_file, cert_file, key_file = _tls_files(config)
        return self._once(
            (ca_file, cert_file, key_file),
            lambda: client_context(ca_file=ca_file, cert_file=cert_file, key_file=key_file),
        )

    def _read_metadata(self, config: AgentConfig | None = None) -> Metadata:
        path = (config or self.config).hub_token_file
        if not path:
            return []
        return self._once((path,), lambda: [("authorization", f"Bearer {read_token(path, field='hub_token_file')}")])

    def _once(self, paths: tuple[str, ...], read: Callable[[], T]) -> T:
        """Read these files. If one is a pipe, later calls return the first result."""
        if not any(map(is_pipe, paths)):
            return read()
        if paths not in self._of_pipes:
            self._of_pipes[paths] = read()
        found: T = self._of_pipes[paths]
        return found

    def _look(self) -> Stamp:
        paths = (*_tls_files(self.config), self.config.hub_token_file)
        return [_stamp(path) for path in paths if path]


def _tls_files(config: AgentConfig) -> tuple[str, str, str]:
    return config.hub_ca_file, config.hub_client_cert_file, config.hub_client_key_file


def _check_proxies(config: AgentConfig) -> None:
    for address in config.hub_addresses:
        proxy_for(address, os.environ)


def _stamp(path: str) -> tuple[int, int, int] | None:
    if is_pipe(path):  # its time changes when it is written to
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _or_last_good(read: Callable[[], T], last: T) -> T:
    """Return the result of `read`, or `last` if its files can't be used now."""
    try:
        return read()
    except ConfigError as error:
        logger.error("%s; what was read before is used", error)
        return last
