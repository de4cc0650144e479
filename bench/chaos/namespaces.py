"""Network namespaces: made for one run, removed with every process in them, those of a run that was killed too."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import time

__all__ = ["Namespace", "ip", "prefix", "remove_leftovers"]

PREFIX = "fpchaos"
_NAME = re.compile(rf"{PREFIX}([0-9]+)-[^ ]+")
_IP_TIMEOUT_S = 20.0
_KILL_TIMEOUT_S = 5.0


def ip(*arguments: str) -> str:
    """Run `ip` and return its standard output. Raises RuntimeError with the command and its error output."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=_IP_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def prefix() -> str:
    """The beginning of the names of this run's namespaces."""
    return f"{PREFIX}{os.getpid()}"


class Namespace:
    """A network namespace with its loopback up and no other device. close() removes it and kills what runs in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs another one in here, in the same process."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def adopt(self, device: str, origin: Namespace, address: str, peer: str) -> None:
        """Take over a TUN device from another namespace, and give it its addresses."""
        ip("-n", origin.name, "link", "set", device, "netns", self.name)
        ip("-n", self.name, "addr", "add", address, "peer", peer, "dev", device)
        ip("-n", self.name, "link", "set", device, "txqueuelen", "5000", "up")

    def close(self) -> None:
        _remove(self.name)


def remove_leftovers() -> list[str]:
    """Remove the namespaces of runs that no longer exist. Returns their names."""
    found = []
    for line in ip("netns", "list").splitlines():
        match = _NAME.match(line)
        if match and not _is_running(int(match[1])):
            found.append(match[0])
            _remove(match[0])
    return found


def _is_running(pid: int) -> bool:
    """Whether a process is a run of this package. Another program may have taken its number."""
    try:
        return b"bench.chaos" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _remove(name: str) -> None:
    deadline_s = time.monotonic() + _KILL_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            pids = [int(pid) for pid in ip("netns", "pids", name).split()]
        except RuntimeError:
            break  # no such namespace
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    with contextlib.suppress(RuntimeError):
        ip("netns", "del", name)
