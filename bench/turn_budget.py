"""Measures what a turn's budget does: `python -m bench.turn_budget`. `bench.with_constants` sets the constants.

It prints a JSON object in µs: `round_trip` and `round_trip_p99` of 64 B, and `late`. `late` is the 90th percentile of
the delay of a 1 ms timer while an endless ping-pong keeps the loop busy.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time

from .measuring import percentile
from .pipe import TRIP, TRIP_P99, C, Ping, Pong, on_loop, over_pipe, round_trips

TRIPS = 20_000
TIMERS = 60
ASKED_S = 0.001


async def lateness() -> list[float]:
    ping, pong = Ping(), Pong()
    a, b = await over_pipe(C)(ping, pong)
    await asyncio.sleep(0.01)
    ping.start(a, b"x" * 64, 1 << 24)
    samples = []
    for _ in range(TIMERS):
        began = time.perf_counter()
        await asyncio.sleep(ASKED_S)
        samples.append((time.perf_counter() - began - ASKED_S) * 1e6)
    a.abort()
    b.abort()
    await asyncio.sleep(0)
    return samples


def main() -> None:
    trips = on_loop("uvloop", round_trips(over_pipe(C), 64, TRIPS))
    late = on_loop("uvloop", lateness())
    found = {
        "round_trip": statistics.median(trips[TRIP]),
        "round_trip_p99": trips[TRIP_P99][0],
        "late": percentile(late, 0.9),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
