"""A value from files that follows their changes. A broken file never replaces the last good value."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ..errors import ConfigError

__all__ = ["Reloaded", "is_pipe", "read_token"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Stamp = tuple[tuple[int, int, int, int], ...]

MAX_FILE_BYTES = 16 * 1024 * 1024  # the largest system CA bundles hold 300 KiB


class Reloaded(Generic[T]):
    """The result of `parse` for the contents of some files, kept up to date.

    Each use of the value checks the files, at most every `check_interval_s`. There is no task and no thread. A check is
    one stat per file, so it detects a Kubernetes volume's symlink swap. If a change can't be read or parsed, the last
    good value stays. An ERROR is logged once, and `problem` has its text until the file is right. A pipe is read once
    (`is_pipe`).

    value: as of the last check.
    generation: increases with each new value, from 0.
    """

    def __init__(
        self,
        paths: Sequence[str],
        parse: Callable[[list[bytes]], T],
        *,
        field: str,
        check_interval_s: float = 1.0,
    ) -> None:
        """paths: files of at most 16 MiB each. parse: gets their contents in that order, raises ValueError.

        field: the configuration field that names the files. Raises ConfigError where they can't be read or parsed now.
        """
        self._paths = tuple(paths)
        self._is_fixed = any(map(is_pipe, self._paths))
        self._parse = parse
        self._field = field
        self._check_interval_s = check_interval_s
        self._next_check_s = time.monotonic() + check_interval_s
        self.generation = 0
        self.problem: str | None = None
        self._stamp: Stamp | None = None
        try:
            self._stamp = self._look()  # before reading: a change in between is then seen at the next look
            self.value = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(field, ", ".join(self._paths), _reason(error)) from error

    def refresh(self, *, now: bool = False) -> T:
        """The value, after a look at the files where one is due. now: look whether or not it is due. Never raises."""
        if self._is_fixed or not self._paths:
            return self.value
        clock_s = time.monotonic()
        if now or clock_s >= self._next_check_s:
            self._next_check_s = clock_s + self._check_interval_s
            try:
                stamp: Stamp | None = self._look()
            except OSError as error:
                self._fail(None, error)
            else:
                if stamp != self._stamp:
                    self._take(stamp)
        return self.value

    def _take(self, stamp: Stamp | None) -> None:
        try:
            value = self._read()
        except (OSError, ValueError) as error:
            self._fail(stamp, error)
            return
        self._stamp = stamp
        self.problem = None
        if value == self.value:  # touched, or mended
            return
        self.value = value
        self.generation += 1
        logger.info("%s was reloaded", self._field, extra={"files": ", ".join(self._paths)})

    def _fail(self, stamp: Stamp | None, error: Exception) -> None:
        problem = _reason(error)
        if stamp != self._stamp or problem != self.problem:  # once for each change
            logger.error(
                "%s can't be used, so the last good content stays in force: %s",
                self._field,
                problem,
                extra={"files": ", ".join(self._paths)},
            )
        self._stamp = stamp
        self.problem = problem

    def _look(self) -> Stamp:
        found = (os.stat(path) for path in self._paths)
        return tuple((info.st_mtime_ns, info.st_size, info.st_ino, info.st_dev) for info in found)

    def _read(self) -> T:
        contents = []
        for path in self._paths:
            with open(path, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise ValueError(f"{path} must be at most {MAX_FILE_BYTES} bytes")
            contents.append(content)
        return self._parse(contents)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} must be a readable file ({error.strerror or error})"
    return str(error)


def is_pipe(path: str) -> bool:
    """Whether this is a pipe, as a shell's `<(command)`, or a device: to be read once.

    A second read finds nothing, or blocks the event loop until somebody writes. False for what isn't there.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_token(path: str, *, field: str) -> str:
    """The bearer token that a file holds, without surrounding white space (RFC 6750, section 2.1).

    field: the configuration field that names the file. Raises ConfigError; the token is in no error text.
    """
    try:
        with open(path, "rb") as file:
            token = file.read(64 * 1024 + 1).strip()
    except OSError as error:
        raise ConfigError(field, path, _reason(error)) from error
    if not token or len(token) > 64 * 1024 or any(not 0x21 <= byte <= 0x7E for byte in token):
        raise ConfigError(field, path, "must hold one token of visible ASCII without spaces, at most 64 KiB")
    return token.decode("ascii")
