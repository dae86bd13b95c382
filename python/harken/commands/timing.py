"""Rivals are timed in turns, so that what disturbs the machine disturbs all of them alike; the median is the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

SAMPLE = 1e-3  # seconds of a sample: a short call is repeated within it


def medians(calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of each call, after a warm-up, from samples taken in turns for about `seconds` in all."""
    loops = []
    for call in calls:
        call()
        loops.append(min(max(1, math.ceil(SAMPLE / max(_sample(call, 1), 1e-9))), 10_000))
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not samples[0]:
        for call, count, taken in zip(calls, loops, samples, strict=True):
            taken.append(_sample(call, count))
    return [median(taken) for taken in samples]


def _sample(call: Callable[[], object], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begun) / count


def spoken(seconds: float) -> str:
    """A time with its unit: `spoken(0.00214)` is "2.14 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size * 0.9995 or unit == "us":
            return f"{seconds / size:.3g} {unit}" if seconds < 999.5 * size else f"{seconds / size:.0f} {unit}"
    raise AssertionError
