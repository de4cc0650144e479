"""The name of a hub's user at this cluster: wire.md's safety rule 4, as pure functions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ..errors import Refused

__all__ = ["impersonation_headers", "local_name"]

PREFIX = "cluster:hub:"
AUTHENTICATED = "system:authenticated"
HEADER_BYTES = 64 * 1024
"""The most bytes of a user's names in a head, about a thousand groups. Servers reject larger heads."""
_VISIBLE_ASCII = re.compile(r"[!-~]+")


def local_name(name: str) -> str:
    """The name here of a hub's `name`: `cluster:hub:<name>` if it starts with `system:`.

    A name that starts with `cluster:hub:` gets the prefix too. So two different names at the hub are never equal here,
    whatever names a hub's user may give to groups.
    """
    return PREFIX + name if name.startswith(("system:", PREFIX)) else name


def impersonation_headers(
    username: str, groups: Iterable[str], *, allowed_system_groups: Collection[str] = ()
) -> tuple[tuple[bytes, bytes], ...]:
    """`Impersonate-User`, and one `Impersonate-Group` for each group of a hub's user.

    `system:authenticated` and the groups in `allowed_system_groups` stay unchanged. Raises Refused 403 for an empty
    name, and for names of more than HEADER_BYTES in all. A name with bytes outside visible ASCII raises it too, since
    servers read such a header in different ways.
    """
    names = [username, *dict.fromkeys(groups)]
    if not all(_VISIBLE_ASCII.fullmatch(name) for name in names):
        raise Refused(403, "the name of the user or of a group has bytes outside visible ASCII, and can't be passed on")
    kept = (AUTHENTICATED, *allowed_system_groups)
    found = [(b"Impersonate-User", local_name(username).encode("ascii"))]
    for group in names[1:]:
        local = group if group in kept else local_name(group)
        found.append((b"Impersonate-Group", local.encode("ascii")))
    if sum(len(name) + len(value) + 4 for name, value in found) > HEADER_BYTES:
        raise Refused(403, "the user has too many groups to be passed on")
    return tuple(found)
