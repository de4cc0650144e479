"""One line per event on standard error: `key=value`, quoted where needed, `conn_id` first of the event's own fields.

    time=2025-01-31T12:00:00.123Z level=info logger=agent.tunnel.client conn_id=7 msg="opened" bytes=512

Fields come from logging's `extra`. No value can forge a line or a field: whatever isn't plain is quoted and escaped.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time

__all__ = ["KeyValueFormatter", "configure"]

_PLAIN = re.compile(r"[!#-<>-~]+")  # visible ASCII without space, quote and "="
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """Formats a record as one `key=value` line; a traceback follows on lines of its own, indented."""

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
        fields |= {"msg": record.getMessage()} | extra
        line = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
        if record.exc_info:
            line += "\n    " + self.formatException(record.exc_info).replace("\n", "\n    ")
        return line


def _quoted(value: object) -> str:
    if isinstance(value, tuple) and len(value) in (2, 4) and isinstance(value[0], str):  # a socket's address
        value = f"[{value[0]}]:{value[1]}" if ":" in value[0] else f"{value[0]}:{value[1]}"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def configure(level: str) -> None:
    """Send this process's log to standard error. level: debug, info, warning or error. For the command line only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # asyncio's DEBUG names its selector and nothing else; hpack's has every header in it, tokens too.
    for name in ("asyncio", "hpack"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))
    # A line for each token review, of which there may be hundreds a second.
    logging.getLogger("httpx2").setLevel(
        logging.NOTSET if level == "debug" else max(logging.WARNING, logging.getLogger().level)
    )
