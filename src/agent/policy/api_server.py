"""Access to a Kubernetes API server, with a pod's service account or a kubeconfig file.

It lasts as long as the agent. Each change of a file is read, and credential plugins run again before their credentials
expire. `kubeconfig.py` reads and checks the files.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import ssl
import time
from urllib.parse import urlsplit

from ..errors import AgentError, ConfigError
from .chains import load_chain_from_memory
from .exec_plugin import ExecCredential, ExecPlugin, PluginError
from .kubeconfig import AccessSpec, parse_kubeconfig, parse_token, read_service_account
from .reloading import Reloaded
from .trust import parse_certificates, roots_context

__all__ = ["SERVICE_ACCOUNT", "AccessError", "ApiAccess", "extra_is_installed", "in_cluster"]

logger = logging.getLogger(__name__)

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
EXPIRY_MARGIN_S = 10.0
"""A plugin's token is renewed this long before it expires, or after nine tenths of a shorter life."""

SHORTEST_LIFE_S = 2.0
"""A plugin's result, even a failure, is kept at least this long. Wrong clocks and many requests can't shorten it."""

Headers = tuple[tuple[bytes, bytes], ...]


class AccessError(AgentError):
    """The agent has no credentials for the API server: the fault of its configuration, or of a credential plugin.

    reason: in words without secrets.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def extra_is_installed() -> bool:
    """Whether the packages of `fastpipe-agent[kubernetes]` are there. Imports none of them."""
    from importlib.util import find_spec

    return find_spec("lightkube") is not None and find_spec("httpx2") is not None


def in_cluster() -> bool:
    """Whether this process runs in a pod with the address of Kubernetes' API server."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST") and os.environ.get("KUBERNETES_SERVICE_PORT"))


@dataclasses.dataclass(frozen=True)
class _Material:
    """The parts of the TLS context. roots: DER, empty for the system's."""

    roots: tuple[bytes, ...]
    certificate: bytes
    key: bytes = dataclasses.field(repr=False)


class ApiAccess:
    """One API server: its address, its roots of trust, and the credentials for it.

    server: `https://host:port`, perhaps with a path, without a slash at the end. It never changes after the start.
    has_certificate: whether the credentials include a client certificate.
    generation: increases when that certificate or the server's roots change.
    """

    def __init__(self, spec: Reloaded[AccessSpec], *, field: str, origin: str, check_interval_s: float = 1.0) -> None:
        """spec: see `from_service_account` and `from_kubeconfig`. field, origin: the configuration field, and its file.

        Raises ConfigError for files that can't be used.
        """
        self._spec = spec
        self._field = field
        self._origin = origin
        self._check_interval_s = check_interval_s
        self.server = spec.value.server
        self.generation = 0
        self.has_certificate = False
        self._next_look_s = 0.0
        self._spec_seen = self._material_seen = 0
        self._contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None] = (None, None)
        self._given: ExecCredential | None = None
        self._given_until_s = self._asked_again_s = 0.0
        self._failure: AccessError | None = None
        self._token_seen = -1
        self._headers: Headers = ()
        self._renewing = asyncio.Lock()
        self._use(spec.value)

    @classmethod
    def from_service_account(cls, directory: str = SERVICE_ACCOUNT, *, check_interval_s: float = 1.0) -> ApiAccess:
        """The API server of the cluster this process runs in, as its own service account. Raises ConfigError."""
        field = "kubeconfig"
        found = read_service_account(directory, field=field)
        spec = Reloaded[AccessSpec]([], lambda _: found, field=field)  # its files are looked at one by one
        return cls(spec, field=field, origin=directory, check_interval_s=check_interval_s)

    @classmethod
    def from_kubeconfig(cls, path: str, *, field: str, check_interval_s: float = 1.0) -> ApiAccess:
        """The cluster and user of a kubeconfig's current context. field: names the file. Raises ConfigError."""
        spec = Reloaded[AccessSpec](
            [path], lambda contents: parse_kubeconfig(contents[0], path), field=field, check_interval_s=check_interval_s
        )
        return cls(spec, field=field, origin=path, check_interval_s=check_interval_s)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the server."""
        parts = urlsplit(self.server)
        return parts.hostname or "", parts.port or 443

    @property
    def problem(self) -> str | None:
        """Why the files as they are now can't be used, None where they can."""
        token = None if self._token is None else self._token.problem
        return self._spec.problem or self._material.problem or token

    def context(self) -> ssl.SSLContext:
        """Verifies the server and presents nothing: for requests under their client's own credentials."""
        self.refresh()
        return self._context(False)

    def own_context(self) -> ssl.SSLContext:
        """Verifies the server and presents our client certificate, where there is one."""
        self.refresh()
        return self._context(self.has_certificate)

    def headers(self) -> Headers | None:
        """`Authorization` with our own token, () if there is only a certificate, None if `renew` must run first."""
        if self._token is not None:
            token = self._token.refresh()
            if self._token.generation != self._token_seen:
                self._token_seen = self._token.generation
                self._headers = _bearer(token)
        elif self._plugin is not None and (self._given is None or time.monotonic() >= self._given_until_s):
            return None
        return self._headers

    async def renew(self, refused: Headers | None = None) -> Headers:
        """Read the changed files, run the plugin if it is due, and return the headers.

        refused: headers that the server has just rejected, which must not come from memory again. Raises AccessError.
        If cancelled, nothing has changed.
        """
        async with self._renewing:
            self.refresh(now=True)
            if self._token is not None:
                self._token.refresh(now=True)
            found = self.headers()
            if self._plugin is not None and (found is None or found == refused):
                if time.monotonic() < self._asked_again_s:
                    if self._failure is not None:
                        raise self._failure
                else:
                    found = await self._run(self._plugin)
            if found is None:
                raise AccessError("there are no credentials")
            return found

    async def _run(self, plugin: ExecPlugin) -> Headers:
        """The headers that a plugin gives. Raises AccessError."""
        self._failure = None
        try:
            given = await plugin.run()
            if given.certificate:
                load_chain_from_memory(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), given.certificate, given.key)
            self._take(given)
        except PluginError as error:
            self._failure = AccessError(str(error))
        except ValueError as error:
            self._failure = AccessError(f"the credential plugin's certificate can't be used ({error})")
        self._asked_again_s = time.monotonic() + SHORTEST_LIFE_S
        if self._failure is not None:
            raise self._failure
        return self._headers

    def refresh(self, *, now: bool = False) -> None:
        """Look whether the files have changed, where that is due. Never raises: the last good stays in force."""
        clock_s = time.monotonic()
        if clock_s < self._next_look_s and not now:
            return
        self._next_look_s = clock_s + self._check_interval_s
        spec = self._spec.refresh(now=True)
        if self._spec.generation != self._spec_seen:
            self._spec_seen = self._spec.generation
            try:
                if spec.server != self.server:
                    raise ConfigError(self._field, self.server, "the server can't change while the agent runs")
                self._use(spec)
            except ConfigError as error:
                logger.error("%s; what was read before is used", error)
        self._material.refresh(now=True)
        if self._material.generation != self._material_seen:
            self._changed()

    def _use(self, spec: AccessSpec) -> None:
        token = None
        try:
            material = Reloaded[_Material](
                spec.files,
                lambda contents: _read_material(spec, contents),
                field=self._field,
                check_interval_s=self._check_interval_s,
            )
            if spec.token_file:
                token = Reloaded[str](
                    [spec.token_file], parse_token, field=self._field, check_interval_s=self._check_interval_s
                )
        except ConfigError as error:
            raise ConfigError(self._field, self._origin, error.expected) from None
        self._material, self._token, self._plugin = material, token, spec.plugin
        self._given = self._failure = None
        self._asked_again_s = 0.0
        self._token_seen = -1
        self._headers = _bearer(spec.token) if spec.token else ()
        self._changed()

    def _take(self, given: ExecCredential) -> None:
        lifetime_s = float("inf")
        if given.lifetime_s is not None:
            margin_s = min(EXPIRY_MARGIN_S, given.lifetime_s / 10)
            lifetime_s = max(SHORTEST_LIFE_S, given.lifetime_s - margin_s)
        had = self._given
        self._given, self._given_until_s = given, time.monotonic() + lifetime_s
        self._headers = _bearer(given.token) if given.token else ()
        if (had.certificate if had else b"") != given.certificate:
            self._changed()

    def _changed(self) -> None:
        self._material_seen = self._material.generation
        self._contexts = (None, None)
        given = self._given is not None and self._given.certificate
        self.has_certificate = bool(self._material.value.certificate or given)
        self.generation += 1

    def _context(self, own: bool) -> ssl.SSLContext:
        context = self._contexts[own]
        if context is None:
            material = self._material.value
            context = roots_context(material.roots, not material.roots, ["http/1.1"])
            if own:
                given = self._given if self._given is not None and self._given.certificate else material
                load_chain_from_memory(context, given.certificate, given.key)
            plain, with_certificate = self._contexts
            self._contexts = (plain, context) if own else (context, with_certificate)
        return context


def _bearer(token: str) -> Headers:
    return ((b"Authorization", b"Bearer " + token.encode("ascii")),)


def _read_material(spec: AccessSpec, contents: list[bytes]) -> _Material:
    """The files' contents in place of their paths. Raises ValueError."""
    read = dict(zip(spec.files, contents, strict=True))
    ca = read[spec.ca_file] if spec.ca_file else spec.ca_data
    certificate = read[spec.certificate_file] if spec.certificate_file else spec.certificate_data
    key = read[spec.key_file] if spec.key_file else spec.key_data
    roots = tuple(parse_certificates(ca, "the certificate authority")) if ca else ()
    if certificate:
        load_chain_from_memory(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, key)
    return _Material(roots, certificate, key)
