"""A call of Keras with harken and without it: the same to rounding, and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compare import EPSILON, Array

import harken
import harken.keras
from harken.keras import Calls

keras = pytest.importorskip("keras")

# Keras rounds scores and weights to the dtype.
CLOSE = {"float32": 4e-6, "float16": 6 * EPSILON["float16"], "bfloat16": 6 * EPSILON["bfloat16"]}
ONE = Calls(1, {})


def both(call: Callable[[], Any], counted: Calls = ONE, close: float | None = None) -> Any:
    """What the call gives with harken, having compared it to what Keras gives alone, and who computed."""
    expected = call()
    with harken.keras.enable():
        actual = call()
    assert harken.keras.calls() == counted
    for a, b in zip(*(x if isinstance(x, (tuple, list)) else (x,) for x in (actual, expected)), strict=True):
        assert (type(a), a.shape, a.dtype) == (type(b), b.shape, b.dtype)
        wide, exact = a.astype(np.float64), b.astype(np.float64)
        assert np.isfinite(exact).all()
        allowed = CLOSE[a.dtype.name] if close is None else close
        assert np.abs(wide - exact).max(initial=0) <= allowed * max(1, np.abs(exact).max(initial=0))
    return actual


def left(why: str, n: int = 1) -> Calls:
    return Calls(0, {why: n})


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def some(*shape: int, share: float = 0.6) -> Array:
    """A mask in which every last axis shows its first key."""
    mask: Array = np.random.default_rng(shape).random(shape) < share
    mask[..., 0] = True
    return mask


def multi_head(N: int = 4, H: int = 8, **settings: Any) -> Any:
    return keras.layers.MultiHeadAttention(N, H, bias_initializer="glorot_uniform", **settings)


def grouped(N: int = 4, H: int = 8, **settings: Any) -> Any:
    return keras.layers.GroupQueryAttention(H, N, 2, bias_initializer="glorot_uniform", **settings)
