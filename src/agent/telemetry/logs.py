"""One line per event on standard error: `key=value`, quoted where needed, `conn_id` first of the event's own fields.

    time=2025-01-31T12:00:00.123Z level=info logger=agent.tunnel.client conn_id=7 msg="opened" bytes=512

Fields come from logging's `extra`. No value can forge a line or a field: whatever isn't plain is quoted and escaped.

    logger ──► LogHandler ──► RepeatLimit ──► LineWriter ──► standard error
               formats        counts equal     a bounded queue and a thread: the event loop never waits

At exit the process waits up to EXIT_S for what is queued.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator

from ..syntax import Address
from .metrics import Metric
from .repeats import RepeatLimit, message_of, text_of
from .writing import LineWriter

__all__ = [
    "KeyValueFormatter",
    "LogHandler",
    "StandardError",
    "announce",
    "configure",
    "finish",
    "read",
    "take_standard_error",
]

EXIT_S = 1.0
"""How long the end of the process waits for a reader of its log."""

_PLAIN = re.compile(r"[!#-<>-~]+")  # visible ASCII without space, quote and "="
# Characters that control a terminal or break lines. A traceback may quote a peer's bytes.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """Formats a record as one `key=value` line. A traceback follows on separate, indented lines."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if "conn_id" in extra:
            fields["conn_id"] = extra.pop("conn_id")
        fields |= {"msg": message_of(record)} | extra
        line = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
        if record.exc_info:
            traceback = _CONTROL.sub(_escaped, self.formatException(record.exc_info))
            line += "\n    " + traceback.replace("\n", "\n    ")
        return line


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _quoted(value: object) -> str:
    if isinstance(value, tuple) and len(value) in (2, 4) and isinstance(value[0], str):  # a socket's address
        value = str(Address(value[0], value[1]))
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value.decode("latin-1") if isinstance(value, bytes) else text_of(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class LogHandler(logging.Handler):
    """Writes records to a descriptor as lines, and never waits for the reader. fd: None discards them."""

    def __init__(self, fd: int | None) -> None:
        super().__init__()
        self.setFormatter(KeyValueFormatter())
        self._limit = RepeatLimit(self.format, self._post, on_left_out=self._wake)
        self.writer = None if fd is None else LineWriter(fd, report=self._dropped, tick=self._limit.sweep)
        self._nowhere_lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._limit.log(record)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait for what is queued, at most EXIT_S: `logging.shutdown` calls this."""
        self._limit.finish()
        if self.writer is not None:
            self.writer.flush(_of_process.left_s)

    @property
    def dropped_lines(self) -> int:
        """Lines that standard error did not take."""
        return self._nowhere_lines + (self.writer.dropped_lines if self.writer is not None else 0)

    @property
    def left_out_lines(self) -> int:
        """Lines left out because they repeat others."""
        return self._limit.left_out_lines

    def _post(self, line: str) -> None:
        if self.writer is None:
            self._nowhere_lines += 1
        else:
            self.writer.post(line.encode("utf-8", "backslashreplace") + b"\n")

    def _wake(self) -> None:
        if self.writer is not None:
            self.writer.wake()

    def _dropped(self, lines: int) -> bytes:
        """The line that reports the dropped lines."""
        record = logging.LogRecord(
            __name__,
            logging.WARNING,
            __file__,
            0,
            "%d log lines dropped: standard error did not take them",
            (lines,),
            None,
        )
        record.lines = lines
        return self.format(record).encode() + b"\n"


class StandardError(io.TextIOBase):
    """Takes the place of `sys.stderr`: what is printed there, tracebacks above all, goes the way of the log."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self._line = ""  # without its end so far

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has a plain attribute
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._writer.fd

    def isatty(self) -> bool:
        return os.isatty(self._writer.fd)

    def write(self, text: str) -> int:
        before, newline, rest = (self._line + text).rpartition("\n")
        self._line = rest
        if newline:
            self._writer.post((before + newline).encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Write a line that has no line break yet, without waiting."""
        rest, self._line = self._line, ""
        if rest:
            self._writer.post(rest.encode("utf-8", "backslashreplace"))


class _OfProcess:
    """The process's writers, made at their first use."""

    handler: LogHandler | None = None
    output: LineWriter | None = None
    exits_at_s: float | None = None  # by the monotonic clock: the process is at its end

    def begin(self) -> None:
        atexit.unregister(self.flush)
        atexit.register(self.flush)

    def flush(self) -> None:
        """At exit: wait until standard output and standard error have what was written, at most EXIT_S for both."""
        if self.exits_at_s is None:
            self.exits_at_s = time.monotonic() + EXIT_S
        if self.output is not None:
            self.output.flush(self.left_s)
        if self.handler is not None:
            self.handler.flush()

    @property
    def left_s(self) -> float:
        return EXIT_S if self.exits_at_s is None else max(self.exits_at_s - time.monotonic(), 0.0)


_of_process = _OfProcess()


def configure(level: str) -> None:
    """Send this process's log to standard error. level: debug, info, warning or error. For the command line only.

    A second call changes the level.
    """
    handler = _of_process.handler
    if handler is None:
        handler = _of_process.handler = LogHandler(_descriptor(sys.stderr))
        _of_process.begin()
    root = logging.getLogger()
    root.setLevel(level.upper())
    if handler not in root.handlers:
        logging.basicConfig(handlers=[handler], force=True)
    # asyncio's DEBUG only names its selector. hpack's logs every header, tokens too.
    for name in ("asyncio", "hpack"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))
    # A line for each token review, of which there may be hundreds a second.
    logging.getLogger("httpx2").setLevel(
        logging.NOTSET if level == "debug" else max(logging.WARNING, logging.getLogger().level)
    )


def take_standard_error() -> None:
    """Have what anybody prints on standard error go the way of the log from now on. After `configure`."""
    handler = _of_process.handler
    if handler is not None and handler.writer is not None:
        sys.stderr = StandardError(handler.writer)


def announce(line: str) -> None:
    """Write a line to standard output, without waiting for the reader. A line that can't be written is logged."""
    output = _of_process.output
    if output is None:
        fd = _descriptor(sys.stdout)
        if fd is None:
            return
        output = _of_process.output = LineWriter(fd, on_error=_output_failed, name="output writer")
        _of_process.begin()
    output.post(line.encode("utf-8", "backslashreplace") + b"\n")


def finish() -> None:
    """Wait until all lines are written, at most EXIT_S. Call it before an exit without exit handlers."""
    _of_process.flush()


def read() -> Iterator[Metric]:
    """The log's own metrics: lines dropped and repeated."""
    counts = {"blocked": 0, "repeated": 0}
    handler = _of_process.handler
    if handler is not None:
        counts = {"blocked": handler.dropped_lines, "repeated": handler.left_out_lines}
    yield Metric.by_label(
        "log_lines_dropped",
        "counter",
        "Log lines that were not written: standard error did not take them, or they repeat others.",
        "reason",
        counts,
    )


def _output_failed(lines: list[bytes], error: OSError) -> None:
    for line in lines:
        extra = {"line": line.decode().rstrip("\n"), "reason": error.strerror}
        logging.getLogger(__name__).warning("standard output is closed", extra=extra)


def _descriptor(stream: object) -> int | None:
    """A stream's descriptor. None where the process began without it: its number may be a socket's by now."""
    try:
        fd: int = stream.fileno()  # type: ignore[attr-defined]  # what has none raises
    except (AttributeError, OSError, ValueError):
        return None
    return fd
