"""What becomes of q.k before the softmax: scale, cosine, softcap, bias, ALiBi, sinks, each alone and in that order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, check, poisoned, qkv

import harken

Dtype = np.dtype[Any]

rows = pytest.mark.parametrize("Lq", [1, 5, 17, 70])


def call(dtype: Dtype, Lq: int, Lk: int = 150, **shape: Any) -> tuple[Array, Array, Array]:
    """Two batches of four query heads over two key heads."""
    return qkv(dtype, Lq, Lk, **{"Hq": 4, "Hkv": 2, "batch": (2,), **shape})


def normal(*shape: int) -> Array:
    return np.random.default_rng(7).standard_normal(shape)


@rows
@pytest.mark.parametrize(
    "scale",
    [0, 0.0, 1, 0.37, -0.5, 3.0, np.float32(0.2), [0.1, 0.2, 0.3, 0.0], normal(1), normal(2, 4), normal(2, 1)],
    ids=lambda x: str(np.shape(x) or x),
)
def test_scale(backend: str, dtype: Dtype, Lq: int, scale: Any) -> None:
    check(*call(dtype, Lq), scale=scale)


def test_scale_of_nothing_is_not_no_scale(backend: str) -> None:
    q, k, v = call(np.dtype(np.float32), 5)
    mean = np.repeat(v.mean(axis=-2, keepdims=True), 2, axis=1)
    np.testing.assert_allclose(harken.attention(q, k, v, scale=0), np.broadcast_to(mean, q.shape), atol=1e-6)
    assert not np.allclose(harken.attention(q, k, v), harken.attention(q, k, v, scale=1.0), atol=1e-2)


@rows
@pytest.mark.parametrize("scale", [None, 10.0, normal(2, 4)], ids=["1", "10", "heads"])
def test_cosine(backend: str, dtype: Dtype, Lq: int, scale: Any) -> None:
    q, k, v = call(dtype, Lq)
    check(q, k, v, score="cosine", scale=scale)
    q[:, 1, ::2], k[:, 0, 3:40:5], k[0, 1] = 0, 0, 0  # a zero vector looks at everything alike
    check(q, k, v, score="cosine", scale=scale)


def test_cosine_does_not_see_length(backend: str) -> None:
    q, k, v = call(np.dtype(np.float64), 20)
    lengths = np.exp(normal(20, 1)), np.exp(normal(150, 1))
    stretched = harken.attention(q * lengths[0], k * lengths[1], v, score="cosine")
    np.testing.assert_allclose(stretched, harken.attention(q, k, v, score="cosine"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("D", [1, 3, 8, 17, 64, 129])
def test_cosine_of_every_depth(backend: str, dtype: Dtype, D: int) -> None:
    for Lq in (1, 40):
        check(*call(dtype, Lq, 40, D=D), score="cosine", scale=5.0)


@rows
@pytest.mark.parametrize("softcap", [0.01, 1, 5.0, 50.0, np.float64(30)])
def test_softcap(backend: str, dtype: Dtype, Lq: int, softcap: float) -> None:
    check(*call(dtype, Lq), softcap=softcap, scale=2.0)


def test_softcap_of_every_logit(backend: str) -> None:
    """tanh is right from where it is the identity to where it is 1."""
    v = normal(1000, 8).astype(np.float32)
    k = np.concatenate([x * np.logspace(-6, 5, 500) for x in (-1, 1)]).astype(np.float32)[:, None]
    for Lq in (4, 40):
        q = np.linspace(0.5, 2, Lq, dtype=np.float32)[:, None]
        check(q, k, v, softcap=1.0, scale=1.0)
        check(q, k, v, softcap=20.0, scale=1.0)


@rows
@pytest.mark.parametrize("shape", [(), (4,), (1,), (2, 4), (2, 1)], ids=str)
def test_alibi(backend: str, dtype: Dtype, Lq: int, shape: tuple[int, ...]) -> None:
    slopes = 2.0 ** -np.arange(1, 9)[: int(np.prod(shape))].reshape(shape)
    check(*call(dtype, Lq), alibi=slopes)
    check(*call(dtype, Lq), alibi=slopes, causal=True, q_start=np.array([40, -3]))


@rows
@pytest.mark.parametrize("shape", [(), (4,), (1,), (2, 4), (2, 1)], ids=str)
def test_sinks(backend: str, dtype: Dtype, Lq: int, shape: tuple[int, ...]) -> None:
    q, k, v = call(dtype, Lq)
    for sinks in (normal(*shape), 5 + normal(*shape), -30 + normal(*shape), np.full(shape, 200.0)):
        check(q, k, v, sinks=sinks)
    check(q, k, v, sinks=np.full(shape, -np.inf))
    check(q, k, v, sinks=normal(*shape), softcap=2.0, scale=3.0)  # neither capped nor scaled


def test_sinks_take_weight_and_give_no_value(backend: str) -> None:
    q, k, v = call(np.dtype(np.float64), 20)
    out, lse, weights = harken.attention(q, k, v, sinks=np.zeros(4), return_lse=True, return_weights=True)
    plain, plain_lse = harken.attention(q, k, v, return_lse=True)
    share = np.exp(plain_lse) / (1 + np.exp(plain_lse))
    np.testing.assert_allclose(weights.sum(axis=-1), share, rtol=1e-12)
    np.testing.assert_allclose(out, plain * share[..., None], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, np.log1p(np.exp(plain_lse)), rtol=1e-12)


BIASES = [(), (1,), (150,), ("Lq", 1), ("Lq", 150), (4, 1, 1), (4, "Lq", 150), (1, "Lq", 150), (2, 1, 1, 150),
          (2, 4, "Lq", 150), (2, 1, "Lq", 1), (1, 1, 1, 1)]  # fmt: skip


@rows
@pytest.mark.parametrize("shape", BIASES, ids=lambda x: "x".join(map(str, x)) or "scalar")
def test_bias_of_every_shape(backend: str, dtype: Dtype, Lq: int, shape: tuple[int | str, ...]) -> None:
    bias = normal(*(Lq if n == "Lq" else int(n) for n in shape)) if shape else np.array(0.7)
    check(*call(dtype, Lq), bias=bias.astype(dtype), weights=False)


@pytest.mark.parametrize("of", list(DTYPES))
def test_bias_of_every_dtype_and_stride(backend: str, dtype: Dtype, of: str) -> None:
    for Lq in (3, 70):
        bias = normal(4, Lq, 150).astype(DTYPES[of])
        turned = np.ascontiguousarray(bias.swapaxes(-1, -2)).swapaxes(-1, -2)
        for view in (bias, poisoned(bias), poisoned(bias, step=3), turned, bias[..., ::-1]):
            check(*call(dtype, Lq), bias=view, weights=False)


@rows
def test_minus_infinity_in_the_bias(backend: str, dtype: Dtype, Lq: int) -> None:
    q, k, v = call(dtype, Lq)
    bias = np.where(np.random.default_rng(0).random((4, Lq, 150)) < 0.7, -np.inf, 0.0)
    bias[1], bias[2, 0], bias[3, :, :140] = -np.inf, -np.inf, -np.inf  # lonely rows, and tiles of nothing before a key
    out = check(q, k, v, bias=bias.astype(np.float32))
    assert not out[:, 1].any()
    check(q, k, v, bias=bias.astype(np.float32), sinks=np.array([0.0, 1.0, -np.inf, 2.0]))


@rows
@pytest.mark.parametrize("size", [1e2, 1e4, 3e4])
def test_large_logits(backend: str, dtype: Dtype, Lq: int, size: float) -> None:
    q, k, v = call(dtype, Lq)
    check(q, k, v, bias=(size * normal(4, Lq, 150)).astype(np.float32))
    check(q, k, v, bias=np.array(size)), check(q, k, v, bias=np.array(-size))  # a constant changes lse alone
    check(q, k, v, bias=size * np.linspace(-1, 1, 150), alibi=np.full(4, size))
    q, k = np.sign(q), np.sign(k)  # products that every type holds exactly
    check(q, k, v, scale=size / 16)


@rows
def test_rows_that_grow_from_tile_to_tile(backend: str, dtype: Dtype, Lq: int) -> None:
    """The running maximum rises, falls, and jumps at the ends."""
    q, k, v = call(dtype, Lq, 600, D=8)
    up = np.linspace(0, 80, 600)
    for bias in (up, -up, np.where(np.arange(600) == 599, 300.0, up), np.where(np.arange(600) == 0, 300.0, up)):
        check(q, k, v, bias=bias.astype(np.float32), weights=False)


@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize(("Lq", "keys"), [(1, 150), (1, 3000), (4, 1100), (17, 150), (70, 300)])
def test_all_in_their_order(backend: str, dtype: Dtype, Lq: int, keys: int, score: str) -> None:
    """The cap is on the scaled product alone, and the sink is a bare logit, counted once however the keys are split."""
    q, k, v = call(dtype, Lq, keys)
    bias = 4 * normal(Lq, keys).astype(np.float32)
    slopes, sinks, scale = np.array([0.5, 0.1, 0.02, 0.0]), 3 + normal(4), 1 + abs(normal(2, 4))
    check(q, k, v, score=score, scale=scale, softcap=1.5, bias=bias, weights=False)
    check(
        q, k, v, score=score, scale=scale, softcap=1.5, bias=bias, alibi=slopes, sinks=sinks, causal=True, weights=False
    )
