"""`keras.ops.dot_product_attention`, which the attention layers call too, computed by harken."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from harken.attention import attention
from harken.keras.arrays import Array, known, paired, spread
from harken.keras.calls import LeftToKeras, counted

ARGUMENTS = "query key value bias mask scale is_causal flash_attention attn_logits_soft_cap"  # of Keras 3.15
LOWEST = np.float32(-1e38)  # a bias below it is there to hide; what a mask hides counts -2.4e38 in Keras


def exchanged(original: Callable[..., Any], keras: Any) -> Callable[..., Any]:
    """The backend's `dot_product_attention`, by harken where harken can."""

    @functools.wraps(original)
    def dot_product_attention(
        query: Any,
        key: Any,
        value: Any,
        bias: Any = None,
        mask: Any = None,
        scale: Any = None,
        is_causal: bool = False,
        flash_attention: bool | None = None,
        attn_logits_soft_cap: float | None = None,
    ) -> Any:
        def ours() -> Array:
            if flash_attention:
                raise LeftToKeras("flash_attention=True")
            if attn_logits_soft_cap is not None:
                raise LeftToKeras("attn_logits_soft_cap")
            q, k, v = (x if isinstance(x, np.ndarray) else keras.ops.convert_to_tensor(x) for x in (query, key, value))
            dtype = known(keras.backend.result_type(q.dtype, k.dtype, v.dtype))
            q, k, v = (x if x.dtype.name == dtype else keras.ops.cast(x, dtype) for x in (q, k, v))
            added = None if bias is None else keras.ops.convert_to_tensor(bias, dtype=dtype)
            return attend(q, k, v, added, mask, scale, is_causal)

        rest = bias, mask, scale, is_causal, flash_attention, attn_logits_soft_cap
        return counted(ours, lambda: original(query, key, value, *rest))

    return dot_product_attention


def attend(q: Array, k: Array, v: Array, bias: Array | None, mask: Any, scale: Any, causal: bool) -> Array:
    """softmax(scale Q K^T + bias) V for q (B, T, N, H), k (B, S, K, H), v (B, S, K, V), as Keras means it.

    A row whose mask hides every key has the same score everywhere in Keras, and so the mean of all values.
    """
    if q.ndim != 4:
        raise LeftToKeras("not four axes")
    paired(q, k, v, (1,))
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    if scale is not None and np.ndim(scale):
        raise LeftToKeras("scale is an array")
    if mask is not None:
        mask = spread("mask", np.asarray(mask).astype(bool, copy=False), (B, N, T, S))
    if bias is not None:
        bias = spread("bias", bias, (B, N, T, S))
    hidden = None if mask is None else unseen(mask, causal)
    if bias is not None and (low := bias < LOWEST).any():
        blind = unseen(~low if mask is None else ~low & mask, causal)
        if (blind if hidden is None else blind & ~hidden).any():
            raise LeftToKeras("a bias that hides every key of a row")
    scale = 1 / math.sqrt(H) if scale is None else float(scale)
    out = attention(q, k, v, bias=bias, mask=mask, scale=scale, causal=bool(causal), q_start=0, head_axis=-2)
    if hidden is not None and hidden.any():
        mean = v.mean(axis=1, keepdims=True, dtype=np.promote_types(v.dtype, np.float32)).astype(v.dtype)
        rows = np.broadcast_to(hidden, (B, N, T)).swapaxes(1, 2)
        out[rows] = np.broadcast_to(mean.repeat(N // K, axis=2), out.shape)[rows]
    return out


def unseen(mask: Array, causal: bool) -> Array:
    """Which rows of a mask (..., T or 1, S or 1) show no key, be it because of causality: (..., T or 1)."""
    first = mask.argmax(axis=-1)  # the first key that a row shows; 0 where it shows none
    none: Array = ~np.take_along_axis(mask, first[..., None], axis=-1)[..., 0]
    return none | (first > np.arange(first.shape[-1])) if causal else none
