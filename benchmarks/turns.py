"""Timing in turns: all ways run once a round, so that other work on the machine falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable


def measure(ways: dict[str, Callable], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each way by round; the first round warms up and is not kept. At least one is, whatever it takes."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    began = time.perf_counter()
    done = -1
    while done < 1 or (done < rounds and time.perf_counter() - began < seconds):
        for way, run in ways.items():
            repeats, start = 0, time.perf_counter()
            while repeats == 0 or time.perf_counter() - start < 0.05:  # short ones several times
                run()
                repeats += 1
            if done >= 0:
                times[way].append(1000 * (time.perf_counter() - start) / repeats)
        done += 1
    return times
