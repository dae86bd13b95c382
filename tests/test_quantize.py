"""Eight bits: what quantising rounds, what smoothing saves, and what softmax sees of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, qkv

import harken

AXES: list[Any] = [-1, -2, (-2, -1), None]


def relative(out: Array, truth: Array) -> float:
    return float(np.linalg.norm(out.astype(float) - truth) / np.linalg.norm(truth))


def offset(Lq: int = 20, Lk: int = 200) -> tuple[Array, Array, Array]:
    """Keys whose channels stand far from 0, as those of language models do."""
    q, k, v = qkv(np.float32, Lq, Lk, D=64, Hq=4, Hkv=2, batch=(2,))
    return q, k + 10 * qkv(np.float32, 1, 2, D=64, Hq=4, Hkv=2, batch=(2,), seed=1)[1][..., :1, :], v


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_nearest_integers(dtype: np.dtype[Any], axis: Any) -> None:
    x = qkv(dtype, 30, 40, D=16, batch=(2,))[1]
    n, scale = harken.quantize(x, axis=axis)
    assert (n.dtype, n.shape, scale.dtype) == (np.int8, x.shape, np.float32)
    assert scale.shape == x.astype(float).max(axis=axis, keepdims=True).shape
    assert np.abs(n.astype(int)).max(axis=axis).min() == 127
    assert (np.abs(n * scale - x.astype(float)) <= scale * (0.5 + 1e-4)).all()


def test_zeros_and_nothing() -> None:
    n, scale = harken.quantize(np.zeros((2, 3, 4), np.float32))
    assert not n.any()
    assert not scale.any()
    for axis in AXES:
        n, scale = harken.quantize(np.zeros((2, 0, 4), np.float32), axis=axis)
        assert n.shape == (2, 0, 4)
    assert harken.smooth(np.zeros((2, 0, 4)))[1].shape == (2, 1, 4)


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_attention_over_integers_is_near(backend: str, axis: Any) -> None:
    q, k, v = qkv(np.float32, 20, 300, D=64, Hq=4, Hkv=2, batch=(2,))
    exact = harken.attention(q, k, v)
    k8, k_scale = harken.quantize(k, axis=axis)
    v8, v_scale = harken.quantize(v, axis=axis)
    assert relative(harken.attention(q, k8, v8, k_scale=k_scale, v_scale=v_scale), exact) < 0.02
    turned = [np.ascontiguousarray(x.swapaxes(-3, -2)) for x in (q, k, v)]
    axis = {-2: -3, (-2, -1): (-3, -1)}.get(axis, axis)
    (k8, k_scale), (v8, v_scale) = (harken.quantize(x, axis=axis) for x in turned[1:])
    out = harken.attention(turned[0], k8, v8, k_scale=k_scale, v_scale=v_scale, head_axis=-2)
    assert relative(out.swapaxes(-3, -2), exact) < 0.02


def test_smoothing_saves_what_an_offset_costs(backend: str) -> None:
    q, k, v = offset()
    exact = harken.reference(q, k, v, dtype=float)
    k8, scale = harken.quantize(k)
    rough = relative(harken.attention(q, k8, v, k_scale=scale), exact)
    smoothed, mean = harken.smooth(k)
    k8, scale = harken.quantize(smoothed)
    assert relative(harken.attention(q, k8, v, k_scale=scale), exact) < rough / 5
    assert mean.shape == (2, 2, 1, 64)
    np.testing.assert_allclose(smoothed + mean, k, rtol=1e-5, atol=1e-5)
    assert abs(smoothed.mean(axis=-2)).max() < 1e-5


def test_lse_and_sinks_see_the_mean(backend: str) -> None:
    q, k, v = offset()
    q = q / 5
    smoothed, mean = harken.smooth(k)
    for scale in (None, 0.05, np.array([0.1, 0.05, 0.0, -0.1])):
        shift = harken.smooth_shift(q, mean, scale)
        assert (shift.shape, shift.dtype) == (q.shape[:-1], np.float32)
        out, lse = harken.attention(q, k, v, scale=scale, return_lse=True)
        again, less = harken.attention(q, smoothed, v, scale=scale, return_lse=True)
        np.testing.assert_allclose(again, out, atol=1e-5)
        np.testing.assert_allclose(less + shift, lse, atol=1e-4)
        assert abs(less - lse).max() > 1
        sinks = {"sinks": [0.0, 1.0, -2.0, 3.0], "causal": True}
        out, lse = harken.attention(q, k, v, scale=scale, **sinks, return_lse=True)
        again, same = harken.attention(q, smoothed, v, scale=scale, **sinks, bias=shift[..., None], return_lse=True)
        np.testing.assert_allclose(again, out, atol=1e-4)
        np.testing.assert_allclose(same, lse, atol=1e-4)


def test_smoothing_in_the_other_layout() -> None:
    q, k, _ = offset()
    smoothed, mean = harken.smooth(k)
    turned, its_mean = harken.smooth(k.swapaxes(-3, -2), head_axis=-2)
    np.testing.assert_array_equal(turned.swapaxes(-3, -2), smoothed)
    shift = harken.smooth_shift(q.swapaxes(-3, -2), its_mean, head_axis=-2)
    np.testing.assert_array_equal(shift, harken.smooth_shift(q, mean))


X = np.ones((2, 3, 4), np.float32)
WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: harken.quantize(X, "int4"), ValueError, "dtype is 'int4': wanted 'int8'"),
    (lambda: harken.quantize(X * np.nan), ValueError,
     "x holds NaN or Inf: wanted finite numbers, which integers times a factor can stand for"),
    (lambda: harken.quantize(np.ones(3, int)), TypeError,
     "x is int64: wanted floating numbers, float64, float32, float16, bfloat16"),
    (lambda: harken.quantize(X, axis=5), ValueError, "axis 5 is out of bounds for array of dimension 3"),
    (lambda: harken.smooth(X[0, 0]), ValueError, "k has shape (4,): wanted at least two axes, (length, channels)"),
    (lambda: harken.smooth(X, head_axis=1), ValueError,
     "head_axis is 1: wanted -3 for (..., H, L, D) or -2 for (..., L, H, D)"),
    (lambda: harken.smooth_shift(X, X), ValueError,
     "mean has shape (2, 3, 4): wanted 1 for the keys, as harken.smooth returns it"),
    (lambda: harken.smooth_shift(X, X[:, :1, :2]), ValueError,
     "q has 4 channels, mean has 2: wanted the mean of q's keys"),
    (lambda: harken.smooth_shift(np.ones((3, 2, 4)), np.ones((2, 1, 4))), ValueError,
     "mean has 2 heads, q has 3: q's heads must be a multiple of k's"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), WRONG, ids=[text for _, _, text in WRONG])
def test_wrong_calls(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text


def test_every_type_is_taken() -> None:
    for name, dtype in DTYPES.items():
        wide = np.float64 if name == "float64" else np.float32
        assert harken.smooth(X.astype(dtype))[0].dtype == wide
        assert harken.quantize(X.astype(dtype))[1].dtype == np.float32
