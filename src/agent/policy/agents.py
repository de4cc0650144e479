"""Who an agent is, for the hub: by its client certificate, by its token, or anyone where that is allowed.

The identity belongs to a cluster's tunnel: only an agent of the same identity takes it over from another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..errors import Refused
from ..syntax import check_label, is_label
from ..x509.expiry import has_expired
from .reloading import Reloaded

__all__ = ["ANYONE", "AgentPolicy"]

ANYONE = "anyone"


class AgentPolicy:
    """Checks the agents that open a tunnel, each for the one cluster it names."""

    def __init__(self, *, certificates: bool = False, token_file: str = "", anyone: bool = False) -> None:
        """certificates: the port asks for client certificates and has verified those it got (`agent_ca_file`).

        token_file: lines of `cluster token`, white space between, `#` comments; a cluster may have several tokens; read
        anew when it changes. anyone: an agent that shows nothing is let in for any cluster.
        Raises ConfigError for a token file that can't be used.
        """
        self._certificates = certificates
        self._anyone = anyone
        self._tokens = Reloaded([token_file], _parse_tokens, field="agent_token_file") if token_file else None
        self._named_by: Mapping[bytes, frozenset[str]] = {}
        self._named: frozenset[str] = frozenset()

    def names(self, cluster: str) -> bool:
        """Whether the token file has a token for this cluster."""
        if self._tokens is None:
            return False
        tokens = self._tokens.refresh()
        if tokens is not self._named_by:  # not for each request: a file may have many lines
            self._named_by = tokens
            self._named = frozenset().union(*tokens.values())
        return cluster in self._named

    def identify(self, cluster: bytes, authorization: bytes | None, certificate: Mapping[str, Any] | None) -> str:
        """The identity of an agent that may serve `cluster`, for comparing only.

        cluster: the metadata's `cluster-name`. authorization: the metadata's `authorization`. certificate: the peer's
        verified one, as `SSLObject.getpeercert()` gives it. Raises Refused: 400 for a name that is no RFC 1123 label,
        401 where nothing was shown, 403 where what was shown isn't for this cluster.
        """
        if not is_label(cluster):
            raise Refused(400, "cluster-name must be one RFC 1123 label")
        name = cluster.decode("ascii")
        shown = False
        if self._certificates and certificate:
            if has_expired(certificate):  # since its connection, or the session that this one resumed, began
                raise Refused(403, "the agent's certificate has expired")
            if name in _names(certificate):
                return f"certificate:{name}"
            shown = True
        if self._tokens is not None and authorization is not None:
            scheme, _, token = authorization.strip().partition(b" ")
            # Tokens are looked up by their digest: how long that takes says nothing about a token.
            if scheme.lower() == b"bearer" and name in self._tokens.refresh(now=True).get(_digest(token.strip()), ()):
                return f"token:{name}"
            shown = True
        if shown:
            raise Refused(403, "these credentials aren't for this cluster")
        if not self._anyone:
            raise Refused(401, "an agent must show a client certificate or a token here")
        return ANYONE


def _names(certificate: Mapping[str, Any]) -> set[str]:
    """The DNS names and the common name of a certificate, as they are: no wildcards, no case folding."""
    names = {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}
    names.update(value for part in certificate.get("subject", ()) for key, value in part if key == "commonName")
    return names


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _parse_tokens(contents: list[bytes]) -> dict[bytes, frozenset[str]]:
    """Clusters by the digest of their token. Raises ValueError, which names lines and never quotes them."""
    found: dict[bytes, frozenset[str]] = {}
    for number, line in enumerate(contents[0].splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith(b"#"):
            continue
        if len(fields) != 2 or not is_label(fields[0]):
            raise ValueError(f"line {number} must be a cluster's name, white space and its token")
        if any(not 0x21 <= byte <= 0x7E for byte in fields[1]):
            raise ValueError(f"line {number}: the token must be visible ASCII")
        digest = _digest(fields[1])
        found[digest] = found.get(digest, frozenset()) | {check_label(fields[0].decode("ascii"))}
    if not found:
        raise ValueError("at least one line must be a cluster's name, white space and its token")
    return found
