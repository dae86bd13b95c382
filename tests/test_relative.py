"""Bias by distance: ALiBi's and T5's sources give the same numbers, and T5's bias takes no (Lq, Lk) array."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from child import in_child
from compare import Array, check, qkv, same_bits
from test_memory import MIB, resident

import harken
from harken import alibi_slopes, relative_bias, t5_buckets


def table_of(buckets: int, heads: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(0).standard_normal((buckets, heads)).astype(dtype)


def slopes_of_the_paper(n: int) -> list[float]:
    """`get_slopes` of the authors' code."""
    if math.log2(n).is_integer():
        return [2 ** (-8 / n * (i + 1)) for i in range(n)]
    closest = 2 ** math.floor(math.log2(n))
    return slopes_of_the_paper(closest) + slopes_of_the_paper(2 * closest)[0::2][: n - closest]


def test_alibi_slopes() -> None:
    for heads in range(1, 130):
        np.testing.assert_allclose(alibi_slopes(heads), slopes_of_the_paper(heads), rtol=1e-14)
    q, k, v = qkv(np.float64, 5, 9, Hq=12)
    distance = np.abs(np.arange(9) - np.arange(4, 9)[:, None])
    dense = harken.reference(q, k, v, bias=-alibi_slopes(12)[:, None, None] * distance)
    np.testing.assert_allclose(harken.attention(q, k, v, alibi=alibi_slopes(12)), dense, atol=1e-14)


def bucket_of(rp: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """`_relative_position_bucket` of T5, for one position, with logarithms of float32."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if rp > 0 else 0
        rp = abs(rp)
    else:
        rp = -min(rp, 0)
    exact = buckets // 2
    if rp < exact:
        return first + rp
    share = np.log(np.float32(rp) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    return first + min(buckets - 1, exact + int(share * np.float32(buckets - exact)))


@pytest.mark.parametrize(
    ("buckets", "max_distance", "bidirectional"),
    [
        (32, 128, True),
        (32, 128, False),
        (64, 256, True),
        (320, 800, True),
        (12, 100, False),
        (4, 5, True),
        (2, 3, False),
    ],
)
def test_t5_buckets(buckets: int, max_distance: int, bidirectional: bool) -> None:
    distance = np.arange(-1000, 1001)
    found = t5_buckets(distance, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional)
    assert found.tolist() == [bucket_of(d, bidirectional, buckets, max_distance) for d in distance.tolist()]
    assert found.min() == 0
    assert found.max() == buckets - 1


def dense_bias(table: Array, Lq: int, Lk: int, start: int, **options: Any) -> Array:
    """The (H, Lq, Lk) array as T5 makes it."""
    distance = np.arange(Lk) - (np.arange(Lq)[:, None] + start)
    return np.moveaxis(table[t5_buckets(distance, **options)], -1, 0)


@pytest.mark.parametrize(
    ("Lq", "Lk", "q_start"), [(9, 9, None), (1, 300, None), (40, 7, 5), (33, 200, -20), (0, 4, 0), (4, 0, 0)]
)
def test_relative_bias_is_the_dense_bias(
    backend: str, dtype: np.dtype[Any], Lq: int, Lk: int, q_start: int | None
) -> None:
    for bidirectional in (True, False):
        table = table_of(32, 2, dtype=dtype)
        bias = relative_bias(table, Lq, Lk, q_start=q_start, bidirectional=bidirectional)
        dense = dense_bias(table, Lq, Lk, Lk - Lq if q_start is None else q_start, bidirectional=bidirectional)
        same_bits(bias, dense)
        assert not bias.flags.writeable or bias.size == 0
        q, k, v = qkv(dtype, Lq, Lk)
        options: dict[str, Any] = {"scale": 1.0, "causal": not bidirectional, "q_start": q_start}
        same_bits(harken.attention(q, k, v, bias=bias, **options), harken.attention(q, k, v, bias=dense, **options))
        if Lq * Lk:
            check(q, k, v, bias=bias, **options)


def test_relative_bias_of_a_batch_at_different_positions(backend: str) -> None:
    table, starts = table_of(32, 4), np.array([0, 17, 60])
    q, k, v = qkv(np.float32, 3, 64, Hq=4, batch=(3,))
    bias = relative_bias(table, 3, 64, q_start=starts, bidirectional=False)
    assert bias.shape == (3, 4, 3, 64)
    for b, start in enumerate(starts.tolist()):
        same_bits(bias[b], dense_bias(table, 3, 64, start, bidirectional=False))
    check(q, k, v, bias=bias, q_start=starts, causal=True)


def growth(L: int) -> int:
    """By how much the memory of the process grows at most while a bias is made and attended with."""
    q, k, v = qkv(np.float32, L, L, D=8, Hq=2)
    table, out = table_of(32, 2), np.zeros_like(q)
    harken.attention(q[:, :300], k[:, :300], v[:, :300], bias=relative_bias(table, 300, 300))
    before = resident("VmHWM")
    harken.attention(q, k, v, bias=relative_bias(table, L, L), out=out)
    return resident("VmHWM") - before


def test_relative_bias_takes_memory_for_the_distances_only() -> None:
    bias = relative_bias(table_of(32, 8), 2**20, 2**20)
    assert bias.shape == (8, 2**20, 2**20)
    assert bias.strides == (4 * (2**21 - 1), -4, 4)
    assert in_child(growth, 32768) < 24 * MIB  # one (Lq, Lk) array is 4096


TABLE = np.ones((10, 4), np.float32)

WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (alibi_slopes, {"heads": 0}, ValueError, "heads is 0: wanted 1 or more"),
    (t5_buckets, {"distance": [0.5]}, TypeError,
     "distance is float64: wanted integers, the position of a key less that of a query"),
    (t5_buckets, {"distance": 3, "buckets": 3}, ValueError, "buckets is 3: wanted 4 or more, 2 for each side"),
    (t5_buckets, {"distance": 3, "max_distance": 8}, ValueError,
     "max_distance is 8: wanted more than 8, up to which each distance has a bucket"),
    (relative_bias, {"table": TABLE[0], "Lq": 2, "Lk": 2}, ValueError, "table has shape (4,): wanted (buckets, H)"),
    (relative_bias, {"table": TABLE, "Lq": -2, "Lk": 2}, ValueError, "Lq is -2 and Lk is 2: wanted 0 or more"),
    (relative_bias, {"table": TABLE, "Lq": 2, "Lk": 2, "q_start": 0.5}, TypeError,
     "q_start is float64: wanted integers, one for all or one for each batch row"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "call", "error", "text"), WRONG, ids=[text[:50] for *_, text in WRONG])
def test_mistakes(function: Any, call: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        function(**call)
    assert str(caught.value) == text
