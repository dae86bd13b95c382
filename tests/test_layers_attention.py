"""Attention as a layer without heads: of a sequence to itself, and by additive scores, with padding and masks."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compare import Array
from test_layers import BOTH, near, normal

import harken
from harken import layers
from harken.masks import Causal, Window


def weights_of(scores: Array, seen: Array) -> Array:
    scores = np.where(seen, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        p = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-1e300))
        return np.where(seen.any(axis=-1, keepdims=True), p / p.sum(axis=-1, keepdims=True), 0)


@BOTH
@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
def test_self_attention(dtype: str, score: Any, batch: tuple[int, ...]) -> None:
    x = normal(*batch, 7, 12, dtype=dtype)
    exact = x.astype(np.float64)
    unit = exact / np.linalg.norm(exact, axis=-1, keepdims=True)
    i, j = np.ogrid[:7, :7]
    for scale, causal, window, lengths, mask in itertools.product(
        [None, 0.3], [False, True], [None, (2, 1)], [None, 5, [7, 0, 4]], [None, normal(7, 7) > 0, Window(3, 3)]
    ):
        if isinstance(lengths, list) and batch[-1:] != (3,):
            continue
        default = 1 / math.sqrt(12) if score == "dot" else 1
        scores = (default if scale is None else scale) * (
            exact @ exact.swapaxes(-1, -2) if score == "dot" else unit @ unit.swapaxes(-1, -2)
        )
        many = np.asarray(7 if lengths is None else lengths)[..., None, None]
        seen = np.broadcast_to((j < many) & (i < many), scores.shape)
        seen = seen & ((j <= i) | (not causal))
        seen = seen & ((i - 2 <= j) & (j <= i + 1) | (window is None))
        seen = seen & (np.abs(i - j) <= 3 if isinstance(mask, Window) else True if mask is None else mask)
        p = weights_of(scores, seen)
        layer = layers.SelfAttention(12, score, scale, dtype=dtype)
        y, weights = layer(x, lengths=lengths, mask=mask, causal=causal, window=window, return_weights=True)
        near(y, p @ exact)
        near(weights, p)
        assert y.dtype == weights.dtype == dtype
        near(layer(x, lengths=lengths, mask=mask, causal=causal, window=window), p @ exact)


def test_self_attention_of_the_textbook() -> None:
    x = normal(10, 512, dtype=np.float32)
    assert np.array_equal(layers.SelfAttention(512)(x), harken.attention(x, x, x))
    many = normal(4, 10, 512, dtype=np.float32)
    assert np.array_equal(layers.SelfAttention(512)(many)[2], layers.SelfAttention(512)(many[2]))
    masks, layer = normal(4, 10, 10) > 0, layers.SelfAttention(512)
    assert np.array_equal(layer(many, mask=masks)[2], layer(many[2], mask=masks[2]))
    assert np.array_equal(layer(many, mask=Causal()), layer(many, causal=True))
    many[1, 6:] = np.nan
    y = layers.SelfAttention(512)(many, lengths=[10, 6, 1, 0])
    assert np.array_equal(y[1, :6], layers.SelfAttention(512)(many[1, :6]))
    assert (y[1, 6:] == 0).all()
    assert (y[3] == 0).all()


@BOTH
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("use_scale", [False, True])
def test_additive_attention(dtype: str, bias: bool, use_scale: bool) -> None:
    layer = layers.AdditiveAttention(3, 4, 5, bias=bias, use_scale=use_scale, dtype=dtype, rng=1)
    query, key, value = normal(2, 6, 3, dtype=dtype), normal(2, 7, 4, dtype=dtype), normal(2, 7, 9, dtype=dtype)
    state = {name: x.astype(np.float64) for name, x in layer.state().items()}
    q = query @ state["q_proj.weight"].T + state.get("q_proj.bias", 0)
    k = key @ state["k_proj.weight"].T + state.get("k_proj.bias", 0)
    scores = (np.tanh(q[:, :, None] + k[:, None]) * state.get("w", 1)).sum(axis=-1)
    i, j = np.ogrid[:6, :7]
    for mask, causal in itertools.product([None, normal(2, 6, 7) > 0, normal(7) > 0], [False, True]):
        lengths = np.array([7, 3])[:, None, None]
        seen = np.broadcast_to(j < lengths, scores.shape) & (True if mask is None else mask)
        seen = seen & ((j <= i + lengths - 6) | (not causal))
        p = weights_of(scores, seen)
        y, weights = layer(query, key, value, kv_lengths=[7, 3], mask=mask, causal=causal, return_weights=True)
        near(y, p @ value.astype(np.float64), 16)
        near(weights, p, 16)
    assert np.array_equal(layer(query, key), layer(query, key, key))
    assert (layer(query, key, q_lengths=[6, 2])[1, 2:] == 0).all()
    assert np.array_equal(layer(query[0], key)[1], layer(query[0], key[1]))


def test_additive_attention_without_projections_is_that_of_keras() -> None:
    q, k, v, scale = normal(2, 3, 5), normal(2, 4, 5, seed=4), normal(2, 4, 6, seed=5), normal(5)
    layer = layers.AdditiveAttention(5, project=False, dtype=np.float64).load({"w": scale})
    p = weights_of((scale * np.tanh(q[:, :, None] + k[:, None])).sum(-1), np.ones((2, 3, 4), bool))
    near(layer(q, k, v), p @ v, 16)
    plain = layers.AdditiveAttention(5, project=False, use_scale=False, dtype=np.float64)
    assert plain.state() == {}
    near(plain(q, k, v), harken.additive_attention(q[:, None], k[:, None], v[:, None])[:, 0], 0)


X = np.zeros((2, 5, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layers.SelfAttention(8)(X[..., :7]), ValueError,
         "x is (2, 5, 7): wanted 8 numbers along the last axis"),
        (lambda: layers.SelfAttention(8)(X[0, 0]), ValueError, "x is (8,): wanted 2 or more axes"),
        (lambda: layers.SelfAttention(8)(X, mask=np.ones((3, 5, 5), bool)), ValueError,
         "mask is (3, 5, 5): wanted one that broadcasts to (2, 5, 5)"),
        (lambda: layers.SelfAttention(8)(X, lengths=[5, 6]), ValueError,
         "lengths holds 6: wanted 0 to 5, the positions that there are"),
        (lambda: layers.SelfAttention(8)(X, lengths=-1), ValueError, "lengths holds -1: wanted 0 to 5"),
        (lambda: layers.SelfAttention(8)(X, lengths=[1, 2, 3]), ValueError,
         "lengths is (3,): wanted one number, or (2,), one for each row"),
        (lambda: layers.SelfAttention(8)(X, lengths=[1.0, 2.0]), TypeError, "lengths is float64: wanted integers"),
        (lambda: layers.AdditiveAttention(8)(X, X, X[:, :4]), ValueError,
         "value has 4 rows, key 5: keys and values come in pairs"),
        (lambda: layers.AdditiveAttention(8)(X, X[[0, 1, 0]]), ValueError,
         "query is (2, 5, 8), key (3, 5, 8) and value (3, 5, 8): their batch axes do not broadcast"),
    ],
)  # fmt: skip
def test_attention_that_cannot_be(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
