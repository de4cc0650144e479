"""Makes the carrier that a configuration asks for."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError, ForwardError
from ..syntax import split_hub_url
from .carrier import Carrier, HubAddress
from .http1 import Http1Carrier

if TYPE_CHECKING:
    import ssl

    from ..config.schema import ForwardConfig

__all__ = ["make_carrier"]

logger = logging.getLogger(__name__)

MAX_TOKEN_BYTES = 16 * 1024


def make_carrier(config: ForwardConfig, token: str) -> Carrier:
    """Make the carrier. token: of the environment, if no file has one. Raises ConfigError."""
    is_tls, address = split_hub_url(config.hub)
    _check_token(token, "FORWARD_TOKEN")
    read_token = functools.partial(_token, config.token_file, token)

    if not is_tls:  # then HTTP/1.1 has half-closes, too
        return Http1Carrier(HubAddress(address), config.cluster, read_token, config.connect_timeout_s)
    from .http2 import Http2Carrier

    by_http1 = functools.cache(lambda: _Contexts(config, ["http/1.1"]))  # most hubs need none, and it takes a while
    by_http2 = _Contexts(config, ["h2", "http/1.1"])
    http1 = Http1Carrier(
        HubAddress(address, lambda: by_http1().current(), config.server_name),
        config.cluster,
        read_token,
        config.connect_timeout_s,
    )
    hub = HubAddress(address, by_http2.current, config.server_name)
    return Http2Carrier(hub, config.cluster, read_token, config.connect_timeout_s, http1)


class _Contexts:
    """The TLS for each new connection. Changed files apply, and after a wrong change the last good ones.

    Raises ConfigError if the files can't be used now.
    """

    def __init__(self, config: ForwardConfig, protocols: Sequence[str]) -> None:
        self._config = config
        self._protocols = protocols
        self._stamps = self._look()
        self._context = _make_context(config, protocols)

    def _look(self) -> list[tuple[int, int, int]]:
        config = self._config
        found = []
        for path in (config.ca_file, config.client_cert_file, config.client_key_file):
            with contextlib.suppress(OSError):  # replaced just now, or not set
                info = os.stat(path)
                found.append((info.st_mtime_ns, info.st_size, info.st_ino))
        return found

    def current(self) -> ssl.SSLContext:
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context = _make_context(self._config, self._protocols)
            except ConfigError as error:
                logger.error("changed files can't be used, and the last ones stay", extra={"reason": str(error)})
        return self._context


def _make_context(config: ForwardConfig, protocols: Sequence[str]) -> ssl.SSLContext:
    """The TLS now. protocols: offered by ALPN. Raises ConfigError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(protocols))
    try:
        if config.ca_file:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(config.ca_file)
        else:
            context.load_default_certs()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError("ca_file", config.ca_file, f"must hold PEM certificates ({reason})") from error
    if config.client_cert_file:
        try:
            # Without a password an encrypted key would ask for one on the terminal.
            context.load_cert_chain(config.client_cert_file, config.client_key_file or None, password=lambda: b"")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            rule = f"must hold a PEM certificate and its key, unencrypted ({reason})"
            raise ConfigError("client_cert_file", config.client_cert_file, rule) from error
    return context


def _token(token_file: str, token: str) -> str:
    """The user's token now, "" for none. Raises ForwardError."""
    if not token_file:
        return token
    try:
        with open(token_file, encoding="ascii") as file:
            found = file.read(MAX_TOKEN_BYTES).strip()
        _check_token(found, token_file)
    except (OSError, ValueError, ConfigError) as error:
        reason = getattr(error, "strerror", None) or "it must be one line of visible ASCII"
        raise ForwardError(f"the token in token_file can't be read: {reason}", fault="client") from error
    return found


def _check_token(token: str, source: str) -> None:
    """Raises ConfigError, which never shows the token."""
    if any(not "!" <= char <= "~" for char in token) or len(token) >= MAX_TOKEN_BYTES:
        raise ConfigError("token", source, "must be visible ASCII without spaces")
