"""Attention as one writes it in NumPy: the rival of the demo and of the bench."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def numpy_attention(q: Array, k: Array, v: Array, scale: float, causal: bool = False) -> Array:
    """softmax(scale q k^T) v in the type of q, with the (Lq, Lk) array in memory; k and v may have fewer heads."""
    if k.ndim > 2 and k.shape[-3] != q.shape[-3]:
        group = q.shape[-3] // k.shape[-3]
        grouped = q.reshape(*q.shape[:-3], k.shape[-3], group * q.shape[-2], q.shape[-1])
        if not causal:  # all queries of a group see the same keys, so they go through one product
            return numpy_attention(grouped, k, v, scale).reshape(*q.shape[:-1], v.shape[-1])
        k, v = np.repeat(k, group, axis=-3), np.repeat(v, group, axis=-3)
    s = (q * q.dtype.type(scale)) @ k.swapaxes(-1, -2)
    if causal:
        rows, keys = s.shape[-2:]
        s[..., np.triu(np.ones((rows, keys), bool), keys - rows + 1)] = -np.inf
    s -= s.max(axis=-1, keepdims=True)
    np.exp(s, out=s)
    s /= s.sum(axis=-1, keepdims=True)
    out: Array = s @ v
    return out
