"""A call after an idle pause costs hardly more than a hot one, and threads with nothing to do do nothing."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from child import in_child

import harken

PAUSE = 0.05
# The promise is 0.2 ms. What must never come back are milliseconds: an OpenMP thread that spins on a busy processor
# costs 5. The rest is for whatever else runs on the machine that tests.
ALLOWED = 0.002


def cold_and_hot(shape: list[int], repeats: int) -> list[list[float]]:
    """Of one thread, then of all: the medians in seconds of calls after a pause and of calls after one another."""
    q, k, v = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    out = np.empty_like(q)
    medians = []
    for threads in (1, harken.get_num_threads()):
        for _ in range(20):
            harken.attention(q, k, v, out=out, threads=threads)
        cold: list[float] = []
        hot: list[float] = []
        for _ in range(repeats):
            time.sleep(PAUSE)
            for times in (cold, hot):
                begin = time.perf_counter()
                harken.attention(q, k, v, out=out, threads=threads)
                times.append(time.perf_counter() - begin)
        medians.append([statistics.median(cold), statistics.median(hot)])
    return medians


@pytest.mark.parametrize("shape", [(1, 12, 16, 64), (1, 12, 128, 64)])
def test_after_a_pause(shape: tuple[int, ...]) -> None:
    medians = in_child(cold_and_hot, shape, 15)
    (cold_alone, hot_alone), (cold, hot) = medians
    assert cold_alone - hot_alone < ALLOWED, medians
    assert cold - min(hot, hot_alone) < ALLOWED, medians
    assert hot - hot_alone < ALLOWED, medians


def burnt(repeats: int) -> float:
    """Processor seconds that a pause after a call on several threads costs."""
    q = np.random.default_rng(0).standard_normal((12, 128, 64)).astype(np.float32)
    total = 0.0
    for _ in range(repeats):
        harken.attention(q, q, q)
        begin = time.process_time()
        time.sleep(PAUSE)
        total += time.process_time() - begin
    return total / repeats


def test_idle_threads_sleep() -> None:
    """Measured: 0.2 ms, and 7.5 ms with libgomp's own settings on a machine whose processors are all in use."""
    assert in_child(burnt, 20, env={"OPENBLAS_NUM_THREADS": "1"}) < 0.001


def wakes() -> list[int]:
    """How often other threads of the process went to sleep: after a short call that comes alone, and after fifty."""
    q = np.ones((12, 1, 64), np.float32)
    k = np.ones((12, 512, 64), np.float32)

    def times_asleep() -> int:
        total = 0
        for task in Path("/proc/self/task").iterdir():
            if int(task.name) != os.getpid():
                line = next(line for line in (task / "status").open() if line.startswith("voluntary"))
                total += int(line.split()[1])
        return total

    def calls(count: int) -> int:
        time.sleep(PAUSE)
        before = times_asleep()
        for _ in range(count):
            harken.attention(q, k, k, threads=2)
        time.sleep(PAUSE)
        return times_asleep() - before

    calls(50)
    return [calls(1), calls(50)]


def test_a_short_call_after_a_pause_wakes_nobody() -> None:
    alone, together = in_child(wakes, env={"OPENBLAS_NUM_THREADS": "1"})
    assert alone == 0
    assert together > 0
