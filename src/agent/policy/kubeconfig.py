"""Reads kubeconfig files and service accounts: the server, its roots of trust, and the credentials.

lightkube joins contexts, clusters and users. This module checks the result. An unsupported or unsafe entry is an error,
and is never ignored.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import ConfigError
from .exec_plugin import API_VERSIONS, ExecPlugin

if TYPE_CHECKING:
    from lightkube.config.kubeconfig import SingleConfig

__all__ = ["AccessSpec", "parse_kubeconfig", "parse_token", "read_service_account"]


@dataclasses.dataclass(frozen=True)
class AccessSpec:
    """A kubeconfig's entries for one server and one user, with absolute paths and decoded data."""

    server: str
    ca_file: str = ""
    ca_data: bytes = b""
    certificate_file: str = ""
    certificate_data: bytes = b""
    key_file: str = ""
    key_data: bytes = dataclasses.field(default=b"", repr=False)
    token: str = dataclasses.field(default="", repr=False)
    token_file: str = ""
    plugin: ExecPlugin | None = None

    @property
    def files(self) -> list[str]:
        return [path for path in (self.ca_file, self.certificate_file, self.key_file) if path]


def read_service_account(directory: str, *, field: str) -> AccessSpec:
    """The API server of the pod's cluster, and the pod's service account. Raises ConfigError."""
    from lightkube import ConfigError as Unusable
    from lightkube import KubeConfig

    try:
        single = KubeConfig.from_service_account(directory).get()
        assert single is not None
        return _spec_of(single, {})
    except (Unusable, OSError, KeyError, ValueError) as error:
        raise ConfigError(field, directory, f"must hold a service account's token ({error})") from None


def parse_kubeconfig(content: bytes, path: str) -> AccessSpec:
    """Read a kubeconfig's current context. Raises ValueError for wrong or unsupported entries."""
    import msgspec
    import yaml
    from lightkube import ConfigError as Unusable
    from lightkube import KubeConfig

    try:
        document = yaml.safe_load(content)
        single = KubeConfig.from_dict(document, path).get()
    except yaml.YAMLError:
        raise ValueError("must be valid YAML") from None  # its own text quotes the file
    except KeyError as error:
        raise ValueError(f"must be a kubeconfig file, {error} is missing") from None
    except (TypeError, AttributeError, msgspec.ValidationError):
        raise ValueError("must be a kubeconfig file") from None
    except Unusable as error:
        raise ValueError(f"must have a current context ({error})") from None
    assert single is not None
    named = {"cluster": single.context.cluster, "user": single.context.user}
    raw = {
        kind: next((each.get(kind) or {} for each in document.get(f"{kind}s") or () if each["name"] == name), {})
        for kind, name in named.items()
    }
    return _spec_of(single, raw)


def _spec_of(single: SingleConfig, raw: dict[str, dict[str, Any]]) -> AccessSpec:
    """Check what lightkube has read. raw: `cluster` and `user` as written, for the rest. Raises ValueError."""
    cluster, user = single.cluster, single.user
    cluster_raw, user_raw = raw.get("cluster", {}), raw.get("user", {})
    if cluster.insecure:
        raise ValueError("insecure-skip-tls-verify isn't allowed: give certificate-authority")
    for key in ("tls-server-name", "proxy-url"):
        if cluster_raw.get(key):
            raise ValueError(f"{key} isn't supported")
    parts = urlsplit(cluster.server)
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"the server must be https://HOST[:PORT][/PATH], not {parts.scheme}://{parts.hostname}")
    if user is None:
        raise ValueError("the current context must name a user")
    if user.auth_provider or user.username or user.password:
        raise ValueError("the user must have a token, a certificate, or an exec plugin")

    def absolute(name: str | None) -> str:
        return os.fspath(single.abs_file(os.path.expanduser(name))) if name else ""

    spec = AccessSpec(
        server=cluster.server.rstrip("/"),
        ca_data=_decoded("certificate-authority-data", cluster.certificate_auth_data),
        ca_file="" if cluster.certificate_auth_data else absolute(cluster.certificate_auth),
        certificate_data=_decoded("client-certificate-data", user.client_cert_data),
        certificate_file="" if user.client_cert_data else absolute(user.client_cert),
        key_data=_decoded("client-key-data", user.client_key_data),
        key_file="" if user.client_key_data else absolute(user.client_key),
        token="" if user.token_file else parse_token([user.token.encode()]) if user.token else "",
        token_file=absolute(user.token_file),
        plugin=_plugin(single, cluster_raw, user_raw) if user.exec is not None else None,
    )
    has_certificate = bool(spec.certificate_data or spec.certificate_file)
    if has_certificate != bool(spec.key_data or spec.key_file):
        raise ValueError("client-certificate and client-key must be set together")
    if not (has_certificate or spec.token or spec.token_file or spec.plugin):
        raise ValueError("the user must have a token, a certificate, or an exec plugin")
    return spec


def _plugin(single: SingleConfig, cluster_raw: dict[str, Any], user_raw: dict[str, Any]) -> ExecPlugin:
    assert single.user is not None
    found = single.user.exec
    assert found is not None
    raw = user_raw.get("exec") or {}
    if found.apiVersion not in API_VERSIONS:
        raise ValueError(f"the exec plugin's apiVersion must be one of {', '.join(API_VERSIONS)}")
    if raw.get("interactiveMode") == "Always":
        raise ValueError("the exec plugin must not need a terminal (interactiveMode)")
    command = found.command
    if os.sep in command:  # relative to the file, as in client-go, while a bare name is searched in PATH
        command = os.fspath(single.abs_file(command))
    cluster = None
    if raw.get("provideClusterInfo"):
        cluster = {"server": single.cluster.server}
        if cluster_raw.get("certificate-authority-data"):
            cluster["certificate-authority-data"] = cluster_raw["certificate-authority-data"]
        for extension in cluster_raw.get("extensions") or ():
            if extension.get("name") == "client.authentication.k8s.io/exec":
                cluster["config"] = extension.get("extension")
    return ExecPlugin(
        command=command,
        args=tuple(found.args or ()),
        env={each.name: each.value for each in found.env or ()},
        api_version=found.apiVersion,
        cluster=cluster,
    )


def _decoded(key: str, text: str | None) -> bytes:
    try:
        return base64.b64decode("".join((text or "").split()), validate=True)
    except binascii.Error:
        raise ValueError(f"{key} must be base64") from None


def parse_token(contents: list[bytes]) -> str:
    """The token in a file's content, without white space around it. Raises ValueError."""
    token = contents[0].strip()
    if not token or any(not 0x21 <= byte <= 0x7E for byte in token):
        raise ValueError("the token file must hold one token of visible ASCII without spaces")
    return token.decode("ascii")
