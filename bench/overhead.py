"""What a call costs before any attention is computed: hot, in nanoseconds, and after an idle pause, in microseconds.

    python bench/overhead.py

The problem (1, 1, 1, 8) in float32 is eight multiplications, an exponential and eight more: its time is the call.
NumPy's own functions on arrays as small, and a builtin that does nothing, say what a call from Python costs at least.
A cold call is made after 50 ms without one, in which the other threads, where the problem needs them, went to sleep.
"""

from __future__ import annotations

import argparse
import statistics
import time
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
from problems import PROBLEMS
from timing import settle

import harken

PAUSE = 0.05


def calls() -> dict[str, Callable[[], Any]]:
    """The calls of (1, 1, 1, 8) that are compared."""
    q, k, v = (np.random.default_rng(i).standard_normal((1, 1, 1, 8), np.float32) for i in range(3))
    out = np.empty_like(q)
    return {
        "nothing": lambda: None,
        "id(q)": lambda: id(q),
        "np.empty_like(q)": lambda: np.empty_like(q),
        "np.add(q, k)": lambda: np.add(q, k),
        "np.add(q, k, out=out)": lambda: np.add(q, k, out=out),
        "np.matmul(q, v.mT)": lambda: np.matmul(q, v.mT),
        "harken.attention(q, k, v)": lambda: harken.attention(q, k, v),
        "harken.attention(q, k, v, out=out)": lambda: harken.attention(q, k, v, out=out),
        "harken.attention(q, k, v, causal=True)": lambda: harken.attention(q, k, v, causal=True),
    }


def hot(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds a call: the medians of many runs of about 5 ms, taken in turns."""
    timers = {text: timeit.Timer(call) for text, call in calls.items()}
    counts = {text: max(1, round(0.5 / timer.timeit(100))) for text, timer in timers.items()}
    runs = [{text: timer.timeit(counts[text]) / counts[text] for text, timer in timers.items()} for _ in range(repeats)]
    return {text: statistics.median(run[text] for run in runs) for text in calls}


def cold(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """The medians of one call made right after another, and of one made after a pause."""
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        time.sleep(PAUSE)
        late = timeit.timeit(call, number=1)
        timeit.timeit(call, number=10)
        times.append((timeit.timeit(call, number=1), late))
    return statistics.median(early for early, _ in times), statistics.median(late for _, late in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40, metavar="N", help="medians of N (default: %(default)s)")
    repeats = parser.parse_args().repeats

    times = hot(calls(), repeats)
    nothing = times.pop("nothing")
    print("hot, (1, 1, 1, 8) float32, less the loop and the lambda around the call")
    for text, seconds in times.items():
        print(f"  {text:<40}{1e9 * (seconds - nothing):8.0f} ns")

    print(f"cold, after {1e3 * PAUSE:.0f} ms of sleep, {harken.get_num_threads()} threads")
    for name in ("seed", "tiny", "bert512", "decode512"):
        q, k, v = PROBLEMS[name].inputs("float32")
        settle()
        early, late = cold(lambda q=q, k=k, v=v: harken.attention(q, k, v), repeats)  # type: ignore[misc]
        print(f"  {name:<12}hot {1e6 * early:8.1f} us   cold {1e6 * late:8.1f} us   {1e6 * (late - early):+8.1f} us")


if __name__ == "__main__":
    main()
