"""Names the certificate with wrong dates in an error: `the hub's certificate (CN=hub) expired on 2026-01-02`.

Python's `ssl` does not return a rejected certificate. For these two failures only, this module dials the peer once
more. A handshake without verification gives it the peer's certificate. It sends only that handshake, in TLS 1.3 only
its first message, and never our own certificate. Then it aborts the connection. The result only goes into a message,
since the peer is already rejected.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from .certificate import Certificate, in_pem, read_certificate

__all__ = ["Reader", "fault_of_own", "has_wrong_dates", "verify_reason", "whose_dates"]

NOT_YET_VALID, HAS_EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID and …_HAS_EXPIRED (OpenSSL's x509_vfy.h)
UNKNOWN_CA = frozenset((18, 19, 20, 21))
"""OpenSSL's codes of an unknown, self-signed or missing issuer, and of a leaf alone (x509_vfy.h)."""
TIMEOUT_S = 3.0
MAX_HANDSHAKE_BYTES = 1 << 20

_MAX_FILE_BYTES = 1 << 20


class Reader(asyncio.BufferedProtocol):
    """Does the handshake on a plain connection until its peer's certificate is there, and ends the connection.

    done: set at the end, however it came. der: the certificate, None where none came.
    """

    def __init__(self, server_hostname: str, alpn: Sequence[str] = ()) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(list(alpn))
        self.done = asyncio.Event()
        self.der: bytes | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._buffer = bytearray(16384)
        self._received = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self._advance()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received += nbytes
        self._incoming.write(memoryview(self._buffer)[:nbytes])
        if self._received > MAX_HANDSHAKE_BYTES:
            self.close()
        else:
            self._advance()

    def eof_received(self) -> None:
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Again is no error."""
        self.done.set()
        if self._transport is not None:
            self._transport.abort()

    def _advance(self) -> None:
        if self.done.is_set():
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            assert self._transport is not None
            self._transport.write(self._outgoing.read())
            return
        except ssl.SSLError:
            pass
        else:
            self.der = self._tls.getpeercert(binary_form=True)
        self.close()  # in TLS 1.3 before our Finished is sent


Connect = Callable[[Reader], Awaitable[object]]


def verify_reason(error: ssl.SSLError, ca_setting: str = "") -> object:
    """Why a handshake failed. ca_setting: the setting of the trusted CAs, named if no such CA signed a certificate."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return error.reason or error
    reason = error.verify_message.rstrip(".")
    return f"{reason} ({ca_setting} sets the trusted CAs)" if ca_setting and error.verify_code in UNKNOWN_CA else reason


def has_wrong_dates(error: BaseException) -> bool:
    """Whether a certificate was refused for its dates."""
    return isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in (NOT_YET_VALID, HAS_EXPIRED)


async def whose_dates(
    error: BaseException, who: str, server_hostname: str, connect: Connect, alpn: Sequence[str] = ()
) -> str:
    """Name the certificate that was rejected for its dates, and the dates.

    Returns "" for other errors, or if the certificate is not available. If cancelled, nothing stays open.

    Args:
        error: the error of the failed connection.
        who: the peer, such as "the hub".
        server_hostname: the name in the handshake.
        connect: opens one more connection to the peer, without TLS, for this protocol. Its errors are ignored, and it
            has 3 s.
    """
    if not has_wrong_dates(error):
        return ""
    reader = Reader(server_hostname, alpn)
    try:
        with contextlib.suppress(Exception):  # then nothing is known of it
            async with asyncio.timeout(TIMEOUT_S):
                await connect(reader)
                await reader.done.wait()
    finally:
        reader.close()
    if reader.der is None:
        return ""
    try:
        found = read_certificate(reader.der)
    except ValueError:
        return f"{who}'s certificate can't be read"
    fault = _fault(found)
    if fault:
        return f"{who}'s certificate ({found.subject}) {fault}"
    state = "has expired" if getattr(error, "verify_code", 0) == HAS_EXPIRED else "is not valid yet"
    own = f"{who}'s own ({found.subject}) is valid until {_day(found.not_after)}"
    return f"a certificate that signed {who}'s {state}; {own}"


def fault_of_own(cert_file: str) -> str:
    """Describe wrong dates of this side's certificate, such as `our certificate (CN=c1) expired on 2026-01-02`.

    Returns "" if the dates are right. cert_file: its PEM file, "" for none.
    """
    if not os.path.isfile(cert_file):  # a pipe can't be read again
        return ""
    try:
        with open(cert_file, "rb") as file:
            found = in_pem(file.read(_MAX_FILE_BYTES))
    except OSError:
        return ""
    wrong = ((each, _fault(each)) for each in found)
    return next((f"our certificate ({each.subject}) {fault}" for each, fault in wrong if fault), "")


def _fault(certificate: Certificate) -> str:
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_after:
        return f"expired on {_day(certificate.not_after)}"
    if now < certificate.not_before:
        return f"is not valid before {_day(certificate.not_before)}"
    return ""


def _day(when: datetime.datetime) -> str:
    """A date, and the time where that is less than a day away."""
    near = abs((when - datetime.datetime.now(datetime.UTC)).total_seconds()) < 86400
    return f"{when.date()} {when:%H:%M} UTC" if near else str(when.date())
