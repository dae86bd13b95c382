"""os.fork() at any moment, from any thread: the child computes and ends, the parent goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from child import in_child, os_threads
from compare import Array, qkv

import harken

Arrays = tuple[Array, Array, Array]
Work = Callable[[], bool]
FORMS = {"prefill": (300, 300), "decode": (1, 2000)}
forms = pytest.mark.parametrize("form", FORMS)
threads = pytest.mark.parametrize("count", [1, 3])
ALONE = {"OPENBLAS_NUM_THREADS": "1"}  # NumPy's own threads are not the subject


def problem(form: str) -> tuple[Work, Arrays]:
    """A call that says whether its bits are those of one thread, and its arrays."""
    Lq, Lk = FORMS[form]
    q, k, v = qkv(np.float32, Lq, Lk, D=64, Hq=8)
    expected = harken.attention(q, k, v, threads=1)
    assert harken.explain(q, k, v).threads == harken.get_num_threads()
    return lambda: np.array_equal(harken.attention(q, k, v), expected), (q, k, v)


def start(work: Work) -> int:
    """A forked child that ends with 0 if the work is right."""
    pid = os.fork()
    if pid:
        return pid
    code = 9
    try:
        code = 0 if work() else 1
    finally:
        os._exit(code)


def code_of(pid: int, seconds: float = 15) -> int:
    """The exit code of a child; one that hangs is killed, which is -9."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_turn(form: str, count: int) -> list[int]:
    """Parent, child, parent, child, ...: everyone computes."""
    harken.set_num_threads(count)
    work, _ = problem(form)
    codes = []
    for _ in range(5):
        assert work()
        codes.append(code_of(start(work)))
    assert work()
    return codes


@forms
@threads
def test_after_computing(form: str, count: int) -> None:
    assert in_child(in_turn, form, count) == [0] * 5


def grandchildren(form: str) -> int:
    harken.set_num_threads(3)
    work, _ = problem(form)

    def child() -> bool:
        return work() and code_of(start(lambda: work() and code_of(start(work)) == 0)) == 0 and work()

    return code_of(start(lambda: work() and child()))


@forms
def test_children_of_children(form: str) -> None:
    assert in_child(grandchildren, form) == 0


def at_once(form: str) -> list[int]:
    harken.set_num_threads(3)
    work, _ = problem(form)
    assert work()
    children = [start(lambda: all(work() for _ in range(5))) for _ in range(6)]
    assert work()
    return [code_of(pid) for pid in children]


@forms
def test_many_children(form: str) -> None:
    assert in_child(at_once, form) == [0] * 6


def from_threads(order: str) -> list[int]:
    """Two threads have computed, so each has a team; then they fork in an order, without computing in between."""
    harken.set_num_threads(3)
    work, _ = problem("prefill")
    assert work()
    codes: list[int] = []
    turns = {name: threading.Event() for name in "AB"}

    def body(name: str) -> None:
        assert work()
        ready.release()
        turns[name].wait()
        codes.append(code_of(start(work)))

    ready = threading.Semaphore(0)
    others = {name: threading.Thread(target=body, args=name) for name in turns}
    for thread in others.values():
        thread.start()
        ready.acquire()
    for who in order:
        if who == "M":
            codes.append(code_of(start(work)))
        else:
            turns[who].set()
            others[who].join()
    assert work()
    return codes


@pytest.mark.parametrize("order", ["AB", "MAB", "AMB", "ABM"])
def test_from_a_second_thread(order: str) -> None:
    assert in_child(from_threads, order, warn="default") == [0] * len(order)


def while_computing(form: str) -> list[int]:
    """Two other threads compute all the time; this one forks, and the child computes."""
    harken.set_num_threads(3)
    work, _ = problem(form)
    stop, right, counts = threading.Event(), [], [0, 0]

    def body(n: int) -> None:
        while not stop.is_set():
            right.append(work())
            counts[n] += 1

    others = [threading.Thread(target=body, args=(n,)) for n in range(2)]
    for thread in others:
        thread.start()
    codes = []
    for n in range(20):
        if n % 2:
            assert work()
        codes.append(code_of(start(work)))
    before = list(counts)
    end = time.monotonic() + 15
    while not all(now > then + 1 for now, then in zip(counts, before, strict=True)):
        assert time.monotonic() < end, "a thread of the parent no longer computes"
        time.sleep(0.01)
    stop.set()
    for thread in others:
        thread.join()
    assert all(right)
    return codes


@forms
def test_while_other_threads_compute(form: str) -> None:
    assert in_child(while_computing, form, warn="default") == [0] * 20


def threads_after_fork() -> list[int]:
    """What Python 3.12 and later look at, straight after a fork, to warn of it."""
    harken.set_num_threads(4)
    work, _ = problem("prefill")
    counts = []
    for _ in range(10):
        assert work()
        assert os_threads() == 4
        pid = start(lambda: os_threads() == 1 and work())
        counts.append(os_threads())
        assert code_of(pid) == 0
    return counts


def test_no_thread_is_there_to_warn_of() -> None:
    assert in_child(threads_after_fork, env=ALONE) == [1] * 10


def pooled(count: int) -> bool:
    harken.set_num_threads(count)
    work, arrays = problem("prefill")
    assert work()
    expected = harken.attention(*arrays)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.starmap(harken.attention, [arrays] * 6)
        assert work()
    return all(np.array_equal(result, expected) for result in results)


@threads
def test_multiprocessing(count: int) -> None:
    assert in_child(pooled, count)


def in_a_handler() -> list[int]:
    """A signal comes in the middle of a call, and its handler forks; the child computes and leaves from there."""
    harken.set_num_threads(3)
    work, _ = problem("prefill")
    codes: list[int] = []

    def handler(*_: object) -> None:
        codes.append(code_of(start(work)))

    signal.signal(signal.SIGALRM, handler)
    q = np.random.default_rng(0).standard_normal((8, 4000, 64)).astype(np.float32)
    expected = harken.attention(q, q, q, threads=1)
    for _ in range(3):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert np.array_equal(harken.attention(q, q, q), expected)
        signal.setitimer(signal.ITIMER_REAL, 0)
        codes.append(code_of(start(work)))  # the team that was at work during the fork before is still there
    return codes


def test_from_a_signal_handler() -> None:
    codes = in_child(in_a_handler)
    assert len(codes) > 3
    assert set(codes) == {0}
