"""Layers as their papers write them: plain NumPy, one head and one equation at a time, in the dtype of the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = dict[str, Array]


def linear(x: Array, state: State, name: str) -> Array:
    y = x @ state[f"{name}weight"].T
    return y + state[f"{name}bias"] if f"{name}bias" in state else y


def layer_norm(x: Array, state: State, name: str, eps: float) -> Array:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + x.dtype.type(eps))
    y = y * state[f"{name}.weight"]
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def turned(x: Array, base: float, interleaved: bool, first: int = 0) -> Array:
    """(..., L, D) as complex numbers that turn by their positions."""
    D = x.shape[-1]
    angles = np.arange(first, first + x.shape[-2])[:, None] * base ** (-np.arange(0, D, 2) / D)
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., : D // 2], x[..., D // 2 :])
    z = (a + 1j * b) * np.exp(1j * angles)
    pairs = (z.real, z.imag)
    y = np.stack(pairs, -1).reshape(x.shape) if interleaved else np.concatenate(pairs, -1)
    return y.astype(x.dtype)


def seen(L: int, Lk: int, causal: bool = False, window: Any = None, kv_lengths: Any = None, mask: Any = True) -> Array:
    """Which keys each query sees, broadcastable to (..., H, L, Lk)."""
    i, j = np.arange(L)[:, None], np.arange(Lk)
    who = np.ones((L, Lk), bool)
    if causal:
        who &= j <= i
    left, right = window or (None, None)
    who &= (left is None or j >= i - left) & (right is None or j <= i + right)
    if kv_lengths is not None:
        who = who & (j < np.asarray(kv_lengths)[..., None, None, None])
    both: Array = who & mask
    return both


def heads(
    state: State,
    query: Array,
    key: Array,
    value: Array,
    H: int,
    G: int,
    who: Array,
    *,
    bias: Any = 0.0,
    rope: float | None = None,
    interleaved: bool = False,
    zero: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: Any = None,
    score: str = "dot",
) -> tuple[Array, Array]:
    """y and the weights of attention of many heads between its projections."""
    D = state["out_proj.weight"].shape[1] // H
    if "in_proj_weight" in state:
        W = np.split(state["in_proj_weight"], [H * D, (H + G) * D])
    else:
        W = [state[f"{name}_proj_weight"] for name in "qkv"]
    b = state.get("in_proj_bias", np.zeros((H + 2 * G) * D, query.dtype))
    b = np.split(b, [H * D, (H + G) * D])
    q, k, v = (x @ w.T + c for x, w, c in zip((query, key, value), W, b, strict=True))
    L, Lk = query.shape[-2], key.shape[-2]
    lead = query.shape[:-2]
    who = np.broadcast_to(who, (*lead, H, L, Lk))
    bias = np.broadcast_to(bias, (*lead, H, L, Lk)).astype(query.dtype)
    found, weights = [], []
    for h in range(H):
        g = h // (H // G)
        qh, kh, vh = q[..., h * D : (h + 1) * D], k[..., g * D : (g + 1) * D], v[..., g * D : (g + 1) * D]
        if rope is not None:
            qh, kh = turned(qh, rope, interleaved), turned(kh, rope, interleaved)
        if score == "cosine":
            qh, kh = (x / np.sqrt((x * x).sum(-1, keepdims=True)) for x in (qh, kh))
        usual = 1.0 if score == "cosine" else D**-0.5
        s = qh @ np.swapaxes(kh, -1, -2) * query.dtype.type(usual if scale is None else scale)
        if softcap is not None:
            s = query.dtype.type(softcap) * np.tanh(s / query.dtype.type(softcap))
        s = s + bias[..., h, :, :]
        if alibi is not None:
            s = s - query.dtype.type(alibi[h]) * np.abs(np.arange(L)[:, None] - np.arange(Lk)).astype(query.dtype)
        s = np.where(who[..., h, :, :], s, -np.inf)
        m = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), 0 if zero else -np.inf)
        m = np.where(np.isfinite(m), m, 0).astype(query.dtype)
        e = np.exp(s - m)
        total = e.sum(-1, keepdims=True) + (np.exp(-m) if zero else 0)
        p = e / np.where(total == 0, 1, total)
        weights.append(p)
        found.append(p @ np.where(who.any((-2, -3))[..., None], vh, 0))
    return linear(np.concatenate(found, -1), state, "out_proj."), np.stack(weights, -3)


def inside(state: State, name: str) -> State:
    """The state of an inner layer."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def gelu(x: Array) -> Array:
    from math import erf

    return (x * (1 + np.vectorize(erf, otypes=[float])(x / 2**0.5)) / 2).astype(x.dtype)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def transformer_layer(
    state: State,
    x: Array,
    memory: Any = None,
    *,
    H: int,
    G: int,
    who: Array,
    whom: Any = None,
    act: Any = relu,
    first: bool = False,
    eps: float = 1e-5,
    **more: Any,
) -> Array:
    """TransformerEncoderLayer, or with a memory, seen by `whom`, TransformerDecoderLayer; `more` as in `heads`."""

    def attend(y: Array) -> Array:
        return heads(inside(state, "self_attn"), y, y, y, H, G, who, **more)[0]

    def recall(y: Array) -> Array:
        return heads(inside(state, "multihead_attn"), y, memory, memory, H, G, whom)[0]

    def feed(y: Array) -> Array:
        return linear(act(linear(y, state, "linear1.")), state, "linear2.")

    for n, part in enumerate([attend, feed] if memory is None else [attend, recall, feed], 1):
        if first:
            x = x + part(layer_norm(x, state, f"norm{n}", eps))
        else:
            x = layer_norm(x + part(x), state, f"norm{n}", eps)
    return x
