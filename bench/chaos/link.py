"""The effect of one direction of a link on packets: delay, rate, loss, and the faults. No I/O, no clock."""

from __future__ import annotations

import dataclasses
import heapq
import random

__all__ = ["CLEAR", "DOWN", "Condition", "Direction", "flow_of", "opens_flow"]

_TCP, _SYN, _ACK = 6, 0x02, 0x10
_HELD_BYTES = 64 << 20  # most that may be under way where no rate bounds the queue


@dataclasses.dataclass(frozen=True)
class Condition:
    """The state of one direction.

    rate_mbit: 0 is unlimited. If more than queue_bytes wait for the rate, packets are dropped.
    down: every packet is dropped.
    largest_bytes: larger packets are dropped without an ICMP message. 0 is no limit.
    forgets: packets are dropped unless their connection's SYN passed after this condition began. A NAT that lost its
        state does this.
    """

    delay_ms: float = 0.0
    rate_mbit: float = 0.0
    queue_bytes: int = 1 << 20
    loss_percent: float = 0.0
    reorder_percent: float = 0.0
    down: bool = False
    largest_bytes: int = 0
    forgets: bool = False


CLEAR = Condition()
DOWN = Condition(down=True)


class Direction:
    """Packets on their way to one end of a link.

    flows: TCP connections whose SYN passed, of both directions of the link: the two share one set.
    """

    def __init__(self, flows: set[bytes], seed: int) -> None:
        self.condition = CLEAR
        self.dropped = 0
        self._flows = flows
        self._random = random.Random(seed)
        self._under_way: list[tuple[float, int, bytes]] = []  # a heap: due time, sequence, packet
        self._held_bytes = 0
        self._sequence = 0
        self._free_at_s = 0.0  # when the link has sent what waits for its rate

    def set(self, condition: Condition) -> None:
        """Apply to packets that are offered from now on. `down` loses those under way too."""
        if condition.down:
            self.dropped += len(self._under_way)
            self._under_way.clear()
            self._held_bytes = 0
        if condition.forgets and not self.condition.forgets:
            self._flows.clear()
        self.condition = condition

    def offer(self, packet: bytes, now_s: float) -> None:
        """Take one IP packet from the sender: queue it, or drop it."""
        condition = self.condition
        if condition.down or packet[0] >> 4 != 4 or not self._passes(packet, condition):
            self.dropped += 1
            return
        at_s = now_s
        if condition.rate_mbit:
            bytes_per_s = condition.rate_mbit * 125_000
            free_at_s = max(now_s, self._free_at_s)
            if (free_at_s - now_s) * bytes_per_s > condition.queue_bytes:
                self.dropped += 1
                return
            self._free_at_s = at_s = free_at_s + len(packet) / bytes_per_s
        if not condition.reorder_percent or self._random.random() * 100 >= condition.reorder_percent:
            at_s += condition.delay_ms / 1000
        if self._held_bytes > _HELD_BYTES:
            self.dropped += 1
            return
        self._sequence += 1
        self._held_bytes += len(packet)
        heapq.heappush(self._under_way, (at_s, self._sequence, packet))

    def take(self, now_s: float) -> list[bytes]:
        """Packets that have arrived by now, in the order of their arrival."""
        due = []
        while self._under_way and self._under_way[0][0] <= now_s:
            packet = heapq.heappop(self._under_way)[2]
            self._held_bytes -= len(packet)
            due.append(packet)
        return due

    @property
    def next_s(self) -> float | None:
        """When the next packet arrives, None without a packet in flight."""
        return self._under_way[0][0] if self._under_way else None

    def _passes(self, packet: bytes, condition: Condition) -> bool:
        if condition.largest_bytes and len(packet) > condition.largest_bytes:
            return False
        if condition.loss_percent and self._random.random() * 100 < condition.loss_percent:
            return False
        if condition.forgets and packet[9] == _TCP:
            if opens_flow(packet):
                self._flows.add(flow_of(packet))
            return flow_of(packet) in self._flows
        return True


def flow_of(packet: bytes) -> bytes:
    """A TCP connection's two ends, the same for both directions (RFC 791, 3.1 and RFC 9293, 3.1)."""
    head_bytes = (packet[0] & 15) * 4
    source = packet[12:16] + packet[head_bytes : head_bytes + 2]
    destination = packet[16:20] + packet[head_bytes + 2 : head_bytes + 4]
    return min(source, destination) + max(source, destination)


def opens_flow(packet: bytes) -> bool:
    """Whether a TCP packet is a connection's first: SYN without ACK."""
    head_bytes = (packet[0] & 15) * 4
    return packet[head_bytes + 13] & (_SYN | _ACK) == _SYN
