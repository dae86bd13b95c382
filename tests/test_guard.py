"""No byte beside an array is read or written: each lies at the edge of memory that ends the process when touched."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import pytest
from child import in_child
from compare import DTYPES, Array, qkv, same_bits
from guarded import LAYOUTS, Allocator, Place, bounds

import harken

CHANNELS = (*range(1, 18), 20, 23, 24, 31, 32, 33, 40, 48, 63, 64, 65, 100, 128)
LENGTHS = ((1, 1), (1, 67), (2, 128), (5, 64), (8, 63), (12, 130), (13, 33), (17, 129), (33, 65), (64, 16), (70, 131))
RANGES = ((1, 1030, 9, 64), (3, 200, 64, 32), (4, 1030, 64, 5), (20, 4100, 4, 3))
B, Hq, Hkv = 2, 2, 1


def everything(Lq: int, Lk: int, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "mask": rng.random((1, Lq, Lk)) < 0.8,
        "bias": rng.standard_normal((Hq, Lq, Lk)).astype(dtype),
        "q_start": 3,
        "causal": True,
        "kv_lengths": np.array([Lk, Lk - 1]),
        "q_lengths": np.array([Lq, Lq - 1]),
        "alibi": np.array([0.1, 0.2]),
        "sinks": np.array([0.3, 0.4]),
        "scale": np.array([0.5, 0.6]),
        "score": "cosine",
    }


class Guard:
    """One place for each argument, filled again for each call."""

    def __init__(self) -> None:
        self.places = {name: Place(800, 320) for name in ("q", "k", "v", "mask", "bias", "k_scale", "v_scale", "out")}
        self.small = {name: Place(1, 4) for name in ("kv_lengths", "q_lengths", "alibi", "sinks", "scale")}
        self.allocators = Allocator(end=True), Allocator(end=False)

    def check(self, q: Array, k: Array, v: Array, layout: str, options: dict[str, Any]) -> None:
        print(layout, q.dtype, q.shape, k.shape, v.shape, list(options), flush=True)  # the last one is the culprit
        expected = harken.attention(q, k, v, **options, return_lse=True)
        placed: dict[str, Any] = dict(options)
        for name, x in zip("qkv", (q, k, v), strict=True):
            placed[name] = self.places[name].put(x, layout)
        for name in options:
            if name in self.places:
                placed[name] = self.places[name].put(options[name], layout)
            elif name in self.small:
                placed[name] = self.small[name].put(options[name], "begin" if layout == "begin" else "end")
        out = self.places["out"].empty(expected[0].shape, q.dtype, layout)
        allocator = self.allocators["begin" in layout]
        allocator.count = 0
        with allocator.guarded():
            _, lse = harken.attention(**placed, out=out, return_lse=True)
            fresh = harken.attention(**placed)
            _, _, weights = harken.attention(**placed, return_lse=True, return_weights=True)
        assert allocator.count >= 5  # lse, out, out, lse, weights
        same_bits(out, expected[0])
        same_bits(fresh, expected[0])
        same_bits(lse, expected[1])
        del lse, fresh, weights
        allocator.forget()


def sweep(backend: str, name: str) -> None:
    harken.set_backend(backend)
    guard, dtype = Guard(), DTYPES[name]
    lengths, values = itertools.cycle(LENGTHS), itertools.cycle(CHANNELS[::-1])
    for (D, layout), kind in itertools.product(itertools.product(CHANNELS, LAYOUTS), ("plain", "everything")):
        (Lq, Lk), Dv = next(lengths), next(values)
        options = everything(Lq, Lk, dtype) if kind == "everything" else {}
        guard.check(*qkv(dtype, Lq, Lk, D=D, Dv=Dv, Hq=Hq, Hkv=Hkv, batch=(B,)), layout, options)
    for (Lq, Lk, D, Dv), layout, kind in itertools.product(RANGES, LAYOUTS[:5], ("plain", "everything")):
        if Lq * Lk * dtype.itemsize * Hq < 300_000 or kind == "plain":
            options = everything(Lq, Lk, dtype) if kind == "everything" else {}
            guard.check(*qkv(dtype, Lq, Lk, D=D, Dv=Dv, Hq=Hq, Hkv=Hkv, batch=(B,)), layout, options)


def sweep_stored(backend: str) -> None:
    harken.set_backend(backend)
    guard = Guard()
    for D, layout, (Lq, Lk) in itertools.product(
        (1, 16, 23, 64, 128), LAYOUTS, ((1, 67), (4, 64), (33, 65), (2, 1030))
    ):
        if Lk < 1000 or not layout.startswith("rows"):  # which have room for fewer
            q, k, v = qkv(np.float32, Lq, Lk, D=D, Dv=D, Hq=Hq, Hkv=Hkv, batch=(B,))
            (k8, k_scale), (v8, v_scale) = harken.quantize(k), harken.quantize(v)
            guard.check(q, k8, v8, layout, {"k_scale": k_scale, "v_scale": v_scale})
            if layout == "end":
                guard.check(q, k.astype(DTYPES["bfloat16"]), v.astype(np.float16), layout, {})


def test_nothing_beside_stored_keys_is_touched(backend: str) -> None:
    in_child(sweep_stored, backend)


@pytest.mark.parametrize("name", DTYPES)
def test_nothing_beside_an_array_is_touched(backend: str, name: str) -> None:
    in_child(sweep, backend, name)


def beside(layout: str) -> None:
    """Reads every byte of an array, and then the first one that is not its own."""
    x = Place(1, 9).put(np.ones((2, 3, 4)), layout)
    assert x.sum() == 24
    row = x[1, 1] if layout.startswith("rows") else x
    low, high = bounds(row.shape, row.strides, row.itemsize)
    edge = row.ctypes.data + (low - 1 if "begin" in layout else high)
    print("inside", flush=True)
    print(ctypes.c_char.from_address(edge).value, flush=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_guard_guards(layout: str) -> None:
    with pytest.raises(AssertionError, match=r"ended with -11\s+inside\s+Fatal"):
        in_child(beside, layout)
