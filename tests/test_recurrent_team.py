"""The threads that go through the steps of a recurrence together: crowded, interrupted and forked, they never hang."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from child import in_child
from test_recurrent import problem

import harken
from harken.layers import GRU, LSTM


def crowded(count: int, steps: int, seconds: float) -> int:
    """Many more threads than processors, several callers at once, with an unfair system: nobody hangs."""
    layer = LSTM(64, 256, bidirectional=True, rng=8)
    x = problem(layer, 1, steps)[0]
    expected = layer(x)[0]
    harken.set_num_threads(count)
    end = time.monotonic() + seconds
    wrong: list[int] = []

    def body() -> None:
        calls = 0
        while time.monotonic() < end or calls < 3:
            if not np.array_equal(layer(x)[0], expected):
                wrong.append(calls)
            calls += 1

    callers = [threading.Thread(target=body) for _ in range(3)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    return len(wrong)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("steps", [60, 700])  # the inputs of many go to a matrix engine
def test_more_threads_than_processors(count: int, steps: int) -> None:
    assert in_child(crowded, count, steps, 1.0) == 0


def interrupted(threads: int) -> list[float]:
    """Seconds from Ctrl-C to KeyboardInterrupt: a long sequence, wide input, many rows."""
    harken.set_num_threads(threads)
    found = []
    for B, L, C, H in ((1, 200_000, 4, 512), (1, 500, 30_000, 256), (200, 5000, 8, 256)):
        layer = GRU(C, H, rng=9)
        x = np.zeros((B, L, C), np.float32)
        pressed: list[float] = []

        def press(pressed: list[float] = pressed) -> None:
            time.sleep(0.15)
            pressed.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            _ = [layer(x) for _ in range(10**6)]
        found.append(time.perf_counter() - pressed[0])
        thread.join()
    return found


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c(threads: int) -> None:
    assert max(in_child(interrupted, threads)) < 1.0  # 0.1 is promised, the rest is for a busy machine


def forked() -> list[int]:
    harken.set_num_threads(3)
    layer = LSTM(32, 256, rng=10)
    x = problem(layer, 1, 50)[0]
    expected = layer(x)[0]
    codes = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if np.array_equal(layer(x)[0], expected) else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert np.array_equal(layer(x)[0], expected)
    return codes


def test_fork() -> None:
    assert in_child(forked) == [0] * 4
