"""Limits how often equal lines are logged, so that a client that fails 50,000 times does not write 50,000 lines.

Two allowances, each a token bucket:

    equal lines     10 at once, then 1 a second    same logger, level, text and fields but those of one event
    one place       1,000 at once, then 100 a second    same line of source, whatever its text and fields

The second allowance bounds the lines of a client that makes each line differ (a path, a name). DEBUG lines have no
limit.

Suppressed lines are counted. The next written line has the count: `repeated=N` for equal lines, `similar=N` for lines
of one place. If no other line follows, the first suppressed line is written after about a second. It has the number of
the others. So the lines, plus all their `repeated` and `similar`, add up to the events.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

__all__ = ["RepeatLimit", "message_of", "text_of"]

EQUAL_BURST, EQUAL_PER_SECOND = 10, 1.0
PLACE_BURST, PLACE_PER_SECOND = 1000, 100.0
_MOST_KEYS = 1000  # of each kind, the least recently seen is dropped
_TEXT_CHARACTERS = 300  # of a line's text and of each field that are compared
_HELD_CHARACTERS = 4096  # of a suppressed line that may be written later

_OF_ONE_EVENT = frozenset(("conn_id", "request_id", "trace_id", "connection", "client", "peer", "address"))
_MEASURED = ("_s", "_ms", "_bytes")  # what a name ends in where the value differs from event to event
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "repeated", "similar"}


def text_of(value: object) -> str:
    """A field's value as text. A value that fails to give one costs the line nothing else."""
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__}: {type(error).__name__} in its text>"


def message_of(record: logging.LogRecord) -> str:
    """A record's text. One whose arguments fail is there without them."""
    try:
        return record.getMessage()
    except Exception as error:
        return f"{text_of(record.msg)} <{type(error).__name__} in its arguments>"


class _Allowance:
    """A token bucket, and what was left out since the last line. line: the first of those, formatted."""

    __slots__ = ("burst", "left", "left_out", "line", "per_second", "seen_s")

    def __init__(self, burst: int, per_second: float, now_s: float) -> None:
        self.burst = burst
        self.per_second = per_second
        self.left = float(burst)
        self.seen_s = now_s
        self.left_out = 0
        self.line = ""

    def fill(self, now_s: float) -> bool:
        """Whether a line may be written now."""
        self.left = min(self.burst, self.left + (now_s - self.seen_s) * self.per_second)
        self.seen_s = now_s
        return self.left >= 1

    def leave_out(self, record: logging.LogRecord, formatted: Callable[[logging.LogRecord], str]) -> None:
        if not self.left_out:
            self.line = formatted(record)[:_HELD_CHARACTERS]
        self.left_out += 1

    def take_count(self) -> int:
        """Return and reset the number of lines suppressed since the last line."""
        count, self.left_out, self.line = self.left_out, 0, ""
        return count


class RepeatLimit:
    """Decides for each record whether its line is written.

    Args:
        formatted: makes a record's line.
        write: takes a line.
        on_left_out: called for the first suppressed line of a run. Then `sweep` has work a second later.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        formatted: Callable[[logging.LogRecord], str],
        write: Callable[[str], None],
        *,
        on_left_out: Callable[[], None] = lambda: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.left_out_lines = 0
        """Lines left out so far, and in no line but by their number."""
        self._formatted = formatted
        self._write = write
        self._on_left_out = on_left_out
        self._now_s = now_s
        self._lock = threading.RLock()  # reentrant: a destructor that logs may run in the thread that holds it
        self._equal: OrderedDict[Hashable, _Allowance] = OrderedDict()
        self._places: OrderedDict[Hashable, _Allowance] = OrderedDict()
        self._waiting: dict[_Allowance, str] = {}  # those that suppressed lines, and the field for the number

    def log(self, record: logging.LogRecord) -> None:
        """Write this record's line, or count it as left out."""
        if record.levelno < logging.INFO:
            self._write(self._formatted(record))
            return
        place_key = (record.name, record.levelno, record.pathname, record.lineno)
        key = (place_key, *_compared(record))
        now_s = self._now_s()
        with self._lock:
            place = self._places.get(place_key)
            if place is None:
                place = self._add(self._places, place_key, PLACE_BURST, PLACE_PER_SECOND, now_s)
            self._places.move_to_end(place_key)
            equal = self._equal.get(key)
            if equal is not None:
                self._equal.move_to_end(key)
                if not equal.fill(now_s):
                    self._leave_out(equal, "repeated", record)
                    return
            if not place.fill(now_s):
                self._leave_out(place, "similar", record)
                return
            if equal is None:
                equal = self._add(self._equal, key, EQUAL_BURST, EQUAL_PER_SECOND, now_s)
            equal.left -= 1
            place.left -= 1
            for allowance, name in ((equal, "repeated"), (place, "similar")):
                if allowance.left_out:
                    self.left_out_lines += 1  # the first of them: now it is not written
                    setattr(record, name, allowance.take_count())
                    self._waiting.pop(allowance, None)
            line = self._formatted(record)
            for name in ("repeated", "similar"):  # other handlers get the same record
                vars(record).pop(name, None)
            self._write(line)

    def sweep(self) -> float | None:
        """Write the counts that are due. Returns the seconds until the next one, None if none waits."""
        now_s = self._now_s()
        with self._lock:
            for allowance, name in list(self._waiting.items()):
                if allowance.fill(now_s):
                    allowance.left -= 1
                    self._write_count(allowance, name)
            return 1.0 if self._waiting else None

    def finish(self) -> None:
        """Write all counts now."""
        with self._lock:
            for allowance, name in list(self._waiting.items()):
                self._write_count(allowance, name)

    def _add(
        self, kept: OrderedDict[Hashable, _Allowance], key: Hashable, burst: int, per_second: float, now_s: float
    ) -> _Allowance:
        if len(kept) >= _MOST_KEYS:
            _, oldest = kept.popitem(last=False)
            if oldest in self._waiting:
                self._write_count(oldest, self._waiting[oldest])
        allowance = kept[key] = _Allowance(burst, per_second, now_s)
        return allowance

    def _leave_out(self, allowance: _Allowance, name: str, record: logging.LogRecord) -> None:
        allowance.leave_out(record, self._formatted)
        if allowance in self._waiting:
            self.left_out_lines += 1
        else:
            self._waiting[allowance] = name
            self._on_left_out()

    def _write_count(self, allowance: _Allowance, name: str) -> None:
        """The first line that was left out, with the number of the others."""
        head, newline, traceback = allowance.line.partition("\n")
        others = allowance.take_count() - 1
        del self._waiting[allowance]
        self._write((f"{head} {name}={others}" if others else head) + newline + traceback)


def _compared(record: logging.LogRecord) -> tuple[Hashable, ...]:
    """The key of equal records from one place: text, fields, and the raised error with its place."""
    fields = [
        (name, text_of(value)[:_TEXT_CHARACTERS])
        for name, value in vars(record).items()
        if name not in _STANDARD and name not in _OF_ONE_EVENT and not name.endswith(_MEASURED)
    ]
    raised: tuple[Hashable, ...] = ()
    if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
        traceback = record.exc_info[2]
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        line = None if traceback is None else (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
        raised = (record.exc_info[0].__qualname__, line)
    return (message_of(record)[:_TEXT_CHARACTERS], tuple(fields), raised)
