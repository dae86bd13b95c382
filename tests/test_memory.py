"""Memory: none that grows with Lq x Lk, none that is left behind, an error and no crash where none is to be had."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from child import in_child, output
from compare import DTYPES, Array, qkv

import harken

MIB = 2**20
LONG = 65536


def resident(what: str) -> int:
    """VmRSS or VmHWM, its highest, in bytes. Unlike getrusage's, these are not inherited from a parent."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what + ":")) * 1024


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    """As many zeros as one likes in no memory."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, [0] * len(shape))


def growth(form: str) -> int:
    """By how much the highest ever memory of the process grows in one call, less its result."""
    q, k, v = qkv(np.float32, LONG, LONG, D=8, Hq=1)
    options: dict[str, Any] = {"causal": True}
    if form == "window, mask and bias":
        seen = np.broadcast_to(np.arange(LONG) % 3 > 0, (LONG, LONG))
        options |= {"window": (2000, 50), "mask": seen, "bias": zeros(LONG, LONG), "alibi": 0.01, "softcap": 20.0}
    if form == "bfloat16, cosine":
        q, k, v = (x.astype(DTYPES["bfloat16"]) for x in (q, k, v))
        options |= {"window": (None, 0), "score": "cosine"}
    if form == "decode":
        q = np.ascontiguousarray(np.broadcast_to(q[:, :8], (64, 8, 8)))
    out = np.zeros_like(q)
    harken.attention(q[:, :300], k[:, :300], v[:, :300])
    before = resident("VmHWM")
    harken.attention(q, k, v, **options, out=out, return_lse=True)
    return resident("VmHWM") - before


@pytest.mark.parametrize("form", ["plain", "window, mask and bias", "bfloat16, cosine", "decode"])
def test_long_sequences(form: str) -> None:
    assert in_child(growth, form) < 24 * MIB  # one row of tiles of (Lq, Lk) would be 32, all of it 16384


@pytest.mark.parametrize("Lq", [1, 8, 100, 1024, 5000])
@pytest.mark.parametrize("batch", [1, 1000])
def test_workspace(batch: int, Lq: int) -> None:
    """It is a matter of threads and tiles: what waits to be merged may not outgrow it in a large batch."""
    for Lk in (1000, 8192, LONG, 8 * LONG):
        q, k = zeros(batch, 16, Lq, 64), zeros(batch, 16, Lk, 64)
        two, four = (harken.explain(q, k, k, threads=n).workspace_bytes for n in (2, 4))
        assert two <= 64 * MIB, Lk
        assert four <= 2 * two, Lk


def variety() -> list[Callable[[], Any]]:
    """Calls that work, of every form, and calls that raise, at every step of reading the arguments."""
    q, k, v = qkv(np.float32, 40, 50, D=24, Hq=4, Hkv=2, batch=(2,))
    bias, mask, out = np.zeros((4, 40, 50), np.float32), np.ones((40, 50), bool), np.zeros_like(q)
    lengths = np.array([50, 20])
    swapped = [x.astype(">f4") for x in (q, k, v)]
    right: list[dict[str, Any]] = [
        {},
        {"mask": mask, "bias": bias, "out": out, "return_lse": True, "return_weights": True},
        {"kv_lengths": lengths, "alibi": [1, 2, 3, 4], "sinks": np.arange(4.0), "scale": np.ones(4), "causal": True},
        {"out": q[...], "mask": mask.tolist(), "window": (3, None), "score": "cosine", "softcap": 3.0},
        {"out": np.zeros(q.shape, ">f4"), "threads": 2, "bias": bias.astype(np.float64)},
    ]
    wrong: list[dict[str, Any]] = [
        {"mask": bias},
        {"mask": mask, "bias": mask},
        {"bias": bias[:, :7]},
        {"kv_lengths": lengths + 1, "mask": mask},
        {"kv_lengths": lengths, "window": (-1, 2)},
        {"kv_lengths": [1.5, 2.5]},
        {"scale": np.ones(3)},
        {"sinks": [object()]},
        {"out": out[:1], "kv_lengths": lengths},
        {"out": out.astype(float), "bias": bias.tolist()},
        {"out": np.broadcast_to(out[:1], out.shape)},
        {"threads": 0},
        {"score": "dots"},
        {"nonsense": 1},
        {"device": "cuda"},
    ]
    small = qkv(np.float32, 1, 60, D=24, Hq=2)
    arguments: list[tuple[Any, ...]] = [(q, k, v), (q.tolist(), k, v), (q, k[..., :3], v), (q, k.astype(float), v)]
    arguments += [(q, k[:, :, :9], v), (q[:, :3], k, v), (q, k), (q, "k", v), (None, k, v), (swapped[0], k, swapped[2])]
    made: list[Callable[[], Any]] = [partial(harken.attention, *small), partial(harken.explain, *small)]
    for function, positional in itertools.product((harken.attention, harken.explain), arguments):
        made.append(partial(function, *positional))
    for function, options in itertools.product((harken.attention, harken.explain), right + wrong):
        made.append(partial(function, q, k, v, **options))
    return made


def repeat(calls: list[Callable[[], Any]], times: int) -> int:
    """How many of the calls raised."""
    raised = 0
    for _, call in itertools.product(range(times), calls):
        try:
            call()
        except (TypeError, ValueError, RuntimeError):
            raised += 1
    return raised


def leaks() -> dict[str, int]:
    """What a hundred rounds of the calls leave behind, in the best of ten hundreds: caches and free lists fill once,
    but take their time (blocks left by each hundred: 310, 78, 41, 10, 6, 2, 0)."""
    calls = variety()
    raised = repeat(calls, 10)
    blocks, memory = [], []
    for _ in range(10):
        gc.collect()
        before = sys.getallocatedblocks(), resident("VmRSS")
        repeat(calls, 100)
        gc.collect()
        blocks.append(sys.getallocatedblocks() - before[0])
        memory.append(resident("VmRSS") - before[1])
    return {"blocks": min(blocks), "memory": min(memory), "raised": raised, "calls": 10 * len(calls)}


def test_nothing_is_left_behind() -> None:
    found = in_child(leaks)
    assert found["raised"] > found["calls"] // 3 > 200
    assert found["blocks"] < 80  # a leak of one object a round would be 100
    assert found["memory"] < MIB  # a leak of a result would be 3


def test_references() -> None:
    q, k, v = qkv(np.float32, 6, 7, D=4, Hq=4, Hkv=2, batch=(2,))
    options: dict[str, Any] = {
        "mask": np.ones((6, 7), bool),
        "bias": np.zeros((6, 7), np.float32),
        "q_start": np.array([1, 2]),
        "q_lengths": np.array([6, 5]),
        "kv_lengths": np.array([7, 6], ">i4"),
        "scale": np.ones(4),
        "alibi": np.ones(4, ">f8"),
        "sinks": np.ones(4),
        "out": np.zeros_like(q),
    }
    objects = [q, k, v, *options.values()]
    before = [sys.getrefcount(x) for x in objects]
    mistakes: list[dict[str, Any]] = [
        {},
        {"threads": "many"},
        {"out": q[:1].copy()},
        {"nonsense": 1},
        {"sinks": "none"},
    ]
    for function, wrong in itertools.product((harken.attention, harken.explain), mistakes):
        for flags in ({}, {"return_lse": True, "return_weights": True}):
            repeat([partial(function, q, k, v, **options | flags | wrong)], 3)
    assert [sys.getrefcount(x) for x in objects] == before
    out, lse, weights = harken.attention(q, k, v, **options, return_lse=True, return_weights=True)
    fresh = np.zeros(1)
    assert sys.getrefcount(lse) == sys.getrefcount(weights) == sys.getrefcount(fresh)
    del out
    assert sys.getrefcount(options["out"]) == before[-1]


# q, k, v by shape: each asks for more than there is, of a result, of the work or of a number that counts it
HUGE = {
    "out": ((2**20, 2**20, 8), (2**20, 9, 8), (2**20, 9, 2**12)),
    "out beyond 2**63": ((2**28, 2**28, 8), (2**28, 9, 8), (2**28, 9, 2**28)),
    "batches": ((2**32, 1, 2**27, 1), (2**32, 1, 1, 1), (2**32, 1, 1, 1)),
    "batches by broadcasting": ((2**40, 1, 1, 1, 1), (1, 2**40, 1, 1, 1), (1, 1, 1, 1, 1)),
    "batches of nothing": ((2**40, 1, 1, 1, 1), (1, 2**40, 1, 1, 1), (1, 1, 1, 1, 0)),
    "group": ((2**42, 1, 8), (1, 8, 8), (1, 8, 8)),
    **{f"channels 2**{n}, {Lq}": ((Lq, 2**n), (3, 2**n), (3, 4)) for n in (42, 50, 54, 55) for Lq in (1, 20)},
    **{f"channels of v 2**{n}, {Lq}": ((Lq, 4), (3, 4), (3, 2**n)) for n in (42, 50, 54, 55) for Lq in (1, 20)},
}
HUGE_WEIGHTS = {"keys": ((1, 8), (2**56, 8), (2**56, 8)), "squares": ((2**25, 8), (2**25, 8), (2**25, 8))}


def ask(shapes: tuple[tuple[int, ...], ...], dtype: str, weights: bool) -> bool:
    q, k, v = (zeros(*shape, dtype=DTYPES[dtype]) for shape in shapes)
    try:
        harken.attention(q, k, v, return_lse=True, return_weights=weights)
    except (MemoryError, ValueError):
        return False
    return True


def ask_all(dtype: str) -> list[str]:
    """Those that came back with a result."""
    answered = []
    for name, shapes in (HUGE | HUGE_WEIGHTS).items():
        for weights in (True, False) if name in HUGE else (True,):
            print(name, weights, flush=True)  # the last one is what it crashed on
            if ask(shapes, dtype, weights):
                answered.append(name)
    q = np.random.default_rng(0).standard_normal((2, 9, 8))
    assert harken.attention(q, q, q).shape == q.shape
    return answered


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_more_than_there_is(dtype: str) -> None:
    assert in_child(ask_all, dtype, timeout=20) == []


def test_a_limit_on_memory() -> None:
    """Where the system itself says no."""
    output(
        "import resource, numpy, harken;"
        "q = numpy.zeros((4, 3000, 64), 'f4'); harken.attention(q, q, q);"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**23, used + 2**23));"
        "\nfor flags in ({'return_weights': True}, {'return_lse': True}):"
        "\n    try: harken.attention(numpy.broadcast_to(q, (9, *q.shape)), q, q, **flags)"
        "\n    except MemoryError: pass"
        "\n    else: raise SystemExit('enough?')"
        "\nharken.attention(q[:, :500], q, q)"
    )
