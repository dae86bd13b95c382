"""Signals reach Python in the middle of a call: Ctrl-C ends it, a handler may compute, and the next call works."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from child import in_child
from compare import Array, qkv

import harken

WAIT = 0.15  # seconds into a call that Ctrl-C comes
LIMIT, NOISE = 0.1, 1.0  # seconds after it: what is promised, and what another process on this processor may add


def zeros(*shape: int) -> Array:
    """As many zeros as one likes in no memory."""
    return np.broadcast_to(np.zeros(1, np.float32), shape)


def endless(form: str) -> tuple[Array, Array, Array, dict[str, Any]]:
    """Calls of a minute and more."""
    if form == "decode":
        return zeros(64, 1, 4096), zeros(64, 2**20, 4096), zeros(64, 2**20, 1), {}
    if form == "decode, one range":
        return zeros(2**20, 8, 4, 256), zeros(2**20, 2, 500, 256), zeros(2**20, 2, 500, 1), {}
    if form == "short keys":  # many tasks of no time each
        return zeros(2**20, 8, 300, 64), zeros(2**20, 8, 8, 64), zeros(2**20, 8, 8, 0), {}
    q, k = zeros(4, 5000, 64), zeros(4, 2**22, 64)
    if form == "hidden keys":
        return q, k, k, {"mask": np.broadcast_to(np.array([False]), (5000, 2**22))}
    if form == "bias":
        return q, k, k, {"bias": zeros(5000, 2**22), "causal": True, "softcap": 3.0}
    if form == "ranges":
        return q[:, :100], zeros(4, 2**23, 64), zeros(4, 2**23, 64), {"score": "cosine"}
    return q, k, k, {}


FORMS = ("prefill", "bias", "hidden keys", "ranges", "short keys", "decode", "decode, one range")


def interrupt(*after: float) -> tuple[threading.Thread, list[float]]:
    """A thread that presses Ctrl-C after these pauses, and the times at which it did."""
    times: list[float] = []

    def body() -> None:
        for pause in after:
            time.sleep(pause)
            times.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, times


def delays(threads: int, backend: str | None, forms: list[str], repeats: int = 2) -> list[float]:
    """Seconds from Ctrl-C to KeyboardInterrupt."""
    harken.set_backend(backend)
    q, k, v = qkv(np.float32, 40, 50, D=32)
    expected = harken.attention(q, k, v)
    found = []
    for form in forms:
        big_q, big_k, big_v, options = endless(form)
        for _ in range(repeats):
            print(form, flush=True)
            thread, pressed = interrupt(WAIT)
            with pytest.raises(KeyboardInterrupt):
                harken.attention(big_q, big_k, big_v, **options, threads=threads)
            found.append(time.perf_counter() - pressed[0])
            thread.join()
            assert np.array_equal(harken.attention(q, k, v), expected)
    return found


def judge(found: list[float], repeats: int) -> None:
    """The best of each form keeps the promise, and none is far from it."""
    best = [min(found[n : n + repeats]) for n in range(0, len(found), repeats)]
    assert max(best) < LIMIT, found
    assert max(found) < NOISE, found


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c(threads: int) -> None:
    judge(in_child(delays, threads, None, FORMS), 2)


def test_ctrl_c_on_every_backend(backend: str) -> None:
    judge(in_child(delays, 2, backend, ["prefill", "decode"]), 2)


def uneven(threads: int) -> list[float]:
    """One row of the batch takes long; the caller is mostly not the one who computes it."""
    lengths = np.full(40, 5000)
    lengths[-1] = 2**22
    q, k = zeros(40, 1, 1100, 64), zeros(40, 1, 2**22, 64)
    some = np.full(40, 256)  # of five tiles the first one only, so that the keys are not cut into ranges
    found = []
    for _ in range(4):
        thread, pressed = interrupt(WAIT)
        with pytest.raises(KeyboardInterrupt):
            harken.attention(q, k, k, q_lengths=some, kv_lengths=lengths, threads=threads)
        found.append(time.perf_counter() - pressed[0])
        thread.join()
    return found


def test_ctrl_c_while_the_caller_waits_for_others() -> None:
    judge(in_child(uneven, 4), 4)


def from_a_handler(threads: int) -> list[bool]:
    """A handler that computes: calls of every size, the last as large as the interrupted one's tasks."""
    problems = [qkv(np.float32, L, L, D=64, Hq=4) for L in (1, 20, 100, 400)]
    expected = [harken.attention(*arrays) for arrays in problems]
    right: list[bool] = []

    def handler(*_: object) -> None:
        right.extend(
            np.array_equal(harken.attention(*arrays, threads=n), one)
            for arrays, one in zip(problems, expected, strict=True)
            for n in (1, 3)
        )

    signal.signal(signal.SIGALRM, handler)
    q = np.random.default_rng(0).standard_normal((8, 6000, 64)).astype(np.float32)
    whole = harken.attention(q, q, q)
    signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
    during = 0
    for _ in range(3):
        before = len(right)
        right.append(np.array_equal(harken.attention(q, q, q, threads=threads), whole))
        during += len(right) - before > 9  # it came in the middle, not only at the end
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert during
    return right


@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_may_compute(threads: int) -> None:
    assert all(in_child(from_a_handler, threads))


def after_handlers(sizes: list[int], threads: int) -> float:
    """The delay of a second Ctrl-C, when the handler of the first has computed and gone on."""
    calls = [qkv(np.float32, L, L, D=64, Hq=4) for L in sizes]
    seen: list[float] = []

    def handler(*_: object) -> None:
        seen.append(time.perf_counter())
        for arrays in calls:
            harken.attention(*arrays)
        if len(seen) == 2:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handler)
    thread, pressed = interrupt(WAIT, WAIT)
    q, k, v, _ = endless("prefill")
    with pytest.raises(KeyboardInterrupt):
        harken.attention(q, k, v, threads=threads)
    thread.join()
    return max(s - p for s, p in zip(seen, pressed, strict=True))


@pytest.mark.parametrize("sizes", [[], [1], [40], [100], [400], [100, 400, 1]])
def test_a_second_signal(sizes: list[int]) -> None:
    assert in_child(after_handlers, sizes, 2, timeout=20) < NOISE


def other_exceptions() -> list[str]:
    """Any exception of a handler comes out of the call as it is, and out= may be used again."""

    def handler(*_: object) -> None:
        raise TimeoutError("enough")

    signal.signal(signal.SIGALRM, handler)
    q = np.random.default_rng(0).standard_normal((4, 600, 64)).astype(np.float32)
    expected, out = harken.attention(q, q, q), np.zeros_like(q)
    long = zeros(4, 2**22, 64)
    caught = []
    for _ in range(2):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            harken.attention(q, long, long, out=out, return_lse=True)
        except TimeoutError as error:
            caught.append(str(error))
        harken.attention(q, q, q, out=out)
        assert np.array_equal(out, expected)
    return caught


def test_any_exception_of_a_handler() -> None:
    assert in_child(other_exceptions, timeout=20) == ["enough"] * 2


def on_another_thread() -> tuple[float, bool]:
    """A call on a second thread neither takes Ctrl-C from the first one nor keeps it waiting."""
    q = np.random.default_rng(0).standard_normal((4, 4000, 64)).astype(np.float32)
    expected = harken.attention(q, q, q)
    right: list[bool] = []
    worker = threading.Thread(target=lambda: right.append(np.array_equal(harken.attention(q, q, q), expected)))
    thread, pressed = interrupt(0.03)
    delay = 60.0
    try:
        worker.start()
        time.sleep(20)
    except KeyboardInterrupt:
        delay = time.perf_counter() - pressed[0]
    worker.join()
    thread.join()
    return delay, all(right)


def test_a_call_on_another_thread_is_left_alone() -> None:
    delay, right = in_child(on_another_thread)
    assert delay < NOISE
    assert right
