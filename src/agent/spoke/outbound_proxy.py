"""Finds the HTTP proxy for a hub in the environment: HTTPS_PROXY and NO_PROXY, in either case.

The rules are those of Go's libraries. So an agent written in Go can be replaced, and its environment stays:

1. The upper-case name is read first.
2. A hub on a loopback address is never dialled through a proxy.
3. NO_PROXY is compared with the hub's name or address as configured. Nothing is resolved.
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes, urlsplit

from ..errors import ConfigError
from ..syntax import Address, is_loopback, parse_address

__all__ = ["ConnectProxy", "proxy_for"]

VARIABLES = ("HTTPS_PROXY", "https_proxy")
EXCEPTIONS = ("NO_PROXY", "no_proxy")
PORTS = {"http": 80, "https": 443}


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectProxy:
    """An HTTP proxy that supports CONNECT.

    scheme: http, or https for TLS with the proxy itself.
    variable: the environment variable that names the proxy.
    authorization: the value of `Proxy-Authorization`, "" for none. It is a secret, and no text of this object has it.
    """

    scheme: str
    host: str
    port: int
    variable: str
    authorization: str = dataclasses.field(default="", repr=False)

    def __str__(self) -> str:
        """Its URL, without credentials."""
        return f"{self.scheme}://{Address(self.host, self.port)}"


def proxy_for(address: Address, environ: Mapping[str, str]) -> ConnectProxy | None:
    """The proxy to dial this address through, or None. Raises ConfigError for a proxy that can't be used."""
    variable = next((name for name in VARIABLES if environ.get(name)), "")
    if not variable or is_loopback(address.host):
        return None
    exceptions = next((environ[name] for name in EXCEPTIONS if environ.get(name)), "")
    if any(_matches(entry, address) for entry in exceptions.replace(",", " ").split()):
        return None
    return _parse(variable, environ[variable].strip())


def _parse(variable: str, text: str) -> ConnectProxy:
    wrong = ConfigError(  # the text isn't in it: it may hold a password
        variable, "environment", "must be http://HOST:PORT or https://HOST:PORT, USER:PASSWORD@ in front of HOST or not"
    )
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        default = PORTS[parts.scheme]
        port = default if parts.port is None else parts.port
        host = parts.hostname or ""
        parse_address(str(Address(host, port)))
        user, password = parts.username, parts.password
    except (KeyError, ValueError):
        raise wrong from None
    authorization = ""
    if user is not None:
        plain = unquote_to_bytes(user) + b":" + unquote_to_bytes(password or "")
        authorization = "Basic " + base64.b64encode(plain).decode("ascii")  # RFC 7617
    return ConnectProxy(parts.scheme, host, port, variable, authorization)


def _matches(entry: str, address: Address) -> bool:
    """Whether an entry of NO_PROXY includes this address.

    - `*`: all addresses
    - an IP address, or a block in CIDR notation
    - `example.org`: this name and all names below it
    - `.example.org` or `*.example.org`: all names below it

    A port after the entry (`example.org:8443`, `[::1]:8443`) narrows it to that port.
    """
    if entry == "*":
        return True
    name, port = _split_port(entry.lower())
    if port not in ("", str(address.port)):
        return False
    host = address.host.lower().rstrip(".")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        name = name.removeprefix("*").rstrip(".")
        return host.endswith(name if name.startswith(".") else f".{name}") or host == name
    try:
        return ip in ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        return False


def _split_port(entry: str) -> tuple[str, str]:
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (name.endswith("]") or ":" not in name):
        return name, port
    return entry, ""
