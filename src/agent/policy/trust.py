"""CertificateProvider: the certificates that targets must present. And the TLS contexts of our ports and the hub link.

All contexts have TLS 1.2 or newer, verification and host name checks. No switch turns them off.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import re
import ssl
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ..errors import ConfigError
from ..messages import Target
from .chains import der_hint, load_chain
from .reloading import Reloaded

__all__ = [
    "CertificateProvider",
    "FileTrust",
    "ServerContext",
    "client_context",
    "handshake_failure",
    "parse_certificates",
    "roots_context",
    "server_context",
]

# One block of RFC 7468, or the start of one that doesn't end as it should.
_BLOCK = re.compile(rb"-----BEGIN (?P<label>[^\r\n]*?)-----(?:(?P<base64>[A-Za-z0-9+/=\s]*)-----END (?P=label)-----)?")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")


@runtime_checkable
class CertificateProvider(Protocol):
    """Decides which certificates are trusted. One of the three interfaces that users replace."""

    @property
    def generation(self) -> int:
        """Counts up when the roots change: upstream connections opened before that are not used again."""
        ...

    def ssl_context(self, target: Target) -> ssl.SSLContext:
        """Return the context for a connection to `target`. Called for each new TLS connection. Raises nothing."""
        ...


class FileTrust:
    """Trusts the system's roots and the certificates in PEM files, and presents the agent's certificate, if any.

    Each change of the files is read. If a file becomes malformed, the last good ones stay in force, and an ERROR is
    logged. The pool closes connections of an older generation.
    """

    def __init__(
        self,
        ca_files: Sequence[str | os.PathLike[str]] = (),
        *,
        system_roots: bool = True,
        cert_file: str = "",
        key_file: str = "",
        field: str = "target_ca_file",
        cert_field: str = "target_client_cert_file",
        check_interval_s: float = 1.0,
    ) -> None:
        """Read the files. Raises ConfigError for an unreadable or wrong file.

        Args:
            ca_files: PEM files with one or more certificates each.
            system_roots: trust the system's roots too.
            cert_file, key_file: the certificate for every target, "" for none. With key_file "", cert_file holds both.
            field, cert_field: the settings that name the files.
            check_interval_s: the most seconds until a change is seen.
        """
        self._system_roots = system_roots
        self._cert_file, self._key_file, self._cert_field = cert_file, key_file, cert_field
        if cert_file:  # first alone, so that an error names its own setting
            load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert_file, key_file, cert_field)
        paths = [os.fspath(path) for path in ca_files]
        self._ca_files = len(paths)
        self._shows: ssl.SSLContext | None = None
        self._files = Reloaded(
            [*paths, *filter(None, (cert_file, key_file))], self._parse, field=field, check_interval_s=check_interval_s
        )
        self._context: tuple[int, ssl.SSLContext] | None = None

    def _parse(self, contents: list[bytes]) -> list[bytes]:
        roots = _parse_all(contents[: self._ca_files])
        if self._cert_file:  # a new key may arrive before its certificate, so both are tried together first
            shows = roots_context(roots, self._system_roots, ["http/1.1"])
            try:
                load_chain(shows, self._cert_file, self._key_file, self._cert_field)
            except ConfigError as error:
                raise ValueError(str(error)) from error
            self._shows = shows
        # Another certificate is another generation, as other roots are.
        return [*roots, *(hashlib.sha256(content).digest() for content in contents[self._ca_files :])]

    @property
    def generation(self) -> int:
        """How often the files have changed, seen at most `check_interval_s` late."""
        self._files.refresh()
        return self._files.generation

    @property
    def problem(self) -> str | None:
        """Why the files as they are now can't be used, None where they can."""
        return self._files.problem

    def ssl_context(self, target: Target) -> ssl.SSLContext:
        """One context per generation, the same for every target. The first one loads the roots (some 20 ms)."""
        generation = self.generation
        if self._shows is not None:
            return self._shows
        if self._context is None or self._context[0] != generation:
            self._context = (generation, roots_context(self._files.value, self._system_roots, ["http/1.1"]))
        return self._context[1]


def parse_certificates(pem: bytes, name: str = "the file") -> list[bytes]:
    """Read the DER certificates of a PEM file. It is strict, while OpenSSL skips unreadable blocks.

    Text around the blocks is allowed (RFC 7468, section 2). Truncated blocks, wrong base64, other labels and blocks
    without a certificate are not. Raises ValueError that begins with `name`, also without any certificate.
    """
    found: list[bytes] = []
    for number, block in enumerate(_BLOCK.finditer(pem), 1):
        where = f"{name}, block {number},"
        if block["label"] != b"CERTIFICATE":
            raise ValueError(f"{where} must be a CERTIFICATE, not {block['label'].decode('ascii', 'replace')!r}")
        if block["base64"] is None:
            raise ValueError(f"{where} must be base64 up to an END CERTIFICATE line")
        try:
            text = b"".join(block["base64"].split())
            if len(text) % 4 or not _BASE64.fullmatch(text):  # a2b_base64's strict_mode lets some padding through
                raise ValueError("its base64 is broken")
            der = binascii.a2b_base64(text)
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
        except (binascii.Error, ssl.SSLError, ValueError) as error:
            raise ValueError(f"{where} must be a valid certificate ({error})") from None
        found.append(der)
    if not found:
        raise ValueError(f"{name} must hold at least one PEM certificate{der_hint(pem)}")
    return found


def _parse_all(contents: list[bytes]) -> list[bytes]:
    return [der for number, pem in enumerate(contents, 1) for der in parse_certificates(pem, f"CA file {number}")]


def roots_context(certificates: Sequence[bytes], system_roots: bool, alpn: list[str]) -> ssl.SSLContext:
    """A client's context that trusts these DER certificates, and the system's roots where asked to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and checks host names
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a trusted intermediate is an anchor, as for Go and curl
    context.set_alpn_protocols(alpn)
    if system_roots:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    for certificate in certificates:
        context.load_verify_locations(cadata=certificate)
    return context


def client_context(
    *,
    ca_file: str = "",
    ca_field: str = "hub_ca_file",
    cert_file: str = "",
    key_file: str = "",
    cert_field: str = "hub_client_cert_file",
    alpn: Sequence[str] = ("h2",),
) -> ssl.SSLContext:
    """Make the context to dial the hub with, from the files' current contents.

    Args:
        ca_file: trust these certificates instead of the system's roots.
        cert_file, key_file: the client certificate to present. With key_file "", cert_file holds both.

    Raises:
        ConfigError: a file is unusable. The error names its setting.
    """
    roots = Reloaded([ca_file], _parse_all, field=ca_field).value if ca_file else []
    context = roots_context(roots, not ca_file, list(alpn))
    if cert_file:
        load_chain(context, cert_file, key_file, cert_field)
    return context


class ServerContext(ssl.SSLContext):
    """A server's context.

    files: the source of certificates and CAs. Each new connection gets a context made from the current files. A context
    can't forget a CA, and its session tickets would admit clients of a removed CA.
    """

    files: Reloaded[ServerContext] | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """One connection's TLS: what event loops call for each that they accept."""
        if self.files is None:
            return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        current = self.files.refresh()
        return current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def handshake_failure(error: BaseException) -> str | None:
    """Why a peer's handshake failed, in words. None where the peer only left: a port scan is no failure."""
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError):
        return "it took too long" if isinstance(error, ConnectionAbortedError) else None
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate was refused: {error.verify_message}"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the client showed no certificate"
    return (error.reason or str(error)).lower().replace("_", " ")


def server_context(
    cert_file: str,
    key_file: str,
    *,
    cert_field: str,
    client_ca_file: str = "",
    client_ca_field: str = "agent_ca_file",
    client_required: bool = True,
    alpn: Sequence[str] = (),
    check_interval_s: float = 1.0,
) -> ServerContext:
    """Make the context of a hub's port, which follows the files at each new connection.

    If files become malformed, the last good ones stay in force, and an ERROR is logged.

    Args:
        client_ca_file: request a certificate that one of these CAs signed.
        client_required: reject a peer without one.
        check_interval_s: the most seconds until a change is seen.

    Raises:
        ConfigError: a file is unusable now. The error names its setting.
    """

    def make() -> ServerContext:
        return _context_now(cert_file, key_file, cert_field, client_ca_file, client_ca_field, client_required, alpn)

    def remake(_: list[bytes]) -> ServerContext:
        try:
            return make()
        except ConfigError as error:
            raise ValueError(str(error)) from error

    context = make()
    paths = [path for path in (cert_file, key_file, client_ca_file) if path]
    context.files = Reloaded(paths, remake, field=cert_field, check_interval_s=check_interval_s)
    return context


def _context_now(
    cert_file: str,
    key_file: str,
    cert_field: str,
    client_ca_file: str,
    client_ca_field: str,
    client_required: bool,
    alpn: Sequence[str],
) -> ServerContext:
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if client_ca_file:
        for certificate in Reloaded([client_ca_file], _parse_all, field=client_ca_field).value:
            context.load_verify_locations(cadata=certificate)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    load_chain(context, cert_file, key_file, cert_field)
    return context
