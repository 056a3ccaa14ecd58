"""Timing in turns: all ways run once a round, so that other work on the machine falls on all of them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TURN = 0.05  # seconds that a way runs in its turn, at least once whatever it takes


def measure(ways: dict[str, Callable], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each way by round; the first round warms up and is not kept. At least one is, whatever it takes."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    began = time.perf_counter()
    done = -1
    while done < 1 or (done < rounds and time.perf_counter() - began < seconds):
        for way, run in ways.items():
            repeats, start = 0, time.perf_counter()
            while repeats == 0 or time.perf_counter() - start < TURN:  # short ones several times
                run()
                repeats += 1
            if done >= 0:
                times[way].append(1000 * (time.perf_counter() - start) / repeats)
        done += 1
    return times


def summary(times: list[float]) -> dict[str, float]:
    """'median', 'low' and 'high' (quartiles) and 'rounds' of one way's milliseconds."""
    low, median, high = np.percentile(times, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high), "rounds": len(times)}


def machine() -> dict[str, Any]:
    """What times depend on: processor, cores, and how many programs wanted them in the last minute."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": next(named, platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
