"""Warns about a configuration's files: expiring certificates, and secrets that every user can read.

The watch checks all files at its start, at each reload, and once a minute. It logs a WARNING for a certificate that has
expired, is not valid yet, or expires within two weeks. It repeats the WARNING once a day, and on a new state. It also
logs a WARNING for a key or token that every user can read. That is at start, at each reload, and on a change of mode.

A mode that lets the owner's group read is allowed. A Secret's volume with `fsGroup` and `defaultMode: 0440` has it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..x509.certificate import Certificate, in_pem
from .dump import get_value
from .loading import settings

__all__ = ["EXPIRED", "EXPOSED", "NOT_YET", "SOON", "CredentialWatch", "Finding", "check_credentials"]

logger = logging.getLogger(__name__)

SOON_S = 14 * 86400.0
DAY_S = 86400.0
LOOK_S = 60.0

MAX_FILE_BYTES = 16 * 1024 * 1024  # as in policy/files.py
_KEY = b"PRIVATE KEY-----"

EXPIRED, NOT_YET, SOON = "certificate has expired", "certificate is not valid yet", "certificate expires soon"
EXPOSED = "credentials can be read or written by every user of this machine"
_WORST_FIRST = (EXPIRED, NOT_YET, SOON, "")


class Finding(NamedTuple):
    """The fault of one file. setting, path: of the file. text: one of the four above. details: more log fields."""

    setting: str
    path: str
    text: str
    details: dict[str, str]

    @property
    def is_dated(self) -> bool:
        """Whether it is logged once a day."""
        return self.text != EXPOSED


@dataclasses.dataclass(slots=True)
class _File:
    """One file as last read."""

    stamp: tuple[int, int, int] = (0, 0, 0)
    has_key: bool = False
    certificates: Sequence[Certificate] = ()


class CredentialWatch:
    """Watches the files of one configuration.

    config: may be replaced by another of its class. Then call `look(again=True)`.
    expiries: by setting, the first expiry of its certificates that count, in seconds since 1970.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.expiries: dict[str, float] = {}
        self._files: dict[str, _File] = {}
        self._told: dict[tuple[str, str, bool], tuple[str, float]] = {}

    async def run(self) -> None:
        """Check the files now and then regularly, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self, *, again: bool = False) -> None:
        """Log the faults that were not logged within a day. again: log all faults."""
        now_s = time.time()
        told = {} if again else self._told
        self._told = {}
        for found in self.find(now_s):
            key = (found.setting, found.path, found.is_dated)
            text, at_s = told.get(key, ("", 0.0))
            if text != found.text or (found.is_dated and abs(now_s - at_s) >= DAY_S):
                at_s = now_s
                extra = {"setting": found.setting, "file": found.path, **found.details}
                logger.warning(found.text, extra=extra)
            self._told[key] = (found.text, at_s)

    def find(self, now_s: float) -> Iterator[Finding]:
        """The faults at this time, in the settings' order. Unreadable files are skipped."""
        files, self._files, self.expiries = self._files, {}, {}
        for setting in settings(type(self.config)):
            for holds, path in setting.files_in(get_value(self.config, setting.name)):
                if not path:
                    continue
                file = files.get(path) or _File()
                try:
                    info = os.stat(path)
                    if not stat.S_ISREG(info.st_mode):  # a pipe can be read only once, by its user
                        continue
                    stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
                    if stamp != file.stamp:
                        file = _read(path, stamp)
                except OSError:
                    continue
                self._files[path] = file
                if (holds == "secret" or file.has_key) and _is_exposed(info):
                    mode = f"{stat.S_IMODE(info.st_mode):04o}"
                    yield Finding(setting.name, path, EXPOSED, {"mode": mode, "right": "chmod o-rwx"})
                if holds != "secret" and file.certificates:
                    yield from self._dated(setting.name, holds == "roots", path, file.certificates, now_s)

    def _dated(
        self, setting: str, any_will_do: bool, path: str, certificates: Sequence[Certificate], now_s: float
    ) -> Iterator[Finding]:
        """A chain is as good as its worst certificate. Of roots, one valid certificate is enough."""
        by_state = [(_WORST_FIRST.index(_state(each, now_s)), each.not_after, each) for each in certificates]
        place, _, counts = (max if any_will_do else min)(by_state, key=lambda each: each[:2])
        end_s = counts.not_after.timestamp()
        self.expiries[setting] = min(end_s, self.expiries.get(setting, end_s))
        text = _WORST_FIRST[place]
        if text:
            which = ("not_before", counts.not_before) if text == NOT_YET else ("not_after", counts.not_after)
            yield Finding(setting, path, text, {"subject": counts.subject, which[0]: _shown(which[1])})


def check_credentials(config: Any) -> list[Finding]:
    """Find the present faults of a configuration's files."""
    return list(CredentialWatch(config).find(time.time()))


def _read(path: str, stamp: tuple[int, int, int]) -> _File:
    with open(path, "rb") as file:
        content = file.read(MAX_FILE_BYTES)
    return _File(stamp, _KEY in content, in_pem(content))


def _is_exposed(info: os.stat_result) -> bool:
    # On Windows the mode does not show who may read.
    return sys.platform != "win32" and bool(info.st_mode & (stat.S_IROTH | stat.S_IWOTH))


def _state(certificate: Certificate, now_s: float) -> str:
    if now_s > certificate.not_after.timestamp():
        return EXPIRED
    if now_s < certificate.not_before.timestamp():
        return NOT_YET
    return SOON if certificate.not_after.timestamp() - now_s < SOON_S else ""


def _shown(when: datetime.datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")
