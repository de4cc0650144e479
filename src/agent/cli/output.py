"""The output of commands: results and announcements on standard output, errors on standard error, and exit codes.

Exit 0: done, or drained after a signal. 1: failed, or aborted by a second signal. 2: wrong usage or configuration.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping

from ..config.loading import ConfigErrors, add_source
from ..errors import AgentError, ConfigError
from ..syntax import Address

__all__ = [
    "DONE",
    "FAILED",
    "PROGRAM",
    "USAGE",
    "announce",
    "announce_listening",
    "print_line",
    "report",
    "split_errors",
]

PROGRAM = "fastpipe-agent"
DONE, FAILED, USAGE = 0, 1, 2

logger = logging.getLogger(__name__)


def print_line(line: str) -> None:
    """Print one line of a command's result on standard output, and wait for its reader."""
    try:
        print(line, flush=True)
    except OSError as error:
        logger.warning("standard output is closed", extra={"line": line, "reason": error.strerror})
        # Python would write the rest of its buffer at exit, fail again, and turn the exit code into 120.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def announce(line: str) -> None:
    """Print one line of a service on standard output. A reader that is slow or has left does not stop the service."""
    from ..telemetry.logs import announce as write

    write(line)


def announce_listening(kind: str, host: str, port: int) -> None:
    """Announce a listening port. kind: "grpc", "http", "listener", "proxy" or "forward".

    host: "" is announced as `*`, every interface. port: 0 for a Unix socket.
    """
    announce(f"listening {kind} {Address(host or '*', port) if port else host}")


def report(error: Exception, sources: Mapping[str, str] | None = None) -> int:
    """Print what went wrong on standard error. Returns the exit code.

    sources: the source of each set field, which the text then names.
    """
    given = sources or {}
    found = [add_source(each, given) if isinstance(each, ConfigError) else each for each in split_errors(error)]
    for reason in found:
        if isinstance(reason, AgentError | OSError):
            print(f"{PROGRAM}: {reason}", file=sys.stderr, flush=True)
        else:
            logger.error("a bug: please report it", exc_info=reason)
    return USAGE if all(isinstance(reason, ConfigError) for reason in found) else FAILED


def split_errors(error: BaseException) -> Iterator[BaseException]:
    """The errors inside an error: the members of an exception group (as of a task group) and of ConfigErrors."""
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else getattr(error, "errors", ())
    if not members or not isinstance(error, BaseExceptionGroup | ConfigErrors):
        yield error
        return
    for member in members:
        yield from split_errors(member)
