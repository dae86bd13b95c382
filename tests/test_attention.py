"""softmax(Q K') V is right at every size: each tail of each vector width, each depth, each way to share heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import EPSILON, check, close, qkv, same_bits

import harken

Dtype = np.dtype[Any]

QUERIES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 20, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70)
KEYS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 100, 127, 128, 129, 200, 257, 300)
DEPTHS = (*range(1, 18), 23, 24, 31, 32, 33, 40, 48, 63, 64, 65, 72, 80, 95, 96, 97, 127, 128, 129, 160, 192, 255, 256)


@pytest.mark.parametrize("Lq", QUERIES)
def test_every_length(backend: str, dtype: Dtype, Lq: int) -> None:
    for Lk in KEYS:
        check(*qkv(dtype, Lq, Lk, D=8, Dv=5, Hq=1), weights=Lk % 2 == 1)


@pytest.mark.parametrize("Lq", [1, 3, 33])
def test_every_depth(backend: str, dtype: Dtype, Lq: int) -> None:
    for D, Dv in zip(DEPTHS, DEPTHS, strict=True):
        check(*qkv(dtype, Lq, 37, D, Dv, Hq=1), weights=False)
    for D, Dv in zip(DEPTHS, reversed(DEPTHS), strict=True):
        check(*qkv(dtype, Lq, 37, D, Dv, Hq=1), weights=False)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize(
    ("Lq", "Lk"),
    [
        (1, 513), (1, 1024), (1, 1025), (1, 1100), (1, 5000), (4, 2049), (7, 5000), (16, 1100),  # decode, keys split
        (17, 1100), (70, 1100), (128, 128), (129, 257), (255, 129), (256, 256), (257, 300), (300, 513), (520, 257),
    ],
)  # fmt: skip
def test_several_tiles(backend: str, dtype: Dtype, Lq: int, Lk: int, causal: bool) -> None:
    q, k, v = qkv(dtype, Lq, Lk, D=16, Hq=1)
    check(q, k, v, causal=causal, weights=False)


@pytest.mark.parametrize(("Lq", "Lk", "D"), [(1, 1500, 128), (150, 260, 128), (40, 150, 512), (3, 70, 1000)])
def test_large_depth(backend: str, dtype: Dtype, Lq: int, Lk: int, D: int) -> None:
    check(*qkv(dtype, Lq, Lk, D, Hq=1))


@pytest.mark.parametrize("Lq", [1, 5, 16, 17, 40])
@pytest.mark.parametrize(("Hq", "Hkv"), [(4, 4), (4, 2), (6, 3), (8, 1), (12, 4), (15, 3), (32, 1)])
def test_grouped_heads(backend: str, dtype: Dtype, Lq: int, Hq: int, Hkv: int) -> None:
    q, k, v = qkv(dtype, Lq, 45, Hq=Hq, Hkv=Hkv, batch=(2,))
    out = check(q, k, v, causal=True)
    repeated = harken.attention(q, *(np.repeat(x, Hq // Hkv, axis=-3) for x in (k, v)), causal=True)
    close("grouped against repeated", out, repeated, repeated.astype(np.float64), 1e-6)


@pytest.mark.parametrize("Lq", [3, 35])
@pytest.mark.parametrize(
    ("of_q", "of_k", "of_v"),
    [
        ((3,), (3,), ()),
        ((), (3,), (3,)),
        ((3,), (), (1,)),
        ((2, 1), (3,), (1, 1)),
        ((2, 1, 3), (1, 2, 3), (2, 2, 1)),
        ((1, 1, 1, 2), (2, 1, 1, 1), ()),
    ],
)
def test_leading_axes_broadcast(
    backend: str, dtype: Dtype, Lq: int, of_q: tuple[int, ...], of_k: tuple[int, ...], of_v: tuple[int, ...]
) -> None:
    (q, _, _), (_, k, _), (_, _, v) = (qkv(dtype, Lq, 21, batch=batch) for batch in (of_q, of_k, of_v))
    out = check(q, k, v, causal=True)
    batch = np.broadcast_shapes(of_q, of_k, of_v)
    assert out.shape == (*batch, *q.shape[-3:])
    full = [np.broadcast_to(x, (*batch, *x.shape[-3:])) for x in (q, k, v)]  # strides of 0
    same_bits(harken.attention(*full, causal=True), out)


@pytest.mark.parametrize("Lq", [1, 9, 50])
def test_heads_after_length(backend: str, dtype: Dtype, Lq: int) -> None:
    q, k, v = qkv(dtype, Lq, 60, Dv=7, Hq=6, Hkv=2, batch=(2,))
    out = check(q, k, v)
    q, k, v = (np.ascontiguousarray(x.swapaxes(-3, -2)) for x in (q, k, v))
    turned = check(q, k, v, head_axis=-2)
    same_bits(turned.swapaxes(-3, -2), out)


@pytest.mark.parametrize("head_axis", [-3, -2])
@pytest.mark.parametrize("Lq", [1, 10, 50])
def test_one_head_and_no_batch(backend: str, dtype: Dtype, Lq: int, head_axis: int) -> None:
    q, k, v = qkv(dtype, Lq, 19, D=16, Dv=9, Hq=1)
    rows = check(q[0], k[0], v[0], head_axis=head_axis)
    assert rows.shape == (Lq, 9)
    lse, weights = harken.attention(q[0], k[0], v[0], head_axis=head_axis, return_lse=True, return_weights=True)[1:]
    assert (lse.shape, weights.shape) == ((Lq,), (Lq, 19))
    same_bits(harken.attention(q, k, v)[0], rows)
    same_bits(harken.attention(q[None], k[None], v[None])[0, 0], rows)


@pytest.mark.parametrize("Lq", [1, 40])
def test_strides_of_zero(backend: str, dtype: Dtype, Lq: int) -> None:
    q, k, v = qkv(dtype, Lq, 90)
    check(np.broadcast_to(q[..., :1], q.shape), np.broadcast_to(k[:1], k.shape), np.broadcast_to(v[..., :1], v.shape))
    repeated = np.broadcast_to(v[:, :1], v.shape)  # the mean of equal values is the value
    out, value = (x.astype(np.float64) for x in (harken.attention(q, k, repeated), v[:, :1]))
    np.testing.assert_allclose(out, np.broadcast_to(value, out.shape), rtol=max(EPSILON[dtype.name], 1e-5))


def test_many_channels_and_few_keys(backend: str) -> None:
    """The textbook's ten words of 512 channels, where one long chain of additions would err three times as much."""
    for seed in range(20):
        check(*qkv(np.float32, 10, 10, D=512, Hq=1, seed=seed), weights=False)
