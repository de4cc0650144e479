"""The carrier for HTTP/1.1: a connection to the hub for each tunnel, which begins with a CONNECT.

    dial ──► TLS ──► CONNECT sent ──head──► 200 ──► tunnel
                                      └──► any other status: its reason is read ──► ForwardError

A TLS connection has no half-close. `joining` handles a local end's FIN then.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Callable
from typing import cast

from ..errors import ConfigError, ForwardError
from ..syntax import Address, readable
from .carrier import HubAddress, HubEnd, credentials

__all__ = ["REASON_BYTES", "Http1Carrier", "dial"]

HEAD_BYTES = 65536
REASON_BYTES = 4096
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n\0]*)?")
_REQUEST_ID = re.compile(rb"(?im)^x-request-id:[ \t]*([!-~]{1,128})[ \t]*\r?$")
_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*([0-9]{1,18})[ \t]*\r?$")


class Http1Carrier:
    """Opens each tunnel on a new connection.

    Args:
        hub: where to dial.
        cluster: the cluster of all targets.
        token: returns the user's token, "" for none. Raises ForwardError.
        timeout_s: from the dial to the response of the hub.
    """

    def __init__(self, hub: HubAddress, cluster: str, token: Callable[[], str], timeout_s: float) -> None:
        self._hub = hub
        self._cluster = cluster
        self._token = token
        self._timeout_s = timeout_s

    async def connect(self, target: Address) -> HubEnd:
        """Open a tunnel to a target. Raises ForwardError. If cancelled, nothing stays open."""
        value = credentials(self._cluster, self._token())
        head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: {value}\r\n\r\n"
        opening = _Opening(head.encode("ascii"))
        try:
            async with asyncio.timeout(self._timeout_s):
                await dial(self._hub, opening, self._timeout_s)
                await opening.opened
        except TimeoutError as error:
            opening.abort()
            reason = f"the hub {self._hub.address} did not respond within {self._timeout_s:g} s (connect_timeout_s)"
            raise ForwardError(reason, fault="hub") from error
        except BaseException:
            opening.abort()
            raise
        return opening

    async def close(self) -> None:
        """Do nothing, since tunnels share nothing."""


async def dial(hub: HubAddress, protocol: asyncio.Protocol, timeout_s: float) -> None:
    """Connect a protocol to the hub, with TLS if the hub has it. Raises ForwardError. Cancelled: nothing stays open."""
    try:
        context = hub.tls() if hub.tls is not None else None
    except ConfigError as error:  # the files have changed since the start
        raise ForwardError(str(error), fault="client") from error
    name = (hub.server_name or hub.address.host) if context is not None else None
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(
            lambda: protocol,
            hub.address.host,
            hub.address.port,
            ssl=context,
            server_hostname=name,
            ssl_handshake_timeout=timeout_s if context is not None else None,
        )
    except ssl.SSLCertVerificationError as error:
        reason = f"the certificate of the hub {hub.address} was not accepted (ca_file): {error.verify_message}"
        raise ForwardError(reason, fault="hub") from error
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise ForwardError(f"the TLS handshake with the hub {hub.address} failed: {reason}", fault="hub") from error
    except OSError as error:
        number = error.errno or 0  # an unresolved name has a negative one
        reason = os.strerror(number) if number > 0 else error.strerror or str(error) or type(error).__name__
        raise ForwardError(f"the hub {hub.address} can't be reached: {reason}", fault="hub") from error


class _Opening(asyncio.Protocol):
    """The connection of one tunnel until its local end is there. It keeps what arrives behind the 200.

    opened: done with the 200, or failed with a ForwardError.
    """

    def __init__(self, head: bytes) -> None:
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.can_half_close = False
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = head
        self._received = bytearray()
        self._body_at = 0  # of a refusal
        self._status = 0
        self._has_ended = False
        self._loss: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.can_half_close = self.transport.can_write_eof()
        self.transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self.opened.done():  # a tunnel that is not joined yet
            return
        if not self._body_at:
            self._look_for_head()
        if self._body_at and not self.opened.done():
            self._look_for_reason()

    def eof_received(self) -> bool:
        self._has_ended = True
        if self.opened.done():
            return self.can_half_close
        self._fail_at_end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._loss.append(exc)
        self._fail_at_end()

    def give_to(self, protocol: asyncio.Protocol) -> None:
        """Pass the tunnel's bytes and events to `protocol`, those of the past included."""
        received, self._received = bytes(self._received), bytearray()
        if received:
            protocol.data_received(received)
        if self._loss:
            protocol.connection_lost(self._loss[0])
            return
        self.transport.set_protocol(protocol)
        if self._has_ended:
            if not protocol.eof_received():
                self.transport.close()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close the connection at once, if there is one."""
        if self.opened.done() and not self.opened.cancelled():
            self.opened.exception()  # it was retrieved, or nobody waits for it
        self.opened.cancel()
        if self.transport is not None:
            self.transport.abort()

    # -- the response

    def _look_for_head(self) -> None:
        end = self._received.find(b"\r\n\r\n", 0, HEAD_BYTES)
        if end < 0:
            if len(self._received) >= HEAD_BYTES:
                self._fail(ForwardError("the head of the hub's response is too long", fault="hub"))
            return
        match = _STATUS_LINE.fullmatch(self._received, 0, self._received.index(b"\r\n"))
        status = int(match[1]) if match is not None else 0
        if status < 200:
            self._fail(ForwardError("the head of the response is malformed, so this is no hub", fault="hub"))
        elif status < 300:
            del self._received[: end + 4]
            self.transport.pause_reading()
            self.opened.set_result(None)
        else:
            self._status = status
            self._body_at = end + 4

    def _look_for_reason(self) -> None:
        length = _LENGTH.search(self._received, 0, self._body_at)
        body_bytes = len(self._received) - self._body_at
        if body_bytes >= REASON_BYTES or (length is not None and body_bytes >= int(length[1])):
            self._refused()

    def _fail_at_end(self) -> None:
        if self.opened.done():
            return
        if self._body_at:
            self._refused()
        else:
            self._fail(ForwardError("the hub closed the connection before it responded", fault="hub"))

    def _refused(self) -> None:
        found = _REQUEST_ID.search(self._received, 0, self._body_at)
        text = bytes(self._received[self._body_at : self._body_at + REASON_BYTES])
        reason = readable(text.partition(b"\n")[0].decode("utf-8", "replace"))
        request_id = found[1].decode("ascii") if found is not None else ""
        self._fail(ForwardError.of_response(self._status, reason, request_id))

    def _fail(self, error: ForwardError) -> None:
        self.opened.set_exception(error)
        self.transport.abort()
