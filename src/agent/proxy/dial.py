"""Opens a connection to a target: addresses looked up, tried in turn (RFC 8305, happy eyeballs), TLS on top."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

from ..config.limits import ProxyLimits
from ..errors import HubError, Party, TargetError
from ..messages import Target
from ..runtime.deadlines import timeout
from ..syntax import Address
from ..x509.peer import verify_reason, whose_dates
from .shortage import connect_error, is_shortage, lacks_descriptors, most_telling

__all__ = ["dial", "resolve", "within"]

logger = logging.getLogger(__name__)

P = TypeVar("P", bound=asyncio.Protocol)
R = TypeVar("R")
AddressInfo = tuple[Any, ...]
ATTEMPT_DELAY_S = 0.25  # RFC 8305, section 5: recommended connection attempt delay
TELL_AGAIN_S = 60.0
"""The time until a rejected certificate of the same target is logged again."""
MOST_TOLD = 1000


async def dial(target: Target, protocol: P, limits: ProxyLimits, context: ssl.SSLContext | None) -> P:
    """Connect `protocol` to `target`, with TLS if `context` is given.

    A target's `connect` opens everything, TLS included. If cancelled, nothing stays open.

    Raises:
        TargetError: 502 if name, connection or certificate fail. 503 if this machine has no descriptors, ports or
            memory left. 504 after a timeout.
    """
    if target.connect is not None:
        party = target.party
        try:
            await within(limits.connect_timeout_s, "connect", target.connect(protocol), party)
        except (OSError, HubError) as error:
            raise TargetError(502, f"the {party} could not be connected", stage="connect", fault=party) from error
        return protocol
    sock = await within(limits.connect_timeout_s, "connect", _connect(target))
    loop = asyncio.get_running_loop()
    try:
        if context is None:
            await loop.create_connection(lambda: protocol, sock=sock)
        else:
            opening = loop.create_connection(lambda: protocol, sock=sock, ssl=context, server_hostname=target.host)
            await within(limits.tls_timeout_s, "tls", opening)
    except ssl.SSLCertVerificationError as error:
        await _tell_of_certificate(target, error)
        raise TargetError(502, "the target's certificate was not accepted", stage="tls") from error
    except (OSError, EOFError) as error:  # ssl.SSLError is an OSError
        raise TargetError(502, "the TLS handshake with the target failed", stage="tls") from error
    finally:
        if protocol_transport(protocol) is None:
            sock.close()
    return protocol


def protocol_transport(protocol: asyncio.Protocol) -> object | None:
    """The transport a protocol was given, None where it never was."""
    return getattr(protocol, "transport", None)


async def within(seconds: float, stage: str, opening: Awaitable[R], party: Party = "target") -> R:
    """Await with a limit. Raises TargetError 504 when it is passed, which names the party that took too long."""
    try:
        async with timeout(seconds):
            return await opening
    except TimeoutError as error:
        limit = f"limits.{stage}_timeout_s"
        reason = f"the {party} took too long ({stage})"
        raise TargetError(504, reason, stage=stage, fault=party, limit=limit) from error


async def _connect(target: Target) -> socket.socket:
    """A connected socket to one of the target's addresses. Raises TargetError: 502, 503 for what ran out here."""
    addresses = list(_interleaved(target.addresses or await _look_up(target.host, target.port)))
    try:
        if len(addresses) == 1:
            return await _connect_to(addresses[0])
        return await _first_to_connect(addresses)
    except OSError as error:
        raise connect_error(error) from error


async def resolve(host: str, port: int, timeout_s: float) -> list[AddressInfo]:
    """The addresses of a name, at least one. Raises TargetError: 502, 503 for what ran out here, 504."""
    return await within(timeout_s, "connect", _look_up(host, port))


async def _look_up(host: str, port: int) -> list[AddressInfo]:
    try:
        found = await look_up(host, port)
    except (OSError, UnicodeError) as error:
        lack = error if is_shortage(error) else lacks_descriptors()
        if isinstance(lack, OSError):
            raise connect_error(lack, "resolve") from error
        raise TargetError(502, "the target's name could not be resolved", stage="resolve") from error
    if not found:
        raise TargetError(502, "the target's name has no address", stage="resolve")
    return found


async def look_up(host: str, port: int) -> list[AddressInfo]:
    """The addresses of a name, as the system's resolver gives them now. Raises OSError or UnicodeError."""
    return list(await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _interleaved(found: Iterable[AddressInfo]) -> Iterable[AddressInfo]:
    """Alternate the address families, keeping each one's order (RFC 8305, section 4)."""
    families: dict[int, list[AddressInfo]] = {}
    for info in found:
        families.setdefault(info[0], []).append(info)
    for row in itertools.zip_longest(*families.values()):
        yield from (info for info in row if info is not None)


async def _connect_to(info: AddressInfo) -> socket.socket:
    family, kind, protocol, _, address = info
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _first_to_connect(addresses: list[AddressInfo]) -> socket.socket:
    """Try the addresses in turn, each after a failure or a short delay. The first to connect wins."""
    attempts: list[asyncio.Task[socket.socket]] = []
    errors: list[BaseException] = []
    waiting = list(addresses)
    try:
        while waiting or attempts:
            if waiting:
                attempts.append(asyncio.ensure_future(_connect_to(waiting.pop(0))))
            delay_s = ATTEMPT_DELAY_S if waiting else None
            done, _ = await asyncio.wait(attempts, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                error = attempt.exception()
                if error is None:
                    attempts.remove(attempt)
                    return attempt.result()
                attempts.remove(attempt)
                errors.append(error)
        raise most_telling(errors)
    finally:
        for attempt in attempts:
            attempt.cancel()
        for attempt in attempts:  # one that won at the same moment is closed, not leaked
            attempt.add_done_callback(_close_late)


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


_told_at_s: dict[tuple[str, int], float] = {}  # when a target's certificate was logged, the oldest first


async def _tell_of_certificate(target: Target, error: ssl.SSLCertVerificationError) -> None:
    """Log why a target's certificate was rejected, once a minute for each target. Wrong dates come with the subject."""
    where, now_s = (target.host, target.port), time.monotonic()
    if now_s - _told_at_s.get(where, -TELL_AGAIN_S) < TELL_AGAIN_S:
        return
    _told_at_s.pop(where, None)
    if len(_told_at_s) >= MOST_TOLD:
        del _told_at_s[next(iter(_told_at_s))]
    _told_at_s[where] = now_s

    async def again(reader: asyncio.BufferedProtocol) -> None:
        await asyncio.get_running_loop().create_connection(lambda: reader, target.host, target.port)

    whose = await whose_dates(error, "the target", target.host, again)
    reason = f"{verify_reason(error, 'target_ca_file')}{whose and f': {whose}'}"
    extra = {"target": str(Address(target.host, target.port)), "stage": "tls", "fault": "target", "reason": reason}
    logger.info("a target's certificate was not accepted", extra=extra)  # beside the request's own WARNING
