"""Credential plugins of kubeconfig files: a command that prints an ExecCredential.

Input and output follow Kubernetes' reference of client.authentication.k8s.io, v1 and v1beta1.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import AgentError

__all__ = ["API_VERSIONS", "ExecCredential", "ExecPlugin", "PluginError"]

API_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
ANSWER_BYTES = 1024 * 1024
TIMEOUT_S = 60.0


class PluginError(AgentError):
    """A credential plugin gave no credential: the fault of the plugin, or of the kubeconfig file that names it.

    reason: in words. It holds nothing of what the plugin printed.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class ExecCredential:
    """A plugin's credentials.

    token: "" for none.
    certificate, key: PEM, b"" for none.
    lifetime_s: None for credentials that stay valid until the server rejects them.
    """

    token: str = dataclasses.field(default="", repr=False)
    certificate: bytes = b""
    key: bytes = dataclasses.field(default=b"", repr=False)
    lifetime_s: float | None = None


@dataclasses.dataclass(frozen=True)
class ExecPlugin:
    """A command that gives a credential. command: a path, or a name to be found in PATH. env: added to our own.

    api_version: one of API_VERSIONS. cluster: what `provideClusterInfo` asks for, None where it doesn't.
    """

    command: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    api_version: str = API_VERSIONS[0]
    cluster: Mapping[str, Any] | None = None

    async def run(self) -> ExecCredential:
        """Run the command without a terminal. Its standard error is ours.

        Raises PluginError, also after a minute without a result. If cancelled, kills the command.
        """
        spec: dict[str, Any] = {"interactive": False}
        if self.cluster is not None:
            spec["cluster"] = self.cluster
        asked = {"apiVersion": self.api_version, "kind": "ExecCredential", "spec": spec}
        environ = {**os.environ, **self.env, "KUBERNETES_EXEC_INFO": json.dumps(asked)}
        try:
            process = await asyncio.create_subprocess_exec(
                self.command,
                *self.args,
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                limit=ANSWER_BYTES,
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PluginError(f"the credential plugin {self.command} can't be run ({reason})") from error
        try:
            async with asyncio.timeout(TIMEOUT_S):
                assert process.stdout is not None
                answer = b""
                while more := await process.stdout.read(ANSWER_BYTES):
                    answer += more
                    if len(answer) > ANSWER_BYTES:
                        raise PluginError("the credential plugin's output is too large")
                code = await process.wait()
        except TimeoutError:
            raise PluginError(f"the credential plugin took more than {TIMEOUT_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            process._transport.close()  # type: ignore[attr-defined]  # else it warns at exit where it was killed
        if code != 0:
            raise PluginError(f"the credential plugin exited {code}")
        return parse_credential(answer, self.api_version, now=datetime.datetime.now(datetime.UTC))


def parse_credential(answer: bytes, api_version: str, *, now: datetime.datetime) -> ExecCredential:
    """The credential in an ExecCredential. Raises PluginError."""
    try:
        found = json.loads(answer)
        if found["kind"] != "ExecCredential" or found["apiVersion"] != api_version:
            raise PluginError(f"the credential plugin must print an ExecCredential of {api_version}")
        status = found["status"]
        token = status.get("token") or ""
        certificate, key = status.get("clientCertificateData") or "", status.get("clientKeyData") or ""
        if not all(isinstance(text, str) for text in (token, certificate, key)):
            raise PluginError("the credential plugin's token, certificate and key must be texts")
        expires = status.get("expirationTimestamp")
        lifetime_s = None if expires is None else (datetime.datetime.fromisoformat(expires) - now).total_seconds()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PluginError("the credential plugin's output is not an ExecCredential") from None
    if any(not "!" <= c <= "~" for c in token):
        raise PluginError("the credential plugin's token must be visible ASCII")
    if bool(certificate) != bool(key) or not (token or certificate):
        raise PluginError("the credential plugin must give a token, or a certificate and its key")
    return ExecCredential(token, certificate.encode(), key.encode(), lifetime_s)
