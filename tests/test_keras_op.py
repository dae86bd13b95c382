"""`keras.ops.dot_product_attention` gives the same by harken, under every option, and Keras gets what harken leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import DTYPES, EPSILON, Array
from with_keras import ONE, both, keras, left, normal, some

import harken
import harken.keras
from harken.keras import Calls

BFLOAT16 = DTYPES["bfloat16"]


def qkv(
    dtype: Any = np.float32, B: int = 2, T: int = 9, S: int = 11, N: int = 4, K: int = 4, H: int = 8
) -> list[Array]:
    """q (B, T, N, H), k (B, S, K, H), v (B, S, K, H + 3)."""
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H + 3)
    return [normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.0, 0.3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("mask", [None, (), (11,), (9, 11), (2, 1, 9, 11), (4, 1, 11), (2, 4, 9, 1), (1, 1, 9, 11)])
def test_op(dtype: Any, mask: Any, biased: bool, scale: float | None, causal: bool) -> None:
    arrays = qkv(dtype)
    bias = normal(4, 9, 11, dtype=dtype) if biased else None
    shown = None if mask is None else some(*mask) if mask else np.array(True)
    options = {"bias": bias, "mask": shown, "scale": scale, "is_causal": causal}
    both(lambda: keras.ops.dot_product_attention(*arrays, **options))


def test_op_on_every_backend(backend: str, dtype: Any) -> None:
    arrays = qkv(dtype, T=150, S=170, H=64)
    mask = some(2, 1, 150, 170)
    both(lambda: keras.ops.dot_product_attention(*arrays, mask=mask, is_causal=True))


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 40), (40, 1), (5, 40), (40, 5)])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (6, 6), (6, 1)])
def test_op_of_every_size(B: int, N: int, K: int, T: int, S: int) -> None:
    arrays = qkv(np.float32, B, T, S, N, K)
    for causal in (False, True):
        both(lambda causal=causal: keras.ops.dot_product_attention(*arrays, is_causal=causal))


def test_grouped_heads_mean_what_keras_says_they_mean(dtype: Any) -> None:
    q, k, v = qkv(dtype, N=6, K=2)
    repeated = [q, k.repeat(3, axis=2), v.repeat(3, axis=2)]
    with pytest.raises(ValueError, match="could not be broadcast"):
        keras.ops.dot_product_attention(q, k, v)
    expected = both(lambda: keras.ops.dot_product_attention(*repeated))
    with harken.keras.enable():
        assert np.array_equal(keras.ops.dot_product_attention(q, k, v), expected)


def test_op_takes_what_keras_takes() -> None:
    q, k, v = qkv()
    both(lambda: keras.ops.dot_product_attention(q.tolist(), keras.Variable(k), v))
    both(lambda: keras.ops.dot_product_attention(q.astype(np.float16), k, v))
    both(lambda: keras.ops.dot_product_attention(q.astype(BFLOAT16), k.astype(BFLOAT16), v))
    both(lambda: keras.ops.dot_product_attention(q.astype(np.float64), k, v, bias=np.arange(11)))
    both(lambda: keras.ops.dot_product_attention(q[:, ::2, ::-1], k[:, ::-1], v.transpose(0, 1, 2, 3)))
    both(lambda: keras.ops.dot_product_attention(q, k, v, mask=some(9, 11) * 2.5, flash_attention=False))
    both(lambda: keras.ops.dot_product_attention(q, k, v, scale=np.float64(0.2)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("N", "K"), [(4, 4), (4, 1)])
def test_row_that_sees_nothing_is_the_mean_of_all_values(dtype: Any, causal: bool, N: int, K: int) -> None:
    q, k, v = qkv(dtype, N=N, K=K)
    mask = some(2, N, 9, 11)
    mask[0, 1, 3] = False
    mask[1, :, 5:] = False
    mask[0, 2, 4] = np.arange(11) > 4  # causality hides the others
    out = both(lambda: keras.ops.dot_product_attention(q, k, v, mask=mask, is_causal=causal))
    mean = v.astype(np.float64).mean(axis=1).repeat(N // K, axis=1)
    tolerance = 4 * EPSILON[out.dtype.name]
    assert np.abs(out[1, 7].astype(np.float64) - mean[1]).max() < tolerance
    assert bool(np.abs(out[0, 4, 2].astype(np.float64) - mean[0, 2]).max() < tolerance) is causal
    both(lambda: keras.ops.dot_product_attention(q, k, v, mask=np.zeros((2, 1, 1, 1)), is_causal=causal))


@pytest.mark.parametrize("lowest", [-1e9, np.finfo(np.float32).min])
def test_bias_that_hides(lowest: float) -> None:
    arrays, mask = qkv(), some(9, 11)
    bias = np.where(some(2, 1, 9, 11), 0, lowest).astype(np.float32)
    both(lambda: keras.ops.dot_product_attention(*arrays, bias=bias, mask=mask))
    bias[1, 0, 4] = lowest
    counted = left("a bias that hides every key of a row") if lowest < -1e38 else ONE
    both(lambda: keras.ops.dot_product_attention(*arrays, bias=bias), counted)
    mask[4] = False  # then the bias of this row is not read
    both(lambda: keras.ops.dot_product_attention(*arrays, bias=bias, mask=mask))
    half = [x.astype(np.float16) for x in arrays]
    both(lambda: keras.ops.dot_product_attention(*half, bias=np.maximum(bias, -6e4), mask=mask))


def test_what_the_op_leaves_to_keras() -> None:
    q, k, v = qkv()
    whole = [np.ones(x.shape, np.int32) for x in (q, k, v)]
    op = keras.ops.dot_product_attention
    both(lambda: op(q, k, v, scale=np.full((4, 1, 1), 0.2)), left("scale is an array"))
    shapes = left("shapes that only broadcasting makes fit, or nothing does")
    both(lambda: op(q[:1], k, v), shapes)
    both(lambda: op(q[:, :, :1], k, v), shapes)
    both(lambda: op(q[:0], k[:0], v[:0]), left("an axis of size 0"))
    with harken.keras.enable():
        assert op(*whole).dtype == np.int32
        assert harken.keras.calls() == left("dtype int32")
        for wrong in ({"flash_attention": True}, {"mask": np.ones((3, 9, 11), bool)}, {"bias": q}):
            with pytest.raises(ValueError, match=r"Flash attention|broadcast"):
                op(q, k, v, **wrong)
        with pytest.raises(ValueError, match="4D inputs"):
            op(q[0], k[0], v[0])
        with pytest.raises(ValueError, match="soft_cap"):
            op(q, k, v, attn_logits_soft_cap=5.0)
        keras.src.backend.nn.dot_product_attention(q, k, v, attn_logits_soft_cap=5.0)
        assert harken.keras.calls() == Calls(
            0,
            {
                "dtype int32": 1,
                "flash_attention=True": 1,
                "a mask that does not broadcast to the scores": 1,
                "a bias that does not broadcast to the scores": 1,
                "not four axes": 1,
                "attn_logits_soft_cap": 1,
            },
        )
