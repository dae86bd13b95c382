"""What is not seen cannot matter, what is seen must: NaN, infinities, and sizes of zero."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compare import EPSILON, Array, check, qkv, same_bits

import harken

Dtype = np.dtype[Any]

ALL: dict[str, Any] = {"return_lse": True, "return_weights": True}
Lk = 300  # several blocks of keys
rows = pytest.mark.parametrize("Lq", [1, 5, 17, 70])
poisons = pytest.mark.parametrize("poison", [np.nan, np.inf, "garbage"], ids=str)


def call(dtype: Dtype, Lq: int, Lk: int = Lk) -> tuple[Array, Array, Array]:
    """Two batches of four query heads over two key heads."""
    return qkv(dtype, Lq, Lk, D=8, Hq=4, Hkv=2, batch=(2,))


def limits(Lq: int) -> dict[str, tuple[dict[str, Any], Array]]:
    """Options, and what they let (i, j) see: each hides some keys from all queries, some from a few."""
    rng, i, j = np.random.default_rng(3), np.arange(Lq)[:, None], np.arange(Lk)
    some = rng.random((Lq, Lk)) < 0.6
    some[:, 130:260], some[:, 5], some[:, 131] = False, False, True
    near = (j >= i + 190) & (j <= i + 210)
    return {
        "mask of keys": ({"mask": some[0]}, np.broadcast_to(some[0], some.shape)),
        "mask": ({"mask": some}, some),
        "causal": ({"causal": True, "q_start": 140}, j <= i + 140),
        "causal from the end": ({"causal": True}, j <= i + Lk - Lq),
        "window": ({"window": (10, 10), "q_start": 200}, near),
        "lengths": ({"kv_lengths": np.array([201, 201])}, np.broadcast_to(j < 201, some.shape)),
        "mask, window, length": (
            {"mask": some, "window": (150, 10), "q_start": 200, "kv_lengths": 205},
            some & (j >= i + 50) & (j <= i + 210) & (j < 205),
        ),
    }


hidden = pytest.mark.parametrize("how", list(limits(1)))


def put(x: Array, at: Any, poison: float | str) -> Array:
    """A copy with the poison at an index; garbage is memory full of ones, which is a NaN with all bits set."""
    x = x.copy()
    x[at] = np.full(1, 255, "u1").repeat(x.itemsize).view(x.dtype)[0] if poison == "garbage" else poison
    return x


def everything(q: Array, k: Array, v: Array, **options: Any) -> list[Array]:
    return [harken.attention(q, k, v, **options), *harken.attention(q, k, v, **options, **ALL)]


def all_same_bits(actual: list[Array], expected: list[Array]) -> None:
    for x, y in zip(actual, expected, strict=True):
        same_bits(x, y)


@rows
@hidden
@poisons
def test_hidden_keys_change_no_bit(backend: str, dtype: Dtype, Lq: int, how: str, poison: float | str) -> None:
    q, k, v = call(dtype, Lq)
    options, visible = limits(Lq)[how]
    nobody = ~visible.any(axis=0)
    assert nobody.any() or how == "causal from the end"
    clean = everything(q, k, v, **options)
    at = (..., nobody, slice(None))
    spoiled = everything(q, put(k, at, poison), put(v, at, poison), **options)
    all_same_bits(spoiled, clean)


@rows
@hidden
@poisons
def test_hidden_bias_changes_no_bit(backend: str, dtype: Dtype, Lq: int, how: str, poison: float | str) -> None:
    q, k, v = call(dtype, Lq)
    options, visible = limits(Lq)[how]
    bias = np.random.default_rng(4).standard_normal(visible.shape).astype(dtype)
    clean = everything(q, k, v, **options, bias=bias)
    spoiled = everything(q, k, v, **options, bias=put(bias, ~visible, poison))
    all_same_bits(spoiled, clean)


@rows
@poisons
def test_rows_that_are_not_there_change_no_bit(backend: str, dtype: Dtype, Lq: int, poison: float | str) -> None:
    q, k, v = call(dtype, Lq)
    beyond = (..., slice(Lq // 2, None), slice(None))
    clean = everything(q, k, v, q_lengths=Lq // 2)
    all_same_bits(everything(put(q, beyond, poison), k, v, q_lengths=Lq // 2), clean)
    sees_nobody = np.arange(Lq)[:, None] < Lq // 2
    clean = everything(q, k, v, mask=sees_nobody)
    all_same_bits(everything(put(q, beyond, poison), k, v, mask=sees_nobody), clean)


@rows
@hidden
@pytest.mark.parametrize("key", [0, 131, 204])
def test_nan_reaches_who_sees_it(backend: str, dtype: Dtype, Lq: int, how: str, key: int) -> None:
    q, k, v = call(dtype, Lq)
    options, visible = limits(Lq)[how]
    clean, clean_lse = harken.attention(q, k, v, **options, return_lse=True)
    sees = visible[:, key]

    out, lse = harken.attention(q, k, put(v, (1, 1, key, 3), np.nan), **options, return_lse=True)
    spoiled = np.zeros(out.shape, bool)
    spoiled[1, 2:, sees, 3] = True
    np.testing.assert_array_equal(np.isnan(out), spoiled)
    reached = spoiled.any(axis=-1)  # such a row may be computed in another way, from which it differs by rounding
    same_bits(out, clean, where=~reached[..., None])
    same_bits(lse, clean_lse, where=~reached)
    others, slack = ~spoiled & reached[..., None], 8 * EPSILON[dtype.name]
    np.testing.assert_allclose(out[others].astype("f8"), clean[others].astype("f8"), rtol=slack, atol=slack)
    np.testing.assert_allclose(lse, clean_lse, rtol=0, atol=max(1e-5, slack) if dtype.itemsize < 4 else slack)

    out, lse = harken.attention(q, put(k, (1, 1, key, 3), np.nan), v, **options, return_lse=True)
    spoiled[1, 2:, sees] = True
    np.testing.assert_array_equal(np.isnan(out), spoiled)
    np.testing.assert_array_equal(np.isnan(lse), spoiled[..., 0])
    same_bits(out, clean, where=~spoiled)
    same_bits(lse, clean_lse, where=~spoiled[..., 0])


@rows
def test_nan_in_a_query_or_the_bias_stays_in_its_row(backend: str, dtype: Dtype, Lq: int) -> None:
    q, k, v = call(dtype, Lq)
    bias = np.zeros((4, Lq, Lk), dtype)
    clean = harken.attention(q, k, v, bias=bias)
    spoiled = np.zeros(clean.shape, bool)
    spoiled[:, 1, Lq // 2] = True
    for key in (0, 130, Lk - 1):
        out = harken.attention(q, k, v, bias=put(bias, (1, Lq // 2, key), np.nan))
        np.testing.assert_array_equal(np.isnan(out), spoiled)
        same_bits(out, clean, where=~spoiled)
    out = harken.attention(put(q, (slice(None), 1, Lq // 2, 5), np.nan), k, v, bias=bias)
    np.testing.assert_array_equal(np.isnan(out), spoiled)
    same_bits(out, clean, where=~spoiled)


@rows
def test_nan_times_a_weight_of_zero_is_nan(backend: str, dtype: Dtype, Lq: int) -> None:
    q, k, v = call(dtype, Lq)
    v[:, :, 20] = np.nan
    for low in (-np.inf, -5000.0):  # a weight that is zero, and one that becomes it
        for width in (1, 200):  # one key, or more than a block
            bias = np.zeros(Lk, np.float32)
            bias[20 : 20 + width] = low
            assert np.isnan(check(q, k, v, bias=bias)).all()
            assert not np.isnan(check(q, k, v, bias=bias, mask=np.arange(Lk) != 20)).any()


@rows
@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinities_are_those_of_float64(backend: str, dtype: Dtype, Lq: int, score: str, value: float) -> None:
    q, k, v = call(dtype, Lq)
    options: dict[str, Any] = {"score": score, "causal": True, "q_start": Lk - 2 * Lq}
    for key in (0, 130, Lk - 2 * Lq):
        check(q, k, put(v, (0, 1, key, 2), value), **options)
        check(q, k, put(put(v, (0, 1, key, 2), value), (0, 1, 3, 2), -value), **options)
        check(q, put(k, (0, 1, key, 2), value), v, **options)
        check(q, put(k, (0, 1, key, 2), value), v, **options, softcap=2.0)
        check(q, k, v, **options, bias=put(np.zeros((Lq, Lk), np.float32), (Lq // 2, key), value))
    check(put(q, (0, 1, Lq // 2, 2), value), k, v, **options)
    check(put(q, (0, 1, Lq // 2, 2), value), abs(k), v, **options)


def ones(shape: tuple[int, ...], dtype: Dtype) -> Array:
    """Ones; or an empty array at an address where nothing can be read."""
    if 0 not in shape:
        return np.ones(shape, dtype)
    memory = {"shape": shape, "typestr": f"<u{dtype.itemsize}", "data": (64, False), "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=memory)).view(dtype)


@pytest.mark.parametrize("head_axis", [-3, -2])
def test_every_empty_size(backend: str, dtype: Dtype, head_axis: int) -> None:
    for B, H, Lq, keys, D, Dv in itertools.product((0, 1), (0, 2), (0, 1, 20), (0, 130), (0, 4), (0, 4)):
        q, k, v = (ones((B, H, L, d), dtype) for L, d in ((Lq, D), (keys, D), (keys, Dv)))
        if head_axis == -2:
            q, k, v = (x.swapaxes(-3, -2) for x in (q, k, v))
        out = check(q, k, v, head_axis=head_axis, causal=Lq > 1)
        np.testing.assert_allclose(out.astype(float), float(keys > 0), rtol=1e-6)


def test_no_keys(backend: str, dtype: Dtype) -> None:
    for Lq in (1, 40):
        q, k, v = call(dtype, Lq, 0)
        out, lse, weights = harken.attention(q, k, v, **ALL)
        assert out.shape == q.shape
        assert not out.any()
        assert (lse == -np.inf).all()
        assert weights.shape == (2, 4, Lq, 0)
        check(q, k, v, sinks=np.arange(4.0))
    out = harken.attention(np.ones((3, 4)), np.ones((0, 4)), np.ones((0, 2)))
    np.testing.assert_array_equal(out, np.zeros((3, 2)))


def test_no_warning_and_no_trap(backend: str, dtype: Dtype) -> None:
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for Lq in (3, 40):
            q, k, v = call(dtype, Lq)
            harken.attention(q, k, v, kv_lengths=0, return_lse=True)
            harken.attention(q, k, put(v, (..., 5, 2), np.inf), bias=np.full(Lk, -np.inf), return_lse=True)
            harken.attention(put(q, (..., 1, 2), np.nan), k, v, softcap=1e-30, return_lse=True, return_weights=True)


@pytest.mark.parametrize("key_heads", [0, 1, 3])
@pytest.mark.parametrize("Lq", [1, 20, 1000])
def test_no_query_head_is_no_task(backend: str, dtype: Dtype, Lq: int, key_heads: int) -> None:
    q, (k, v) = ones((0, Lq, 4), dtype), np.ones((2, key_heads, 130, 4), dtype)
    assert harken.explain(q, k, v).tasks == 0
    assert harken.attention(q, k, v).shape == (0, Lq, 4)
