"""ONNX models on harken: Attention and the operators around it, for the evaluator that comes with the package onnx.

>>> import numpy as np
>>> import onnx.parser
>>> from onnx.reference import ReferenceEvaluator
>>> import harken.onnx
>>> model = onnx.parser.parse_model('''
...     <ir_version: 10, opset_import: ["": 23]>
...     layer (float[B, 4, L, 8] q, float[B, 2, S, 8] k, float[B, 2, S, 8] v) => (float[B, 4, L, 8] y)
...     { y = Attention <is_causal = 1> (q, k, v) }
... ''')
>>> rng = np.random.default_rng(0)
>>> q, k, v = (rng.standard_normal((1, heads, 5, 8), np.float32) for heads in (4, 2, 2))
>>> [y] = ReferenceEvaluator(model, new_ops=harken.onnx.OPS).run(None, {"q": q, "k": k, "v": v})
>>> bool((y == harken.attention(q, k, v, causal=True)).all())
True

The evaluator hands `new_ops` not on to the functions of a model; `onnx.inliner.inline_local_functions` inlines them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import harken

try:
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype
    from onnx.reference.op_run import OpRun
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("harken.onnx needs onnx: pip install 'harken[onnx]'", name=error.name) from None

Array = NDArray[Any]


class Operator(OpRun):
    """An operator whose outputs may be None where the node gives them no name."""

    def _check_and_fix_outputs(self, res: tuple[Any, ...]) -> tuple[Any, ...]:
        return res


class Attention(Operator):
    """Attention of opsets 23, 24 and 25, by `harken.attention`.

    The softmax is computed in float32, in float64 for float64 input or `softmax_precision`, and the result is rounded
    once: never less exact than the model asks for. Modes 0 to 2 of `qk_matmul_output` are a product in NumPy where they
    are asked for; no (Lq, Lk) array exists where they are not. The rules are those of ONNX 1.23, which mended older
    ones: the softcap comes before the mask, causality counts from the past, and a row that sees nothing is 0.
    """

    def _run(
        self,
        Q: Array,
        K: Array,
        V: Array,
        attn_mask: Array | None = None,
        past_key: Array | None = None,
        past_value: Array | None = None,
        nonpad_kv_seqlen: Array | None = None,
        *,
        scale: float | None = None,
        is_causal: int = 0,
        q_num_heads: int | None = None,
        kv_num_heads: int | None = None,
        softmax_precision: int | None = None,
        softcap: float = 0.0,
        qk_matmul_output_mode: int = 0,
        left_window_size: int = -1,
        right_window_size: int = -1,
    ) -> tuple[Array | None, ...]:
        if (past_key is None) != (past_value is None):
            raise ValueError("past_key and past_value belong together: one of them is missing")
        if past_key is not None and nonpad_kv_seqlen is not None:
            raise ValueError("nonpad_kv_seqlen and past_key are two ways to keep a cache: give one of them")
        q = by_heads("Q", Q, "q_num_heads", q_num_heads)
        k = by_heads("K", K, "kv_num_heads", kv_num_heads)
        v = by_heads("V", V, "kv_num_heads", kv_num_heads)
        q_start: Any = 0
        if past_key is not None and past_value is not None:
            q_start = past_key.shape[2]
            k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
        lengths = None
        if nonpad_kv_seqlen is not None:
            lengths = nonpad_kv_seqlen.reshape(-1)
            q_start = lengths - q.shape[2]
        mask, bias = attn_mask, None
        if attn_mask is not None and attn_mask.dtype != bool:
            mask, bias = None, attn_mask.astype(np.float64) if attn_mask.dtype.kind in "iu" else attn_mask
        left, right = (None if side < 0 else side for side in (left_window_size, right_window_size))
        seen = Seen(q_start, lengths, mask, bias, bool(is_causal), (left, right))

        names = [*self.output, "", "", ""][:4]
        mode = qk_matmul_output_mode if names[3] else None
        compute = computed_in(softmax_precision, q.dtype, v.dtype)
        (B, Hq, Lq, _), Dv = q.shape, v.shape[3]
        Y = np.empty((B, Lq, Hq * Dv) if Q.ndim == 3 else (B, Hq, Lq, Dv), compute)
        operands = [x.astype(compute, copy=False) for x in (q, k, v, by_heads("Y", Y, "q_num_heads", q_num_heads))]
        scores = attend(operands, seen, scale, softcap or None, q.dtype if mode == 3 else None)
        if mode in (0, 1, 2):
            scores = scores_of(q, k, seen, scale, softcap or None, mode)
        results = Y.astype(q.dtype, copy=False), k, v, scores
        return tuple(x if name else None for x, name in zip(results, names, strict=True))


class RotaryEmbedding(Operator):
    """Rotary position embedding of opset 23, by `harken.rope`."""

    def _run(
        self,
        X: Array,
        cos_cache: Array,
        sin_cache: Array,
        position_ids: Array | None = None,
        *,
        interleaved: int = 0,
        num_heads: int | None = None,
        rotary_embedding_dim: int = 0,
    ) -> tuple[Array]:
        x = by_heads("X", X, "num_heads", num_heads)
        turning = rotary_embedding_dim or x.shape[3]
        if 2 * cos_cache.shape[-1] != turning:
            raise ValueError(
                f"cos_cache has {cos_cache.shape[-1]} columns for {turning} channels that turn: wanted {turning // 2}"
            )
        Y = np.empty(X.shape, X.dtype)
        out = Y if X.ndim == 4 else by_heads("Y", Y, "num_heads", num_heads)
        harken.rope(x, cos_cache, sin_cache, position_ids, interleaved=bool(interleaved), out=out)
        return (Y,)


class RMSNormalization(Operator):
    """Normalization by the root mean square of opset 23, in `stash_type` or the type of X, whichever is wider."""

    def _run(
        self, X: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
    ) -> tuple[Array]:
        stash = tensor_dtype_to_np_dtype(stash_type)
        compute: Any = np.float64 if np.float64 in (stash, X.dtype) else np.float32
        x = X.astype(compute)
        with np.errstate(all="ignore"):
            square = np.mean(x * x, axis=tuple(range(axis % X.ndim, X.ndim)), keepdims=True)
            normalized = (x / np.sqrt(square + compute(epsilon))).astype(X.dtype)
            product = normalized.astype(compute) * scale.astype(compute)
            return (product.astype(scale.dtype),)


class TensorScatter(Operator):
    """The write of new keys or values into a cache of opset 24, each batch row at its own place."""

    def _run(
        self,
        past_cache: Array,
        update: Array,
        write_indices: Array | None = None,
        *,
        axis: int = -2,
        mode: str = "linear",
    ) -> tuple[Array]:
        axis, size = axis % past_cache.ndim, past_cache.shape[axis]
        if axis == 0:
            raise ValueError("axis is 0, which counts the batch: wanted the axis of the sequence")
        wanted = (*past_cache.shape[:axis], update.shape[axis], *past_cache.shape[axis + 1 :])
        if update.ndim != past_cache.ndim or update.shape != wanted or update.shape[axis] > size:
            raise ValueError(
                f"update has shape {update.shape}, past_cache {past_cache.shape}: they may differ in axis {axis} "
                "alone, where update is not the longer one"
            )
        B, L = past_cache.shape[0], update.shape[axis]
        first = np.zeros(B, np.int64) if write_indices is None else write_indices.reshape(B)
        places = first[:, None] + np.arange(L)
        if mode == "circular":
            places %= max(size, 1)
        elif L and B and (places.min() < 0 or places.max() >= size):
            raise ValueError(
                f"write_indices reach from {places.min()} to {places.max()}: past_cache has places 0 to {size - 1}"
            )
        present = past_cache.copy()
        np.moveaxis(present, axis, 1)[np.arange(B)[:, None], places] = np.moveaxis(update, axis, 1)
        return (present,)


OPS: list[type[OpRun]] = [Attention, RotaryEmbedding, RMSNormalization, TensorScatter]


@dataclass(frozen=True)
class Seen:
    """Who may look at whom, in the words of `harken.attention`; keys past the end of a mask are hidden."""

    q_start: Any
    lengths: Array | None
    mask: Array | None
    bias: Array | None
    causal: bool
    window: tuple[int | None, int | None]

    def keys(self, Lk: int) -> int:
        """How many keys the mask reaches."""
        mask = self.bias if self.mask is None else self.mask
        return Lk if mask is None or mask.ndim == 0 else min(Lk, mask.shape[-1])

    def hide(self, S: Array) -> None:
        """Add the bias to scores (B, H, Lq, Lk), and -inf where a query may not look."""
        Lq, Lk = S.shape[-2:]
        reach, per_row = self.keys(Lk), (-1, 1, 1, 1)
        p, j = np.reshape(self.q_start, per_row) + np.arange(Lq)[:, None], np.arange(Lk)
        left, right = self.window
        hidden = np.broadcast_to(j >= reach, S.shape)
        if self.mask is not None:
            S[..., :reach][~np.broadcast_to(self.mask, S[..., :reach].shape)] = -np.inf
        if self.bias is not None:
            S[..., :reach] += self.bias.astype(S.dtype)
        if self.causal:
            hidden = hidden | (j > p)
        if left is not None:
            hidden = hidden | (j < p - left)
        if right is not None:
            hidden = hidden | (j > p + right)
        if self.lengths is not None:
            hidden = hidden | (j >= self.lengths.reshape(per_row))
        S[hidden] = -np.inf


def by_heads(name: str, x: Array, attribute: str, heads: int | None) -> Array:
    """(B, H, L, D), a view where x is (B, L, H D)."""
    if x.ndim == 4:
        return x
    if x.ndim != 3:
        raise ValueError(f"{name} has shape {x.shape}: wanted (B, H, L, D) or (B, L, H D)")
    if not heads or x.shape[2] % heads:
        raise ValueError(f"{name} has shape {x.shape} and {attribute} is {heads}: wanted a divisor of {x.shape[2]}")
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def computed_in(softmax_precision: int | None, *given: np.dtype[Any]) -> np.dtype[Any]:
    """The one type that harken is called with: what is given, or one that holds all of it and what is asked for."""
    types = {*given, *([np.dtype(np.float64)] if softmax_precision == TensorProto.DOUBLE else [])}
    if len(types) == 1:
        return types.pop()
    return np.dtype(np.float64 if np.dtype(np.float64) in types else np.float32)


def attend(
    operands: list[Array], seen: Seen, scale: float | None, softcap: float | None, weights: np.dtype[Any] | None
) -> Array | None:
    """Attention of q, k and v over the keys that the mask reaches, into out; the weights of all keys in a dtype."""
    q, k, v, out = operands
    Lk = k.shape[2]
    reach = seen.keys(Lk)
    options: dict[str, Any] = {
        "mask": seen.mask,
        "bias": seen.bias,
        "causal": seen.causal,
        "window": seen.window,
        "q_start": seen.q_start,
        "kv_lengths": None if seen.lengths is None else np.minimum(seen.lengths, reach),
        "scale": scale,
        "softcap": softcap,
    }
    results = harken.attention(
        q, k[:, :, :reach], v[:, :, :reach], **options, out=out, return_weights=weights is not None
    )
    if weights is None:
        return None
    P = np.zeros((*q.shape[:3], Lk), weights)
    P[..., :reach] = results[1]
    return P


def scores_of(q: Array, k: Array, seen: Seen, scale: float | None, softcap: float | None, mode: int) -> Array:
    """The score of every pair: 0 as it is, 1 after the softcap, 2 after bias and mask, too."""
    B, Hq, Lq, D = q.shape
    Hkv, Lk = k.shape[1:3]
    compute: Any = np.float64 if q.dtype == np.float64 else np.float32
    group = Hq // max(Hkv, 1)
    with np.errstate(all="ignore"):
        rows = q.astype(compute).reshape(B, Hkv, group * Lq, D)  # all queries of a group see the same keys
        S: Array = (rows @ k.astype(compute).swapaxes(2, 3)).reshape(B, Hq, Lq, Lk)
        S *= compute(1 / math.sqrt(max(D, 1)) if scale is None else scale)
        if mode and softcap is not None:
            S = compute(softcap) * np.tanh(S / compute(softcap))
        if mode == 2:
            seen.hide(S)
        return S.astype(q.dtype, copy=False)
