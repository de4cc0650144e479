"""The relay: `python -m bench.chaos.relay LINK…` makes two TUN devices for each link and carries packets between them.

Its parent moves the devices `LINK-a` and `LINK-b` into namespaces: the descriptors stay here. Each line of standard
input is a command, `{"link": …, "to": "a" | "b", "condition": {…}}`, and is confirmed by a line of standard output. It
ends with its standard input.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import sys
import time

from .link import Condition, Direction

__all__ = ["MTU_BYTES", "device", "open_tun"]

MTU_BYTES = 1500
_BATCH = 128  # packets read from one device before the others have their turn
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h


def device(link: str, end: str) -> str:
    """The name of a link's device at its end `a` or `b`."""
    return f"{link}-{end}"


def open_tun(name: str) -> int:
    """Make a TUN device in this namespace. It lasts as long as the descriptor. Needs root."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


class Relay:
    """Both directions of all links, in one loop."""

    def __init__(self, links: list[str]) -> None:
        self._poll = select.epoll()
        self._directions: dict[tuple[str, str], Direction] = {}
        self._into: dict[int, tuple[int, Direction]] = {}  # from a descriptor: to which one, and how
        self._unfinished = b""  # the beginning of a command
        for number, link in enumerate(links):
            flows: set[bytes] = set()
            ends = {end: open_tun(device(link, end)) for end in "ab"}
            for end, other in ("ab", "ba"):
                direction = Direction(flows, seed=2 * number + (end == "b"))
                self._directions[link, end] = direction
                self._into[ends[other]] = (ends[end], direction)
        for descriptor in (0, *self._into):
            self._poll.register(descriptor, select.EPOLLIN)

    def run(self) -> None:
        """Carry packets until standard input ends."""
        while True:
            timeout_s = -1.0
            for direction in self._directions.values():
                if direction.next_s is not None:
                    wait_s = max(0.0, direction.next_s - time.monotonic())
                    timeout_s = wait_s if timeout_s < 0 else min(timeout_s, wait_s)
            for descriptor, _ in self._poll.poll(timeout_s):
                if descriptor == 0:
                    received = os.read(0, 1 << 16)
                    if not received:
                        return
                    *lines, self._unfinished = (self._unfinished + received).split(b"\n")
                    for line in lines:
                        self._command(line)
                else:
                    self._read(descriptor)
            now_s = time.monotonic()
            for into, direction in self._into.values():
                for packet in direction.take(now_s):
                    # The device is down or its queue full: a lost packet, as on any link.
                    with contextlib.suppress(OSError):
                        os.write(into, packet)

    def _read(self, descriptor: int) -> None:
        direction = self._into[descriptor][1]
        now_s = time.monotonic()
        # Empty, or not up yet.
        with contextlib.suppress(OSError):
            for _ in range(_BATCH):
                direction.offer(os.read(descriptor, MTU_BYTES + 64), now_s)

    def _command(self, line: bytes) -> None:
        command = json.loads(line)
        direction = self._directions[command["link"], command["to"]]
        direction.set(Condition(**command["condition"]))
        print(json.dumps({"set": command["link"], "to": command["to"], "dropped": direction.dropped}), flush=True)


def main(links: list[str]) -> None:
    """The process."""
    # The relay must not be what is slow, whatever else runs. Not root: an ordinary priority.
    with contextlib.suppress(OSError):
        os.nice(-10)
    relay = Relay(links)
    print(json.dumps({"links": links}), flush=True)
    relay.run()


if __name__ == "__main__":
    main(sys.argv[1:])
