"""The log writes the first few repeated lines, then a few each second. It counts the rest."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from agent.telemetry.logs import KeyValueFormatter
from agent.telemetry.repeats import RepeatLimit


class Log:
    """A limit on a clock that the test moves, and the lines that got through."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.lines: list[str] = []
        self.woken = 0
        self.limit = RepeatLimit(
            KeyValueFormatter().format, self.lines.append, on_left_out=self._wake, now_s=lambda: self.now_s
        )
        self.events = 0

    def _wake(self) -> None:
        self.woken += 1

    def log(
        self,
        message: str = "failed",
        *arguments: object,
        level: int = logging.WARNING,
        line: int = 1,
        exc_info: Any = None,
        **extra: object,
    ) -> None:
        record = logging.getLogger("agent.test").makeRecord(
            "agent.test", level, __file__, line, message, arguments, exc_info, extra=extra
        )
        self.events += 1
        self.limit.log(record)

    @property
    def counted(self) -> int:
        """The events that the lines account for."""
        return len(self.lines) + sum(int(n) for n in re.findall(r" (?:repeated|similar)=(\d+)", "\n".join(self.lines)))


def test_the_first_ten_equal_lines_are_written_and_then_one_a_second_with_the_count() -> None:
    log = Log()
    for _ in range(30):  # 3 seconds
        for number in range(1000):
            log.log(conn_id=number, peer=("127.0.0.1", number), took_s=number / 7, sent_bytes=number)
        log.now_s += 0.1
    assert 11 <= len(log.lines) <= 14
    assert "repeated" not in "".join(log.lines[:10])
    assert re.search(r" repeated=\d+$", log.lines[10])
    log.now_s += 1
    assert log.limit.sweep() is None
    assert log.counted == log.events == 30_000
    assert log.limit.left_out_lines == 30_000 - len(log.lines)


def test_the_count_of_the_tail_is_written_when_the_burst_ends() -> None:
    log = Log()
    for _ in range(25):
        log.log()
    assert len(log.lines) == 10
    assert log.woken == 1
    assert log.limit.sweep() == 1.0  # not due yet
    assert len(log.lines) == 10
    log.now_s += 1
    assert log.limit.sweep() is None
    assert log.lines[10].endswith("msg=failed repeated=14")
    assert log.limit.sweep() is None
    assert log.counted == 25


def test_a_quiet_time_gives_the_first_ten_back() -> None:
    log = Log()
    for _ in range(10):
        log.log()
    log.now_s += 10
    for _ in range(10):
        log.log()
    assert len(log.lines) == 20


def test_what_comes_once_a_second_is_never_left_out() -> None:
    log = Log()
    for _ in range(200):
        log.log()
        log.now_s += 1
    assert len(log.lines) == 200


@pytest.mark.parametrize(
    "changed",
    [{"reason": "b"}, {"status": 504}, {"cluster": "c2"}, {"level": logging.ERROR}, {"line": 2}, {"message": "other"}],
    ids=str,
)
def test_lines_that_differ_in_what_matters_are_not_equal(changed: dict[str, Any]) -> None:
    log = Log()
    for _ in range(20):
        log.log(reason="a", status=502, cluster="c1")
    line: dict[str, Any] = {"reason": "a", "status": 502, "cluster": "c1"}
    log.log(**line | changed)
    assert len(log.lines) == 11


@pytest.mark.parametrize("name", ["conn_id", "request_id", "peer", "took_s", "body_bytes"])
def test_what_belongs_to_one_event_makes_no_difference(name: str) -> None:
    log = Log()
    for number in range(20):
        fields: dict[str, Any] = {name: number}
        log.log(**fields)
    assert len(log.lines) == 10


def test_arguments_count_as_text() -> None:
    log = Log()
    for number in range(20):
        log.log("%s fails", "ab"[number % 2])
    assert len(log.lines) == 20
    log.log("%s fails", "a")
    assert len(log.lines) == 20


def test_tracebacks_are_limited_by_where_they_were_raised() -> None:
    log = Log()

    def fail(kind: type[Exception]) -> None:
        try:
            raise kind("why")
        except kind as error:
            log.log("a bug", level=logging.ERROR, exc_info=(kind, error, error.__traceback__))

    for _ in range(50):
        fail(ValueError)
    assert len(log.lines) == 10
    fail(KeyError)
    assert len(log.lines) == 11
    log.now_s += 1
    log.limit.sweep()
    head, *traceback = log.lines[-1].splitlines()
    assert head.endswith("repeated=39")
    assert traceback[-1] == "    ValueError: why"


def test_lines_that_a_client_makes_differ_are_limited_by_their_place() -> None:
    log = Log()
    for number in range(100_000):
        log.log(path=f"/{number}")
    assert len(log.lines) == 1000
    log.log("another place", line=2)
    assert len(log.lines) == 1001
    log.now_s += 1
    log.log(path="/more")
    assert log.lines[-1].endswith("path=/more similar=99000")
    assert log.counted == log.events


def test_debug_lines_are_never_left_out() -> None:
    log = Log()
    for _ in range(2000):
        log.log(level=logging.DEBUG)
    assert len(log.lines) == 2000


def test_state_is_bounded_and_what_is_forgotten_has_been_counted() -> None:
    log = Log()
    for number in range(5000):
        log.now_s += 0.02  # within the allowance of the place
        for _ in range(12):
            log.log(reason=str(number), line=number % 50)
    assert len(log.limit._equal) <= 1000
    assert len(log.limit._places) <= 1000
    log.limit.finish()
    assert log.counted == log.events


def test_the_field_does_not_stay_on_the_record_for_other_handlers() -> None:
    log = Log()
    seen: list[logging.LogRecord] = []
    for _ in range(12):
        log.log()
    log.now_s += 2
    record = logging.getLogger("agent.test").makeRecord("agent.test", 30, __file__, 1, "failed", (), None)
    log.limit.log(record)
    seen.append(record)
    assert log.lines[-1].endswith("repeated=2")
    assert not hasattr(record, "repeated")
