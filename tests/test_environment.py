"""What a call finds around it stays as it was, on every thread: floating point modes and flags, errno, warnings."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from child import in_child, os_threads
from compare import DTYPES, Array, forced, qkv

import harken

MATH, C = ctypes.CDLL("libm.so.6"), ctypes.PyDLL(None)
C.__errno_location.restype = ctypes.POINTER(ctypes.c_int)
UPWARD, DOWNWARD, TOWARDS_ZERO = 0x800, 0x400, 0xC00
SERIOUS = 0x1F  # flags: invalid, denormal, division by zero, overflow, underflow; not inexact
MODES = 0xFFC0  # of MXCSR: flush to zero, rounding, traps, denormals are zero
FLUSH = 0x8040  # flush to zero, and denormals are zero

FORMS = {
    "decode": (2, 300),
    "decode, ranges": (1, 1300),
    "brief": (40, 60),
    "tiled": (40, 600),
    "tiled, ranges": (20, 4300),
}
SPECIAL = [1e-42, 1e30, np.inf, np.nan]  # what the sums of a call overflow with, or trap on


def environment() -> tuple[int, int, int]:
    """The x87 control word, its flags, and MXCSR."""
    state = (ctypes.c_uint32 * 8)()
    MATH.fegetenv(state)
    return state[0] & 0xFFFF, state[1] & 0xFFFF, state[7]


def set_modes(flip: int) -> None:
    state = (ctypes.c_uint32 * 8)()
    MATH.fegetenv(state)
    state[7] ^= flip
    MATH.fesetenv(state)


numbers = functools.cache(qkv)


def calls(form: str, value: float, dtype: Any = np.float32) -> Callable[[int], Any]:
    """Everything that may go wrong in arithmetic at once: special values seen and hidden, empty rows, sinks."""
    Lq, Lk = FORMS[form]
    q, k, v = (x.copy() for x in numbers(dtype, Lq, Lk, D=32, Hq=8, batch=(2,)))
    with np.errstate(all="ignore"):
        q[0, 1], k[0, 2, 7], v[0, :, 9] = (np.asarray(value).astype(dtype) for _ in range(3))
    mask = np.random.default_rng(0).random((Lq, Lk)) < 0.7
    mask[0] = False
    options: dict[str, Any] = {"mask": mask, "softcap": 30.0, "sinks": np.full(8, -1e4), "return_lse": True}

    def call(threads: int) -> Any:
        harken.attention(q, k, v, threads=threads)
        harken.attention(q, k, v, score="cosine", kv_lengths=[0, Lk], threads=threads)
        return harken.attention(q, k, v, **options, threads=threads)

    return call


def test_modes_and_flags(backend: str, dtype: np.dtype[Any]) -> None:
    for form, value in itertools.product(FORMS, SPECIAL):
        call = calls(form, value, dtype)
        for rounding, flip, threads in ((0, 0, 1), (UPWARD, 0, 3), (DOWNWARD, FLUSH, 1), (TOWARDS_ZERO, 0x40, 2)):
            MATH.fesetround(rounding)
            set_modes(flip)
            MATH.feclearexcept(0x3F)
            before = environment()
            call(threads)
            after = environment()
            set_modes(flip)
            MATH.fesetround(0)
            changed = [b ^ a for b, a in zip(before, after, strict=True)]
            assert (changed[0], changed[2] & MODES) == (0, 0), (form, value, rounding)
            assert (changed[1] & SERIOUS, changed[2] & SERIOUS) == (0, 0), (form, value, rounding)


def test_flags_that_are_raised_stay_raised(backend: str) -> None:
    call = calls("tiled", np.nan)
    MATH.feclearexcept(0x3F)
    MATH.feraiseexcept(0x1D)
    call(2)
    raised = MATH.fetestexcept(0x3F)
    MATH.feclearexcept(0x3F)
    assert raised & 0x1D == 0x1D


def trapped() -> None:
    """A caller who wants to be killed by an invalid operation, a division by zero or an overflow of his own."""
    made = [calls(form, value) for form, value in itertools.product(FORMS, SPECIAL)]
    for name, call in itertools.product(harken.backends(), made):
        with forced(name):
            call(2)  # the team that comes into being under traps would inherit them, rightly
            MATH.feclearexcept(0x3F)
            MATH.feenableexcept(0x0D)
            call(2)
            call(1)
            MATH.fedisableexcept(0x0D)


def test_a_caller_with_traps() -> None:
    in_child(trapped)


def test_errno(backend: str) -> None:
    errno = C.__errno_location().contents
    for form, threads in itertools.product(FORMS, (1, 2, 3)):
        call = calls(form, 1.0)
        call(threads)
        errno.value = 77
        call(threads)
        assert errno.value == 77, (form, threads)


def test_no_warning(backend: str, dtype: np.dtype[Any]) -> None:
    made = [calls(form, value, dtype) for form, value in itertools.product(FORMS, SPECIAL)]
    q, k, v = qkv(dtype, 4, 0)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for call in made:
            call(2)
        harken.attention(q, k, v, return_lse=True, return_weights=True)
        harken.attention(q[..., :0], k[..., :0], v, scale=1.0)
        tiny = np.float32(1e-42)  # and the next one to compute finds subnormal numbers where they were
        assert tiny + np.zeros(40, np.float32).sum() > 0
        assert (np.full(40, tiny) * np.float32(2) > 0).all()


def python_threads() -> list[bool]:
    """Each Python thread has modes of its own, and all of them call at once."""
    results: list[bool] = []
    barrier = threading.Barrier(6)

    def body(n: int) -> None:
        rounding = (0, UPWARD, DOWNWARD)[n % 3]
        work = [calls(form, 1e-42) for form in FORMS]
        MATH.fesetround(rounding)
        set_modes(FLUSH if n < 3 else 0)
        before = environment()
        barrier.wait()
        for _ in range(5):
            for call in work:
                call(1 + n % 2)
                changed = environment()[2] ^ before[2]
                subnormal = bool(np.full(40, 1e-42, np.float32).sum() > 0)
                results.append(changed & MODES == 0 and subnormal == (n >= 3))

    threads = [threading.Thread(target=body, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_every_python_thread() -> None:
    assert in_child(python_threads) == [True] * 30 * len(FORMS)


def team() -> list[list[int]]:
    """The threads that OpenMP keeps, asked after calls on them: who they are, and their MXCSR."""
    threads = 4
    harken.set_num_threads(threads)
    for form, value in itertools.product(FORMS, SPECIAL):
        calls(form, value)(threads)
    before = os_threads()
    found: list[list[int]] = []
    barrier = threading.Barrier(threads)  # so that nobody does the work of two

    def ask(_: object) -> None:
        found.append([threading.get_native_id(), environment()[2] & MODES])
        barrier.wait(10)

    openmp = ctypes.CDLL(harken.info()["threads"]["openmp"])
    openmp.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ask), None, threads, 0)
    assert os_threads() == before, "another team"
    return found


def test_threads_of_the_team() -> None:
    found = in_child(team, env={"OPENBLAS_NUM_THREADS": "1"})
    assert len({thread for thread, _ in found}) == 4
    assert {modes for _, modes in found} == {0x1F80}


def in_handlers(threads: int) -> list[bool]:
    """A signal handler that runs in the middle of a call finds the modes of Python."""
    seen: list[bool] = []

    def handler(*_: object) -> None:
        seen.append(5e-324 > 0 and 5e-324 * 2 > 5e-324 and environment()[2] & MODES == 0x1F80)

    signal.signal(signal.SIGALRM, handler)
    q = np.random.default_rng(0).standard_normal((4, 5000, 64)).astype(np.float32)
    signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
    for _ in range(3):
        harken.attention(q, q, q, threads=threads)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return seen


@pytest.mark.parametrize("threads", [1, 2])
def test_signal_handlers(threads: int) -> None:
    seen = in_child(in_handlers, threads)
    assert len(seen) > 2
    assert all(seen)


def seconds(*arrays: Array, **options: Any) -> float:
    """The best of some, of one thread."""
    best = np.inf
    for _ in range(7):
        begin = time.perf_counter()
        harken.attention(*arrays, **options, threads=1)
        best = min(best, time.perf_counter() - begin)
    return best


@pytest.mark.parametrize("shape", [(1, 4000), (64, 300)])
@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16"])
def test_subnormal_numbers_cost_nothing(backend: str, name: str, shape: tuple[int, int]) -> None:
    q, k, v = qkv(DTYPES[name], *shape, D=64, Hq=4)
    small = DTYPES[name].type(2.0**-1060 if name == "float64" else 2.0**-135)
    usual = seconds(q, k, v)
    assert seconds(q * small, k, v) < 4 * usual
    assert seconds(q, k * small, v) < 4 * usual
    assert seconds(q, k, v * small) < 4 * usual
    weights = np.where(np.arange(shape[1]) % 2, -725.0 if name == "float64" else -92.0, 0.0)  # their exp is subnormal
    assert seconds(q, k, v, bias=weights) < 4 * seconds(q, k, v, bias=weights / 100)


def test_environment_variables_stay() -> None:
    assert not [name for name in os.environ if name.startswith("GOMP_")]
