"""How calls are timed: in turns, each one hot, none disturbed by the threads that another leaves behind."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import Any

Call = Callable[[], Any]
Rounds = list[list[float]]  # seconds a call: a list of samples for each round

SAMPLE = 2e-3  # seconds a sample lasts at least: as many calls as that takes, or one
BURST = 5  # samples in a row
SLOW = 0.25  # from here on a call is its own warm up, and one of them a burst
ROUNDS = 3  # at least


def settle(limit: float = 0.25) -> None:
    """Wait until no thread of this process runs.

    The helpers of a thread pool spin after their last task, for 6 ms (PyTorch's libgomp, 300 000 rounds), 28 ms (ONNX
    Runtime) or 105 ms (OpenBLAS under NumPy), and on a small machine take a core from whoever is timed next. The clock
    of used CPU time advances in ticks of 4 ms or less, hence slices of 10.
    """
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(10e-3)
        if time.process_time() - used < 3e-3:
            return


def measure(call: Call, count: int) -> float:
    """Seconds that one of `count` calls in a row takes; each result is dropped before the next is made."""
    start = time.perf_counter()
    for _ in repeat(None, count):
        call()
    return (time.perf_counter() - start) / count


def calibrate(call: Call) -> int:
    """How many calls fill a sample."""
    settle()
    count = 1
    while True:
        first = measure(call, count)
        if first >= SLOW:
            return 1
        # The first one after a pause may be a thousand times slower than those that follow.
        each = min(measure(call, count) for _ in range(3))
        if each * count >= SAMPLE:
            return count
        count = min(10 * count, math.ceil(1.1 * SAMPLE / each))


def burst(call: Call, count: int) -> list[float]:
    """One untimed sample that wakes threads, clocks and caches, then the timed ones.

    To be woken costs 5 ms at most: a slow call need not be made twice for that.
    """
    settle()
    first = measure(call, count)
    if first >= SLOW:
        return [first]
    return [measure(call, count) for _ in range(BURST)]


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector stays out of the samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interleave(calls: dict[str, Call], seconds: float, progress: Callable[[str], None]) -> dict[str, Rounds]:
    """Time the calls in turns for about that many seconds in all.

    The clock of a machine drifts and its neighbours come and go: what is compared must be measured side by side. Each
    round takes a burst of each call and starts with another one. All get the same share of the time, so that slow calls
    sit out the later rounds, and at least three rounds.
    """
    rounds: dict[str, Rounds] = {name: [] for name in calls}
    with no_collection():
        counts = {name: calibrate(call) for name, call in calls.items()}
        spent = dict.fromkeys(calls, 0.0)
        start = time.perf_counter()
        order = list(calls)
        for i in range(10**6):
            turn = [name for name in order if i < ROUNDS or spent[name] < seconds / len(calls)]
            if i >= ROUNDS and (time.perf_counter() - start > seconds or not turn):
                break
            for name in turn:
                progress(f"round {i + 1}: {name}")
                began = time.perf_counter()
                rounds[name].append(burst(calls[name], counts[name]))
                spent[name] += time.perf_counter() - began
            order = order[1:] + order[:1]
    return rounds


def middle(rounds: Rounds) -> float:
    """The median of all samples."""
    return statistics.median(x for samples in rounds for x in samples)


def spread(rounds: Rounds) -> float:
    """Half the distance between the quartiles of the samples, as a share of their median."""
    samples = [x for part in rounds for x in part]
    low, _, high = statistics.quantiles(samples, n=4)
    return (high - low) / 2 / statistics.median(samples)


def ratio(rival: Rounds, ours: Rounds) -> float:
    """How many times as long the rival takes: the median of the rounds, each compared with the same round of ours."""
    return statistics.median(statistics.median(r) / statistics.median(o) for r, o in zip(rival, ours, strict=False))
