"""RequestProcessor: authenticates a request and sets its identity for the target. Its default authenticates nobody."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable
from typing import Protocol, runtime_checkable

from ..messages import RequestHead, Target
from ..syntax import fold_field_name

__all__ = ["Anonymous", "RequestProcessor", "is_identity_header"]


@runtime_checkable
class RequestProcessor(Protocol):
    """Authenticates a request and sets its identity for the target. One of the three interfaces that users replace."""

    def process(self, request: RequestHead, target: Target) -> RequestHead | Awaitable[RequestHead]:
        """Return the head for `target`, or an awaitable of it.

        The result is a new head or `request` itself, and is final. An awaitable is cancelled when the client leaves.

        Args:
            request: the head without hop-by-hop headers.

        Raises:
            Refused: the client gets this response instead (401, 403, 503).
            Exception: any other error is a fault of the processor. It is logged, and the client gets a response without
                its text. The request never passes.
        """
        ...


# X-Remote-Uid: Kubernetes 1.32 and later, `--requestheader-uid-headers`.
_REMOTE = frozenset({b"x-remote-user", b"x-remote-group", b"x-remote-uid"})


def is_identity_header(name: bytes) -> bool:
    """Whether a header claims an identity that only the agent may set, in any case or spelling.

    `Impersonate-*` (wire.md, safety rule 2), and `X-Remote-User`, `-Group`, `-Uid`, `-Extra-*` (rule 3).
    """
    if not name.startswith((b"i", b"I", b"x", b"X")):
        return False
    plain = fold_field_name(name)
    return plain.startswith((b"impersonate-", b"x-remote-extra-")) or plain in _REMOTE


class Anonymous:
    """Authenticates nobody. The target gets the client's own credentials, and no claims of another identity.

    It serves static routes, an app, or a user's router without a processor.
    """

    def process(self, request: RequestHead, target: Target) -> RequestHead:
        """Return `request` without its identity headers, or the same object if it has none."""
        for header in request.headers:
            if header[0] not in _HARMLESS and not _is_harmless(header[0]):
                headers = [header for header in request.headers if not is_identity_header(header[0])]
                return dataclasses.replace(request, headers=headers)
        return request


_HARMLESS: set[bytes] = set()  # names that claim nothing, in the client's spelling, since the same few names repeat
_HARMLESS_NAMES, _HARMLESS_BYTES = 512, 64


def _is_harmless(name: bytes) -> bool:
    if is_identity_header(name):
        return False
    if len(name) <= _HARMLESS_BYTES:
        if len(_HARMLESS) >= _HARMLESS_NAMES:
            _HARMLESS.clear()
        _HARMLESS.add(name)
    return True
