"""How many threads a call uses, who decides it, and what threads of Python may do at the same time."""

from __future__ import annotations

import itertools
import os
import queue
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import threadpoolctl  # type: ignore[import-untyped]
from child import in_child, os_threads, output
from compare import Array, qkv, same_bits

import harken

ALONE = {"OPENBLAS_NUM_THREADS": "1"}  # NumPy's own threads are not the subject
COUNTS = "import harken; print(harken.get_num_threads(), harken.info()['threads']['why'])"


def zeros(*shape: int) -> Array:
    return np.broadcast_to(np.zeros(1, np.float32), shape)


LARGE = zeros(64, 1000, 64)
SMALL = zeros(2, 10, 16)


def planned(threads: int | None = None) -> int:
    return harken.explain(LARGE, LARGE, LARGE, threads=threads).threads


# --- who decides ---


@pytest.mark.parametrize(
    ("variables", "count", "why"),
    [
        ({"HARKEN_NUM_THREADS": "5"}, 5, "HARKEN_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "3"}, 3, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "4,2"}, 4, "OMP_NUM_THREADS"),
        ({"HARKEN_NUM_THREADS": "2", "OMP_NUM_THREADS": "7"}, 2, "HARKEN_NUM_THREADS"),
        ({"HARKEN_NUM_THREADS": "7", "OMP_NUM_THREADS": "2"}, 7, "HARKEN_NUM_THREADS"),
        ({"HARKEN_NUM_THREADS": "", "OMP_NUM_THREADS": "3"}, 3, "OMP_NUM_THREADS"),
        ({"HARKEN_NUM_THREADS": "1", "OMP_NUM_THREADS": "3"}, 1, "HARKEN_NUM_THREADS"),
    ],
)
def test_variables(variables: dict[str, str], count: int, why: str) -> None:
    assert output(COUNTS, env=variables).split(maxsplit=1) == [str(count), why + "\n"]


@pytest.mark.parametrize("variables", [{}, {"HARKEN_NUM_THREADS": "3"}])
def test_affinity_is_the_default(variables: dict[str, str]) -> None:
    one = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}});"
    assert int(output(one + COUNTS, env=variables).split()[0]) == int(variables.get("HARKEN_NUM_THREADS", 1))
    assert 1 <= int(output(COUNTS).split()[0]) <= len(os.sched_getaffinity(0))


def decided() -> list[int]:
    default = harken.get_num_threads()
    found = [default, planned(), planned(2), planned(9)]
    harken.set_num_threads(4)
    found += [harken.get_num_threads(), planned(), planned(2), planned(9)]
    harken.set_num_threads(None)
    return [*found, harken.get_num_threads(), planned()]


def test_the_call_decides_over_the_process_and_that_over_variables() -> None:
    assert in_child(decided, env={"HARKEN_NUM_THREADS": "3"}) == [3, 3, 2, 9, 4, 4, 2, 9, 3, 3]
    assert in_child(decided, env={"OMP_NUM_THREADS": "3"}) == [3, 3, 2, 9, 4, 4, 2, 9, 3, 3]


def test_settings_hold_for_every_python_thread() -> None:
    found: list[int] = []
    harken.set_num_threads(7)
    try:
        thread = threading.Thread(target=lambda: found.extend([harken.get_num_threads(), planned()]))
        thread.start()
        thread.join()
    finally:
        harken.set_num_threads(None)
    assert found == [7, 7]


def limited(limit: int) -> list[int]:
    """Planned and real threads under a limit, and planned ones after it."""
    known = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "openmp"]
    assert any(os.path.samefile(harken.info()["threads"]["openmp"], pool["filepath"]) for pool in known)
    with threadpoolctl.threadpool_limits(limit, user_api="openmp"):
        found = [planned(), planned(5)]
        harken.attention(LARGE, LARGE, LARGE)
        harken.attention(LARGE, LARGE, LARGE, threads=5)
        found.append(os_threads())
    return [*found, planned(), planned(5)]


@pytest.mark.parametrize("limit", [1, 3])
def test_threadpoolctl(limit: int) -> None:
    assert in_child(limited, limit, env={"HARKEN_NUM_THREADS": "6", **ALONE}) == [limit, limit, limit, 6, 5]


# --- what is started, and when ---


def test_import_starts_no_thread() -> None:
    count = "print(len(os.listdir('/proc/self/task')))"
    source = f"import os, numpy; {count}; import harken; {count}; harken.explain([[1.0]], [[1.0]], [[1.0]]); {count}"
    before, after, later = output(source).split()
    assert before == after == later


def test_import_leaves_the_environment() -> None:
    output("import os; before = dict(os.environ); import harken; assert before == dict(os.environ)")
    waits = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "passive"}
    for name, value in waits.items():
        assert output(f"import os, harken; print(os.environ['{name}'])", env={name: value}) == value + "\n"


def started() -> list[int]:
    """Threads of the operating system after small calls, many small calls, one thread's, large ones, small ones."""
    found = []
    for arrays, threads in ((SMALL, None), (SMALL, 8), (LARGE, 1), (LARGE, None), (LARGE, 3), (SMALL, None)):
        for _ in range(3):
            harken.attention(arrays, arrays, arrays, threads=threads)
        found.append(os_threads())
    return found


def test_small_problems_stay_on_the_calling_thread() -> None:
    assert harken.explain(SMALL, SMALL, SMALL, threads=8).threads == 1
    one = zeros(12, 1, 64), zeros(12, 60, 64), zeros(12, 60, 64)
    assert harken.explain(*one, threads=8).threads == 1
    assert in_child(started, env={"HARKEN_NUM_THREADS": "4", **ALONE}) == [1, 1, 1, 4, 4, 4]


def used() -> float:
    """The processor time of a large call by its threads, over the time of the caller alone."""
    q = np.random.default_rng(0).standard_normal((16, 1500, 64)).astype(np.float32)
    harken.attention(q, q, q)
    all_before, own_before = time.process_time(), time.thread_time()
    for _ in range(4):
        harken.attention(q, q, q)
    return (time.process_time() - all_before) / (time.thread_time() - own_before)


def test_threads_share_the_work() -> None:
    assert in_child(used, env={"HARKEN_NUM_THREADS": "1", **ALONE}) < 1.2
    assert in_child(used, env={"HARKEN_NUM_THREADS": "4", **ALONE}) > 1.5


@pytest.mark.parametrize("count", [1000, 1_000_000, 2**31 - 1])
def test_more_threads_than_a_machine_can_give(count: int) -> None:
    output(
        "import numpy, harken;"
        "q = numpy.random.default_rng(0).standard_normal((100_000, 1, 16, 8)).astype('f4');"
        f"out = harken.attention(q, q, q, threads={count});"
        "assert numpy.array_equal(out, harken.attention(q, q, q, threads=1))"
    )


# --- Python's threads ---


def test_many_python_threads_at_once(backend: str) -> None:
    shapes = [(1, 300, 64), (2, 1100, 32), (40, 50, 16), (300, 300, 64), (20, 4300, 8), (1, 7, 5)]
    problems = [qkv(dtype, Lq, Lk, D=D, Hq=4, Hkv=2) for Lq, Lk, D in shapes for dtype in (np.float32, np.float16)]
    expected = [harken.attention(*arrays, causal=True, return_lse=True) for arrays in problems]
    errors: queue.Queue[BaseException] = queue.Queue()
    barrier = threading.Barrier(8)

    def body(n: int) -> None:
        order = np.random.default_rng(n).permutation(len(problems))
        try:
            barrier.wait(30)
            for _, which in itertools.product(range(4), order):
                results = harken.attention(*problems[which], causal=True, return_lse=True, threads=1 + (n + which) % 4)
                for result, one in zip(results, expected[which], strict=True):
                    same_bits(result, one)
        except BaseException as error:
            errors.put(error)

    threads = [threading.Thread(target=body, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if not errors.empty():
        raise errors.get()


def progress(threads: int, form: str) -> list[int]:
    """How often another Python thread runs during a call of about a third of a second, and after it."""
    Lq, Lk = (2000, 2000) if form == "tiled" else (1, 2**17)
    q, k = zeros(16, Lq, 64), zeros(16, Lk, 64)
    begin = time.perf_counter()
    harken.attention(q, k, k, threads=threads)
    repeats = max(1, round(0.3 / (time.perf_counter() - begin)))
    q = np.broadcast_to(q, (repeats, *q.shape))
    ticks, stop = [0], threading.Event()

    def body() -> None:
        while not stop.wait(0.002):
            ticks[0] += 1

    other = threading.Thread(target=body)
    other.start()
    sys.setswitchinterval(1000)  # nobody takes the lock from who does not give it
    before = ticks[0]
    harken.attention(q, k, k, threads=threads)
    during = ticks[0] - before
    stop.set()
    sys.setswitchinterval(0.005)
    other.join()
    return [during, repeats]


@pytest.mark.parametrize("form", ["tiled", "decode"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_lock_is_free_during_the_work(threads: int, form: str) -> None:
    during, _ = in_child(progress, threads, form)
    assert during > 10


def test_a_thread_may_end_after_computing() -> None:
    """Each brings a team of its own, and takes it away."""
    result: dict[str, Any] = in_child(ended, env={"HARKEN_NUM_THREADS": "3", **ALONE})
    assert result["right"]
    assert result["threads"] <= 3


def ended() -> dict[str, Any]:
    q = np.random.default_rng(0).standard_normal((8, 300, 64)).astype(np.float32)
    expected = harken.attention(q, q, q)
    right: list[bool] = []
    for _ in range(20):
        thread = threading.Thread(target=lambda: right.append(np.array_equal(harken.attention(q, q, q), expected)))
        thread.start()
        thread.join()
    for _ in range(200):  # the operating system needs a moment to bury them
        if os_threads() <= 3:
            break
        time.sleep(0.01)
    return {"right": len(right) == 20 and all(right), "threads": os_threads()}
