"""Loads certificates into TLS contexts, and explains what is wrong with unusable files.

OpenSSL's own message for a file without its key is "PEM lib (_ssl.c:3926)".
"""

from __future__ import annotations

import re
import ssl
import tempfile

from ..errors import ConfigError
from ..x509.certificate import in_pem, read_certificate

__all__ = ["der_hint", "load_chain", "load_chain_from_memory"]

_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----")
_ENCRYPTED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")  # PKCS #8, and OpenSSL's older form
_MAX_BYTES = 16 * 1024 * 1024  # as files.py reads


def load_chain(context: ssl.SSLContext, cert_file: str, key_file: str, field: str) -> None:
    """Load a certificate into `context`. Raises ConfigError with the file and the setting to change.

    key_file: "" if cert_file holds the key too.
    field: the setting that names cert_file. The setting of key_file has a similar name.
    """
    try:
        context.load_cert_chain(cert_file, key_file or None, _no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = f"{cert_file}, {key_file}" if key_file else cert_file
        try:
            certificate, key = _content(cert_file), _content(key_file) if key_file else None
        except OSError as unread:
            expected = f"{unread.filename or cert_file} must be a readable file ({unread.strerror or unread})"
            raise ConfigError(field, files, expected) from error
        key_field = field.replace("_cert_", "_key_")
        expected = _fault_of_pair(certificate, key, error, names=(cert_file, key_file), key_field=key_field)
        raise ConfigError(field, files, expected) from error


def load_chain_from_memory(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Have `context` show a client certificate that is in memory, in PEM. Raises ValueError.

    OpenSSL reads files only, so both are in a file of mode 0600 for the time of the call.
    """
    with tempfile.NamedTemporaryFile(prefix="fastpipe-agent-") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        try:
            context.load_cert_chain(file.name, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            names = ("the client certificate", "the client key")
            raise ValueError(_fault_of_pair(certificate, key, error, names=names, key_field=names[1])) from None


def _fault_of_pair(
    certificate: bytes, key: bytes | None, error: Exception, *, names: tuple[str, str], key_field: str
) -> str:
    """Describe what is wrong with a certificate and its key.

    certificate, key: the files' contents, None without a file for the key.
    error: OpenSSL's.
    names: the names of the two files.
    key_field: the setting that names the key's file.
    """
    cert_name, key_name = names
    labels = _LABEL.findall(certificate)
    if not certificate.strip():
        return f"{cert_name} is empty, and must hold a PEM certificate"
    if b"CERTIFICATE" not in labels:
        if key is not None and _has_key(labels) and b"CERTIFICATE" in _LABEL.findall(key):
            return f"{cert_name} holds a private key and {key_name} a certificate, so the two are swapped"
        return f"{cert_name} must hold a PEM certificate{der_hint(certificate) or _instead(labels)}"
    if key is None:
        if not _has_key(labels):
            return f"{cert_name} has no private key: set {key_field}"
    elif not key.strip():
        return f"{key_name} is empty, and must hold a PEM private key"
    elif not _has_key(_LABEL.findall(key)):
        return f"{key_name} must hold a PEM private key{der_hint(key) or _instead(_LABEL.findall(key))}"
    key_name = key_name if key is not None else cert_name
    if any(mark in (certificate if key is None else key) for mark in _ENCRYPTED):
        return f"{key_name} must hold an unencrypted private key: openssl pkey -in FILE -out FILE decrypts one"
    if isinstance(error, ssl.SSLError) and error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
        known = in_pem(certificate)
        whose = f" ({known[0].subject})" if known else ""
        return f"the private key in {key_name} must be that of the first certificate in {cert_name}{whose}"
    reason: object = error
    if isinstance(error, ssl.SSLError):  # without a reason its text is "PEM lib (_ssl.c:…)"
        reason = (error.reason or "a block in it is broken").lower().replace("_", " ")
    return f"{cert_name} must hold a PEM certificate and {key_name} its private key ({reason})"


def der_hint(content: bytes) -> str:
    """Advice for a file in DER instead of PEM, "" for other files."""
    if content[:1] != b"\x30" or b"-----BEGIN" in content:  # DER's SEQUENCE: a certificate, a key, PKCS #12
        return ""
    try:
        read_certificate(content)
    except ValueError:
        return ", not DER or PKCS #12: openssl converts it"
    return ", not DER: openssl x509 -inform der -in FILE -out FILE.pem converts it"


def _has_key(labels: list[bytes]) -> bool:
    return any(label.endswith(b"PRIVATE KEY") for label in labels)


def _instead(labels: list[bytes]) -> str:
    return f", not a {labels[0].decode('ascii')}" if labels else ""


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MAX_BYTES)


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask on the terminal
