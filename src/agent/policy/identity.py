"""RequestProcessor: who asks, and under whose name the request goes on. The default where nothing is authenticated."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable
from typing import Protocol, runtime_checkable

from ..messages import RequestHead, Target

__all__ = ["Anonymous", "RequestProcessor", "is_identity_header"]


@runtime_checkable
class RequestProcessor(Protocol):
    """Authenticates a request and sets the identity it goes on with. One of the three interfaces that users replace."""

    def process(self, request: RequestHead, target: Target) -> RequestHead | Awaitable[RequestHead]:
        """The head as it goes to `target`, or an awaitable of it.

        request: hop-by-hop headers are gone already; a new head is returned (or this one), and what it has is final.
        Raises Refused for an answer to the client instead (401, 403, 503); anything else raised is an error of the
        processor's (logged, answered without its text, never a pass). An awaitable is cancelled when the client goes
        away.
        """
        ...


# Lower case, and every byte that isn't a letter or digit as "-". Servers that hand headers on as CGI variables take
# "_" for "-" (RFC 3875, section 4.1.18), and some any other mark, so X_Remote_User must not pass where X-Remote-User
# doesn't.
_PLAIN = bytes(byte if chr(byte).isalnum() and byte < 0x80 else ord("-") for byte in bytes(range(256)).lower())

# X-Remote-Uid: Kubernetes 1.32 and later, `--requestheader-uid-headers`.
_REMOTE = frozenset({b"x-remote-user", b"x-remote-group", b"x-remote-uid"})


def is_identity_header(name: bytes) -> bool:
    """Whether a header claims an identity that only the agent may set, in any case or spelling.

    `Impersonate-*` (wire.md, safety rule 2), and `X-Remote-User`, `-Group`, `-Uid`, `-Extra-*` (rule 3).
    """
    if not name.startswith((b"i", b"I", b"x", b"X")):
        return False
    plain = name.translate(_PLAIN)
    return plain.startswith((b"impersonate-", b"x-remote-extra-")) or plain in _REMOTE


class Anonymous:
    """Authenticates nobody: the request goes on under its client's own credentials, and claims no other identity.

    For static routes, an app, or a router of one's own without a processor.
    """

    def process(self, request: RequestHead, target: Target) -> RequestHead:
        """`request` without its identity headers; the same object where there is none."""
        for header in request.headers:
            if header[0] not in _HARMLESS and not _is_harmless(header[0]):
                headers = [header for header in request.headers if not is_identity_header(header[0])]
                return dataclasses.replace(request, headers=headers)
        return request


_HARMLESS: set[bytes] = set()  # names that were seen to claim nothing, as they were spelled: the same few come again
_HARMLESS_NAMES, _HARMLESS_BYTES = 512, 64


def _is_harmless(name: bytes) -> bool:
    if is_identity_header(name):
        return False
    if len(name) <= _HARMLESS_BYTES:
        if len(_HARMLESS) >= _HARMLESS_NAMES:
            _HARMLESS.clear()
        _HARMLESS.add(name)
    return True
