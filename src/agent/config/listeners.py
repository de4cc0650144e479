"""The listeners of a hub for CONNECT: a fixed port for one target, or a proxy for one cluster.

    ADDRESS=CLUSTER/HOST:PORT   accepted bytes go to one target
    ADDRESS=CLUSTER             clients send CONNECT, and each names its target

ADDRESS is HOST:PORT, or `unix:` and a path. The tables of `[[listeners]]` have further keys, for TLS.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..syntax import SOCKET_PATH_BYTES, check_label, is_loopback, parse_address, parse_authority
from .tables import check_table

__all__ = ["UNIX", "Listener", "check_listener", "parse_listener"]

UNIX = "unix:"


class Listener(NamedTuple):
    """One listener.

    address: HOST:PORT, or `unix:` and the path of a Unix socket, whose mode is 0600.
    cluster: the cluster that its connections go to.
    target: HOST:PORT of the only target. "": the listener serves CONNECT.
    cert_file, key_file: PEM certificate chain and private key, "" for plaintext.
    client_ca_file: PEM CA of clients' certificates, which are then required.
    allow_any_user: clients without a certificate are admitted.
    """

    address: str
    cluster: str
    target: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    allow_any_user: bool = False

    @property
    def path(self) -> str:
        """The path of its Unix socket, "" for TCP."""
        return self.address.removeprefix(UNIX) if self.address.startswith(UNIX) else ""

    @property
    def is_free_port(self) -> bool:
        """Whether the system chooses its port."""
        return not self.path and parse_address(self.address, listen=True).port == 0

    @property
    def requires_certificate(self) -> bool:
        """Whether clients must show a certificate."""
        return bool(self.client_ca_file) and not self.allow_any_user

    @property
    def short_form(self) -> str:
        """ADDRESS=CLUSTER or ADDRESS=CLUSTER/TARGET, "" if that is not the same listener."""
        text = f"{self.address}={self.cluster}" + (f"/{self.target}" if self.target else "")
        return text if self == (self.address, self.cluster, self.target, "", "", "", False) else ""


_KEYS: Mapping[str, type] = MappingProxyType(
    {name: bool if name == "allow_any_user" else str for name in Listener._fields}
)


def parse_listener(text: str) -> Listener:
    """Parse `ADDRESS=CLUSTER` or `ADDRESS=CLUSTER/HOST:PORT`. Raises ValueError."""
    address, equals, where = text.rpartition("=")
    if not equals:
        raise ValueError(f"must be ADDRESS=CLUSTER or ADDRESS=CLUSTER/HOST:PORT, not {text!r}")
    cluster, slash, target = where.partition("/")
    if slash and not target:
        raise ValueError(f"must have HOST:PORT behind the slash, not {text!r}")
    return check_listener({"address": address, "cluster": cluster, "target": target})


def check_listener(table: Mapping[Any, Any]) -> Listener:
    """Check one entry of `[[listeners]]`. An empty text is the same as a missing key.

    Raises ValueError with the texts of all wrong keys, or with the first broken rule.
    """
    check_table(table, _KEYS, required=("address", "cluster"))
    found = Listener(**table)
    checks = (_check_address, _check_cluster, _check_target, _check_files, _check_admission)
    for check in checks:
        check(found)
    return found


def _check_address(listener: Listener) -> None:
    if not listener.address.startswith(UNIX):
        parse_address(listener.address, listen=True)
    elif not 0 < len(os.fsencode(listener.path)) <= SOCKET_PATH_BYTES:
        raise ValueError(f"must have a path of at most {SOCKET_PATH_BYTES} bytes behind {UNIX}")


def _check_cluster(listener: Listener) -> None:
    try:
        check_label(listener.cluster)
    except ValueError as error:
        raise ValueError(f"the cluster {error}") from None


def _check_target(listener: Listener) -> None:
    if listener.target:
        try:
            parse_authority(listener.target)
        except ValueError as error:
            raise ValueError(f"the target {error}, not {listener.target!r}") from None


def _check_files(listener: Listener) -> None:
    for key in ("cert_file", "key_file", "client_ca_file"):
        path = getattr(listener, key)
        if path and (os.path.isdir(path) or not os.access(path, os.R_OK)):
            raise ValueError(f"must have the path of a readable file for {key}, not {path!r}")
        if path and not listener.cert_file:
            raise ValueError(f"must have cert_file together with {key}, since only TLS has certificates")


def _check_admission(listener: Listener) -> None:
    is_private = bool(listener.path) or is_loopback(parse_address(listener.address, listen=True).host)
    if not (is_private or listener.client_ca_file or listener.allow_any_user):
        raise ValueError(
            "must have a loopback address or a Unix socket, or require client certificates (client_ca_file). "
            "Otherwise everybody reaches the cluster's targets. allow_any_user = true allows that"
        )
