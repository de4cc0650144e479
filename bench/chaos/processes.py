"""Child processes in namespaces, with their output and log in files, and the times in them."""

from __future__ import annotations

import asyncio
import calendar
import json
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from .namespaces import Namespace

__all__ = ["ENVIRON", "Process", "until"]

START_TIMEOUT_S = 60.0  # on a machine that starts dozens of interpreters at once
_STAMP = re.compile(r"time=(\d+-\d+-\d+T\d+:\d+:\d+)\.(\d+)Z ")
_FOREIGN = ("AGENT_", "HUB_", "KUBERNETES_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

ENVIRON = {key: value for key, value in os.environ.items() if not key.upper().startswith(_FOREIGN)}
"""The environment without settings of an agent, and without proxies: nothing leaves its namespace."""


async def until(condition: Callable[[], object], timeout_s: float) -> bool:
    """Wait until a condition holds. Returns whether it does, within the time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(0.02)
    return True


class Process:
    """A command in a namespace. Standard output is `<name>.out` in the folder, standard error `<name>.log`."""

    def __init__(self, namespace: Namespace, folder: pathlib.Path, name: str, command: list[str]) -> None:
        self.name = name
        self._output, self._log = folder / f"{name}.out", folder / f"{name}.log"
        with self._output.open("ab") as output, self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                namespace.command(*command), stdin=subprocess.PIPE, stdout=output, stderr=log, env=ENVIRON, text=True
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of standard output that are JSON objects."""
        whole = self.output.rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in whole if line.startswith("{")]

    async def printed(self, text: str, times: int = 1, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until standard output has a text, so many times. Raises RuntimeError with the log if it does not."""
        found = await until(lambda: self.output.count(text) >= times or self.popen.poll() is not None, timeout_s)
        if not found or self.output.count(text) < times:
            raise RuntimeError(f"{self.name} did not print {text!r}, its log:\n{self.log[-3000:]}")

    def logged_s(self, pattern: str, since_s: float) -> float | None:
        """The time.time() of the log's first line with a pattern, None if no line since then matches."""
        for line in self.log.splitlines():
            stamp = _STAMP.match(line)
            if stamp and re.search(pattern, line):
                seconds = calendar.timegm(time.strptime(stamp[1], "%Y-%m-%dT%H:%M:%S"))
                at_s = seconds + int(stamp[2]) / 1000
                if at_s >= since_s - 0.001:  # stamps are cut to milliseconds
                    return at_s
        return None

    def send(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def signal(self, which: signal.Signals) -> None:
        self.popen.send_signal(which)

    async def ended(self, timeout_s: float) -> bool:
        return await until(lambda: self.popen.poll() is not None, timeout_s)

    def kill(self) -> None:
        """Kill with SIGKILL and wait: a stopped process too."""
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        self.kill()
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.close()
        except BrokenPipeError:  # a line that it never read
            pass
