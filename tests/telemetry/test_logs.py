"""Log lines: one per event, fields in order, and no value that can forge another."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Iterator

import pytest

from agent.telemetry.logs import KeyValueFormatter, LogHandler, configure


def line(message: str, *arguments: object, level: int = logging.INFO, **extra: object) -> str:
    record = logging.getLogger("agent.test").makeRecord(
        "agent.test", level, __file__, 1, message, arguments, None, extra=extra
    )
    return KeyValueFormatter().format(record)


def test_conn_id_comes_first_of_the_events_own_fields() -> None:
    found = line("opened", stage="head", conn_id=7)
    assert re.fullmatch(
        r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info logger=agent.test "
        r"conn_id=7 msg=opened stage=head",
        found,
    )


def test_arguments_are_put_in_and_spaces_quoted() -> None:
    assert line("%d of %s", 3, "ten", level=logging.WARNING).endswith('level=warning logger=agent.test msg="3 of ten"')


@pytest.mark.parametrize(
    ("address", "said"),
    [(("h", 80), "h:80"), (("::1", 80, 0, 0), "[::1]:80"), (("a b", 1), '"a b:1"'), ((1, 2), '"(1, 2)"')],
)
def test_a_sockets_address_reads_as_one(address: object, said: str) -> None:
    assert line("m", peer=address).endswith(f" peer={said}")


@pytest.mark.parametrize(
    "value", ['a"b', "a b", "a=b", "", "a\nlevel=error", "a\r\nb", "\x1b[2J", "é\u2028", b"\xff\n", "\x00", "a\\b"]
)
def test_no_value_forges_a_line_or_a_field(value: object) -> None:
    found = line("m", peer=value)
    assert found.isprintable()
    assert found.isascii()
    fields = shlex.split(found)
    assert [field.partition("=")[0] for field in fields] == ["time", "level", "logger", "msg", "peer"]


@pytest.fixture
def loggers() -> Iterator[None]:
    """Puts back what `configure` changes for the whole process."""
    root, others = logging.getLogger(), [logging.getLogger(name) for name in ("asyncio", "hpack", "httpx2")]
    before = root.level, list(root.handlers), [each.level for each in others]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for each, level in zip(others, before[2], strict=True):
        each.setLevel(level)


def test_libraries_say_what_is_worth_it_and_no_headers(loggers: None) -> None:
    levels = {
        "debug": {"agent": 10, "hpack": 20, "asyncio": 20, "httpx2": 10},
        "info": {"agent": 20, "hpack": 20, "asyncio": 20, "httpx2": 30},
        "error": {"agent": 40, "hpack": 40, "asyncio": 40, "httpx2": 40},
    }
    for level, expected in [*levels.items(), ("debug", levels["debug"])]:  # SIGHUP may change it, and back
        configure(level)
        assert {name: logging.getLogger(name).getEffectiveLevel() for name in expected} == expected, level


def test_a_traceback_follows_indented() -> None:
    try:
        raise ValueError("reason\nlevel=error")
    except ValueError:
        record = logging.getLogger("agent.test").makeRecord(
            "agent.test", logging.ERROR, __file__, 1, "failed", (), sys.exc_info()
        )
    first, *rest = KeyValueFormatter().format(record).splitlines()
    assert first.endswith("msg=failed")
    assert rest
    assert all(each.startswith("    ") for each in rest)


def test_a_traceback_holds_no_character_that_a_terminal_or_another_reader_obeys() -> None:
    try:
        raise ValueError("reason\rtime=1 level=error\x1b[2J\x85forged\u2028forged\u202e\tx é")
    except ValueError:
        record = logging.getLogger("agent.test").makeRecord(
            "agent.test", logging.ERROR, __file__, 1, "failed", (), sys.exc_info()
        )
    found = KeyValueFormatter().format(record)
    assert found.splitlines() == found.split("\n")
    assert "reason\\rtime=1 level=error\\x1b[2J\\x85forged\\u2028forged\\u202e\tx é" in found


class Broken:
    def __str__(self) -> str:
        raise LookupError("no text")


@pytest.mark.parametrize("name", ["conn_id", "peer", "reason"])
def test_a_field_whose_text_fails_costs_the_line_nothing_else(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    handler = LogHandler(2)
    for message, arguments in (("failed", ()), ("failed %d", ("x",)), ("%s", (Broken(),))):
        handler.handle(
            logging.getLogger("agent.test").makeRecord(
                "agent.test", logging.ERROR, __file__, 1, message, arguments, None, extra={name: Broken(), "other": 1}
            )
        )
    assert handler.writer is not None
    assert handler.writer.flush(20)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(f'{name}="<Broken: LookupError in its text>"' in each and " other=1" in each for each in lines)
    assert 'msg="failed %d <TypeError in its arguments>"' in lines[1]
    assert 'msg="%s <LookupError in its arguments>"' in lines[2]
