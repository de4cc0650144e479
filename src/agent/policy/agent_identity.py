"""Identifies an agent for the hub by its client certificate or by its token, unless anyone is allowed.

The identity belongs to a cluster's tunnel. Only an agent with the same identity takes the tunnel over from another.
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
        """Set the accepted proofs of identity. Raises ConfigError for an unusable token file.

        Args:
            certificates: the port requests client certificates and verifies them (`agent_ca_file`).
            token_file: lines of `cluster token` with white space between, and `#` comments. A cluster may have several
                tokens. Each change is read.
            anyone: accept an agent without any proof, for any cluster.
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
        """Return the identity of an agent that may serve `cluster`, for comparison only.

        Args:
            cluster: the metadata's `cluster-name`.
            authorization: the metadata's `authorization`.
            certificate: the peer's verified certificate, as `SSLObject.getpeercert()` returns it.

        Raises:
            Refused: 400 for a name that is not an RFC 1123 label, 401 without any proof, 403 for another cluster's.
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
            # Tokens are looked up by digest, so the time of the lookup reveals nothing about a token.
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
