"""Under which name a hub's user goes on at this cluster: wire.md's safety rule 4, as pure functions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ..errors import Refused

__all__ = ["impersonation_headers", "local_name"]

PREFIX = "cluster:hub:"
AUTHENTICATED = "system:authenticated"
HEADER_BYTES = 64 * 1024
"""What a user's names may take in a head, some thousand groups: servers refuse larger ones, and verdicts are kept."""
_VISIBLE_ASCII = re.compile(r"[!-~]+")


def local_name(name: str) -> str:
    """The name that a hub's `name` has here: `cluster:hub:<name>` where it starts with `system:`.

    So does one that starts with `cluster:hub:` already: two names of the hub's are never one here, whatever a hub's
    user may call a group of theirs.
    """
    return PREFIX + name if name.startswith(("system:", PREFIX)) else name


def impersonation_headers(
    username: str, groups: Iterable[str], *, allowed_system_groups: Collection[str] = ()
) -> tuple[tuple[bytes, bytes], ...]:
    """`Impersonate-User`, and one `Impersonate-Group` for each group of a hub's user.

    `system:authenticated` stays as it is, as do groups in `allowed_system_groups`. Raises Refused 403 for a name with
    bytes outside visible ASCII, or without any: a header can't carry it, and what a server makes of it nobody knows;
    and where all of them are past HEADER_BYTES.
    """
    names = [username, *dict.fromkeys(groups)]
    if not all(_VISIBLE_ASCII.fullmatch(name) for name in names):
        raise Refused(403, "the user's name or a group's can't be passed on: it has bytes outside visible ASCII")
    kept = (AUTHENTICATED, *allowed_system_groups)
    found = [(b"Impersonate-User", local_name(username).encode("ascii"))]
    for group in names[1:]:
        local = group if group in kept else local_name(group)
        found.append((b"Impersonate-Group", local.encode("ascii")))
    if sum(len(name) + len(value) + 4 for name, value in found) > HEADER_BYTES:
        raise Refused(403, "the user's groups can't be passed on: they are too many")
    return tuple(found)
