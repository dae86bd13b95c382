"""The definition of attention, one equation a line in plain NumPy: what every kernel of harken is tested against."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

if TYPE_CHECKING:
    from harken.masks import Mask

Array = NDArray[Any]

STORAGE = ("float64", "float32", "float16", "bfloat16")
NATIVE = frozenset(map(np.dtype, ("float64", "float32", "float16")))
SCALED = ("int8",)  # keys and values that a factor makes numbers of


def reference(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: ArrayLike | Mask | None = None,
    bias: ArrayLike | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    q_start: ArrayLike | None = None,
    q_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    score: str = "dot",
    w: ArrayLike | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    k_scale: ArrayLike | None = None,
    v_scale: ArrayLike | None = None,
    precision: str = "highest",
    head_axis: int = -3,
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
    threads: int | None = None,
    device: str | None = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """Attention by its definition, with the (Lq, Lk) array in memory: slow, plain, and right.

    The arguments are those of `harken.attention`; `precision`, `threads` and `device` are accepted and change nothing.

    For query i at position p_i = i + q_start (default: kv_length - q_length, the last query sees the last key)::

        s_ij = scale * (q_i . k_j)                     score="dot",    scale = 1/sqrt(D) if None
        s_ij = scale * (q_i . k_j) / (|q_i| |k_j|)     score="cosine", scale = 1 if None, zero vectors give 0
        s_ij = scale * sum_d w_d tanh(q_id + k_jd)     score="additive", scale = 1 if None, w = 1 if None
        s_ij = softcap * tanh(s_ij / softcap)          if softcap is given
        s_ij = s_ij + bias_ij - alibi * |p_i - j|
        p_ij = exp(s_ij - m_i) / l_i                   m_i = max(sink, max_j s_ij)
        l_i  = exp(sink - m_i) + sum_j exp(s_ij - m_i)
        o_i  = sum_j p_ij v_j                          lse_i = m_i + log l_i

    where j runs over the keys that i may see: below kv_length, allowed by `mask`, j <= p_i if `causal`, and
    p_i - left <= j <= p_i + right for `window=(left, right)`, None being unbounded.

    Parameters
    ----------
    q, k, v : array_like, (..., Hq, Lq, D), (..., Hkv, Lk, D), (..., Hkv, Lk, Dv)
        float64, float32, float16 or bfloat16; integers and bools become float64. Beside a q that is not float64, k and
        v are not either, and each may be int8, whose numbers are k_scale * k and v_scale * v. Query head h reads key
        head h // (Hq // Hkv). Leading axes broadcast; 2-D arrays are one head. With `head_axis=-2`, (..., L, H, D).
    mask, bias : array_like, broadcastable to (..., Hq, Lq, Lk)
        bool, True = may look; floating, added to the scores.
    scale, alibi, sinks : array_like, broadcastable to (..., Hq)
    w : array_like, broadcastable to (..., Hq, D), only with score="additive"
    k_scale, v_scale : array_like, broadcastable to k, to v
        Factors, of one type or another; for int8 they must be given.
    q_start, q_lengths, kv_lengths : array_like of int, broadcastable to the leading axes (...)
    dtype : dtype, optional
        Compute in this type and return out, lse and weights in it, unrounded. By default float64 computes in float64,
        everything else in float32, and `out` and `weights` are rounded once to the type of q.

    Returns
    -------
    out : ndarray, (..., Hq, Lq, Dv), or (..., Lq, Hq, Dv) with `head_axis=-2`
    lse : ndarray, (..., Hq, Lq), if `return_lse`
    weights : ndarray, (..., Hq, Lq, Lk), if `return_weights`

    Notes
    -----
    What a query does not see never reaches its row, be it NaN. What it sees does, also with weight 0: 0 * NaN is NaN.
    A row that sees no key, or only logits of -inf, is 0 with lse = sink (-inf without one); a row at or past its
    q_length is 0 with lse = -inf.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.zeros((2, 4)), np.ones((3, 4)), np.array([[0.0], [3.0], [6.0]])
    >>> reference(q, k, v)
    array([[3.],
           [3.]])
    >>> reference(q, k, v, causal=True, return_weights=True)[1].round(3)
    array([[0.5  , 0.5  , 0.   ],
           [0.333, 0.333, 0.333]])
    """
    given = dict(locals())
    if any(hasattr(type(x), "__dlpack__") and not isinstance(x, np.ndarray) for x in given.values()):
        from harken.foreign import in_numpy  # here alone: for NumPy's arrays this file stands by itself

        return in_numpy(reference, given)
    q = _floating("q", q)
    double = q.dtype == np.float64
    k, v = _floating("k", k, () if double else SCALED), _floating("v", v, () if double else SCALED)
    if any((x.dtype == np.float64) != double for x in (k, v)):
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: float64 goes with float64 only")
    if head_axis not in (-3, -2):
        raise ValueError(f"head_axis is {head_axis!r}: give -3 for (..., H, L, D) or -2 for (..., L, H, D)")
    if score not in ("dot", "cosine", "additive"):
        raise ValueError(f"score is {score!r}: give 'dot', 'cosine' or 'additive'")
    if w is not None and score != "additive":
        raise ValueError(f"w is given and score is {score!r}: only score='additive' weighs channels")
    if softcap is not None and not 0 < softcap < np.inf:
        raise ValueError(f"softcap is {softcap!r}: give a finite number above 0, or None for no cap")
    compute = np.dtype(dtype or (np.float64 if double else np.float32))
    one_head = q.ndim == k.ndim == v.ndim == 2
    k, v = _scaled("k", k, k_scale, compute), _scaled("v", v, v_scale, compute)
    Q, K, V = (_heads_first(x, head_axis).astype(compute, order="C") for x in (q, k, v))
    batch = np.broadcast_shapes(Q.shape[:-3], K.shape[:-3], V.shape[:-3])
    (Hq, Lq, D), (Hkv, Lk, _) = Q.shape[-3:], K.shape[-3:]
    if K.shape[-1] != D or V.shape[-3:-1] != (Hkv, Lk):
        raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape}: q and k must agree in D, k and v in H and L")
    if Hq % Hkv if Hkv else Hq:
        raise ValueError(f"k has {Hkv} heads, q has {Hq}: q's heads must be a multiple of k's")
    Q = np.broadcast_to(Q, (*batch, Hq, Lq, D))
    K, V = (x[..., np.arange(Hq) * Hkv // max(Hq, 1), :, :] for x in (K, V))  # h Hkv // Hq = h // (Hq // Hkv)

    def per_head(x: ArrayLike) -> Array:
        return np.broadcast_to(np.asarray(x).astype(compute), (*batch, Hq))[..., None, None]

    # who may look at whom
    q_length = _integers("q_lengths", Lq if q_lengths is None else q_lengths, batch, Lq)
    kv_length = _integers("kv_lengths", Lk if kv_lengths is None else kv_lengths, batch, Lk)
    start = kv_length - q_length if q_start is None else _integers("q_start", q_start, batch)
    start = np.clip(start, -(2**62), 2**62)
    i, j = np.arange(Lq)[:, None], np.arange(Lk)
    ahead = j - (i + start)  # how far key j lies ahead of query i
    visible = np.broadcast_to((i < q_length) & (j < kv_length), (*batch, Hq, Lq, Lk))
    if causal:
        visible = visible & (ahead <= 0)
    left, right = (None, None) if window is None else (None if n is None else operator.index(n) for n in window)
    for side in (left, right):
        if side is not None and side < 0:
            raise ValueError(f"window is {window!r}: a side counts keys, 0 or more; give None for an unbounded side")
    if left is not None:
        visible = visible & (ahead >= -left)
    if right is not None:
        visible = visible & (ahead <= right)
    if hasattr(mask, "_dense"):
        mask = cast("Mask", mask)._array((*batch, Hq), Lq, Lk, q_start, q_lengths, kv_lengths)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool:
            raise TypeError(f"mask is {mask.dtype}: give booleans (mask != 0), or add numbers to the scores with bias=")
        visible = visible & np.broadcast_to(mask, visible.shape)

    zero, never = np.zeros((), compute), np.full((), -np.inf, compute)
    with np.errstate(all="ignore"):
        if score == "cosine":
            Q, K = _unit(Q), _unit(K)
        if scale is None:
            scale = 1 / np.sqrt(max(D, 1)) if score == "dot" else 1.0
        if score == "additive":
            W = np.broadcast_to(1 if w is None else _floating("w", w), (*batch, Hq, D)).astype(compute)
            S = (W[..., None, None, :] * np.tanh(Q[..., :, None, :] + K[..., None, :, :])).sum(axis=-1)
        else:
            S = Q @ K.swapaxes(-1, -2)
        S = per_head(scale) * S
        if softcap is not None:
            cap = np.asarray(softcap, compute)
            S = cap * np.tanh(S / cap)
        if bias is not None:
            S = S + np.broadcast_to(_floating("bias", bias).astype(compute), S.shape)
        if alibi is not None:
            S = S - per_head(alibi) * np.abs(ahead).astype(compute)

        S = np.where(visible, S, never)
        sink = per_head(never if sinks is None else sinks)
        m = np.maximum(S.max(axis=-1, keepdims=True, initial=-np.inf), sink)
        m = np.where(m == never, zero, m)
        P = np.where(visible, np.exp(S - m), zero)
        l = P.sum(axis=-1, keepdims=True) + np.exp(sink - m)
        lse = np.where(i < q_length, m + np.log(l), never)[..., 0]
        P = np.where(visible, P / np.where(l == 0, 1, l), zero)

        finite = np.isfinite(V)
        O = P @ np.where(finite, V, zero)
        for n in np.flatnonzero(~finite.all(axis=(*range(V.ndim - 2), -1))):  # NaN and Inf go where they are seen only
            seen = visible[..., n, None] & ~finite[..., None, n, :]
            O += np.where(seen, P[..., n, None] * V[..., None, n, :], zero)

        if dtype is None:
            O, P = O.astype(q.dtype), P.astype(q.dtype)
    if one_head:
        O, lse, P = O[0], lse[0], P[0]
    elif head_axis == -2:
        O = O.swapaxes(-3, -2)
    if out is not None:
        if out.shape != O.shape or out.dtype != O.dtype:
            raise ValueError(f"out is {out.dtype} {out.shape}: the result is {O.dtype} {O.shape}")
        out[...] = O
        O = out
    results = [O, *([lse] if return_lse else []), *([P] if return_weights else [])]
    return results[0] if len(results) == 1 else tuple(results)


def _floating(name: str, x: ArrayLike, others: tuple[str, ...] = ()) -> Array:
    """The array in one of the four storage types, or others, and native byte order; integers become float64."""
    if type(x) is np.ndarray and x.dtype in NATIVE:  # at once: names of dtypes take 2 us each
        return x
    if isinstance(x, (np.matrix, np.ma.MaskedArray)):
        raise TypeError(f"{name} is a {type(x).__name__}: give a plain array, np.asarray({name})")
    x = np.asarray(x)
    if x.dtype.name in others:
        return x
    if x.dtype.kind in "iu" or (x.dtype == bool and name != "bias"):
        return x.astype(np.float64)
    if x.dtype.name not in STORAGE:
        raise TypeError(f"{name} is {x.dtype}: give one of {', '.join(STORAGE)}")
    return x.astype(x.dtype.newbyteorder("="), copy=False)


def _scaled(name: str, x: Array, factors: ArrayLike | None, compute: np.dtype[Any]) -> Array:
    """What the stored numbers stand for."""
    if factors is None:
        if x.dtype.name in SCALED:
            raise ValueError(f"{name} is {x.dtype} and {name}_scale is missing: give its factors")
        return x
    scaled: Array = x.astype(compute) * np.asarray(factors).astype(compute)
    if scaled.shape != x.shape:
        raise ValueError(f"{name}_scale has shape {np.shape(factors)}: give one that broadcasts to {x.shape}")
    return scaled


def _integers(name: str, x: ArrayLike, batch: tuple[int, ...], most: int | None = None) -> Array:
    """One integer per batch row, shaped to stand against (H, Lq, Lk)."""
    x = np.asarray(x)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{name} is {x.dtype}: give integers")
    if most is not None and ((x < 0) | (x > most)).any():
        raise ValueError(f"{name} reaches from {x.min()} to {x.max()}: give lengths from 0 to {most}")
    return np.broadcast_to(x.astype(np.int64), batch)[..., None, None, None]


def _heads_first(x: Array, head_axis: int) -> Array:
    """(..., H, L, D), whatever the layout."""
    if x.ndim < 2:
        raise ValueError(f"an array of shape {x.shape} was given: q, k and v need at least (L, D)")
    return x[None] if x.ndim == 2 else x.swapaxes(-3, -2) if head_axis == -2 else x


def _unit(x: Array) -> Array:
    """Each vector divided by its length; a zero vector stays zero."""
    length = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    unit: Array = x / np.where(length == 0, np.ones_like(length), length)
    return unit
