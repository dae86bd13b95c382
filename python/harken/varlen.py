"""Attention over sequences of different lengths, packed end to end: no padding, one run over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken._load import core
from harken.attention import Window, attention
from harken.foreign import any_foreign, in_numpy
from harken.masks.mask import Mask

Array = NDArray[Any]


def attention_varlen(
    q: ArrayLike | Sequence[Array],
    k: ArrayLike | Sequence[Array],
    v: ArrayLike | Sequence[Array],
    cu_seqlens_q: ArrayLike | None = None,
    cu_seqlens_k: ArrayLike | None = None,
    *,
    mask: ArrayLike | Mask | None = None,
    bias: ArrayLike | None = None,
    causal: bool = False,
    window: Window | None = None,
    q_start: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    score: Literal["dot", "cosine", "additive"] = "dot",
    w: ArrayLike | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    k_scale: ArrayLike | None = None,
    v_scale: ArrayLike | None = None,
    precision: Literal["highest", "high", "medium"] = "highest",
    return_lse: bool = False,
    out: Array | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Any:
    """softmax(Q Kᵀ) V for each of n sequences by itself, whose rows lie one behind the other::

        out[a:b] = attention(q[a:b], k[c:d], v[c:d], head_axis=-2)      a, b = cu_seqlens_q[s : s + 2]
                                                                        c, d = cu_seqlens_k[s : s + 2]

    bit for bit. All sequences are computed in one run, the longest tasks first.

    Parameters
    ----------
    q, k, v : array, (Tq, Hq, D), (Tk, Hkv, D), (Tk, Hkv, Dv)
        The rows of all sequences; or lists of n arrays, (Lq, Hq, D), (Lk, Hkv, D) and (Lk, Hkv, Dv) of each sequence,
        which are packed first, and need no cu_seqlens.
    cu_seqlens_q, cu_seqlens_k : integers, (n + 1,)
        Where each sequence begins, and after the last one Tq, Tk: the sums of lengths, 0 first, as FlashAttention [1]_
        takes them. cu_seqlens_k=None: the same as cu_seqlens_q.
    mask, bias : array, broadcasts to (n, Hq, longest q, longest k)
        Of sequence s the corner [s, :, :Lq, :Lk] counts; otherwise as in `attention`. A mask of `harken.masks` stands
        in each sequence as it does there.
    q_start : integers, broadcasts to (n,)
        The position of the first query of each sequence; None: its last query sees its last key.
    scale, alibi, sinks : broadcasts to (n, Hq)
        A number, one for each head, or for each sequence and head.
    w : broadcasts to (n, Hq, D)
        With score="additive".
    k_scale, v_scale : broadcast to k, to v
        As in `attention`; with lists, one factor for each head or channel, or for all.
    causal, window, score, softcap, precision, threads, device
        As in `attention`, for each sequence.
    return_lse : bool
        Return the log-sum-exp too.
    out : ndarray, (Tq, Hq, Dv), optional
        Where the result goes; not with lists.

    Returns
    -------
    out : ndarray, (Tq, Hq, Dv), or a list of n arrays (Lq, Hq, Dv) if lists were given
    lse : ndarray, (Hq, Tq), or a list of n arrays (Hq, Lq)
        If asked for. float32, float64 for float64 input.

    Raises
    ------
    ValueError, TypeError
        As `attention`, and where cu_seqlens do not begin with 0, fall, or do not end with the number of rows.

    Notes
    -----
    Weights are not returned: theirs would be n matrices of different shapes. q_lengths and kv_lengths are what
    cu_seqlens say. There is no dropout and no maximum length to be named.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023,
       arXiv:2307.08691.

    Examples
    --------
    >>> import numpy as np
    >>> import harken
    >>> x = np.random.default_rng(0).normal(size=(12, 2, 64))
    >>> out = harken.attention_varlen(x, x, x, [0, 5, 12], causal=True)
    >>> alone = harken.attention(x[5:], x[5:], x[5:], causal=True, head_axis=-2)
    >>> out.shape, bool((out[5:] == alone).all())
    ((12, 2, 64), True)
    >>> [part.shape for part in harken.attention_varlen([x[:5], x[5:]], [x[:5], x[5:]], [x[:5], x[5:]])]
    [(5, 2, 64), (7, 2, 64)]
    """
    given = dict(locals())
    if any_foreign(given.values()):
        return in_numpy(attention_varlen, given)
    listed = isinstance(q, (list, tuple)) and cu_seqlens_q is None
    if listed:
        if cu_seqlens_k is not None or out is not None:
            name = "out" if cu_seqlens_k is None else "cu_seqlens_k"
            raise TypeError(f"{name} is given with lists: give packed arrays and cu_seqlens_q, or lists alone")
        (q, ends_q), (k, ends_k), (v, ends_v) = _pack("q", q), _pack("k", k), _pack("v", v)
        for name, ends in (("k", ends_k), ("v", ends_v)):
            if len(ends) != len(ends_q):
                raise ValueError(f"{name} has {len(ends) - 1} sequences, q has {len(ends_q) - 1}")
        if (ends_k != ends_v).any():
            s = int(np.flatnonzero(np.diff(ends_k) != np.diff(ends_v))[0])
            raise ValueError(
                f"v[{s}] has {np.diff(ends_v)[s]} rows, k[{s}] has {np.diff(ends_k)[s]}: they come in pairs"
            )
    else:
        q, k, v = _rows("q", q), _rows("k", k), _rows("v", v)
        if cu_seqlens_q is None:
            raise TypeError("cu_seqlens_q is None: give where each sequence begins, or q, k and v as lists of arrays")
        ends_q = _ends("cu_seqlens_q", cu_seqlens_q, "q", len(q))
        ends_k = _ends("cu_seqlens_k", cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k, "k", len(k))
        if len(ends_k) != len(ends_q):
            raise ValueError(f"cu_seqlens_k is for {len(ends_k) - 1} sequences, cu_seqlens_q for {len(ends_q) - 1}")
    if isinstance(mask, Mask):
        mask = mask._for_lengths(np.diff(ends_q), np.diff(ends_k))
    options = {
        "mask": mask, "bias": bias, "causal": causal, "window": window, "q_start": q_start, "scale": scale,
        "score": score, "softcap": softcap, "alibi": alibi, "sinks": sinks,
        "w": w, "k_scale": k_scale, "v_scale": v_scale, "precision": precision,
        "return_lse": return_lse, "out": out, "threads": threads, "device": device, "head_axis": -2,
    }  # fmt: skip
    result = core.attend_packed(attention, q, k, v, ends_q, ends_k, options)
    if not listed:
        return result
    if not return_lse:
        return np.split(result, ends_q[1:-1])
    return np.split(result[0], ends_q[1:-1]), np.split(result[1], ends_q[1:-1], axis=1)


def _rows(name: str, x: Any) -> Array:
    array: Array = np.asanyarray(x)
    if array.ndim != 3:
        raise ValueError(f"{name} has shape {array.shape}: wanted three axes, (rows of all sequences, heads, channels)")
    return array


def _pack(name: str, parts: Any) -> tuple[Array, Array]:
    """The arrays of a list end to end, and where each begins."""
    if not isinstance(parts, (list, tuple)) or len(parts) == 0:
        raise TypeError(f"{name} is {type(parts).__name__}: wanted a list of arrays, one for each sequence")
    arrays = [_rows(f"{name}[{n}]", part) for n, part in enumerate(parts)]
    for n, x in enumerate(arrays):
        if x.shape[1:] != arrays[0].shape[1:] or x.dtype != arrays[0].dtype:
            first = f"{name}[0] is {arrays[0].dtype} {arrays[0].shape}"
            raise ValueError(f"{name}[{n}] is {x.dtype} {x.shape}, {first}: wanted one dtype, heads and channels")
    return np.concatenate(arrays), np.cumsum([0, *map(len, arrays)], dtype=np.int64)


def _ends(name: str, given: ArrayLike, array: str, rows: int) -> Array:
    ends = np.asarray(given)
    if ends.dtype.kind not in "iu":
        raise TypeError(f"{name} is {ends.dtype}: wanted integers")
    if ends.ndim != 1 or len(ends) == 0:
        raise ValueError(
            f"{name} has shape {ends.shape}: wanted (n + 1,), where each of n sequences begins and the end"
        )
    ends = np.ascontiguousarray(ends, np.int64)
    if ends[0] != 0:
        raise ValueError(f"{name} begins with {ends[0]}: wanted 0, the first row")
    if (np.diff(ends) < 0).any():
        s = int(np.flatnonzero(np.diff(ends) < 0)[0])
        raise ValueError(f"{name} falls from {ends[s]} to {ends[s + 1]}: wanted sums of lengths")
    if ends[-1] != rows:
        raise ValueError(f"{name} ends with {ends[-1]}, {array} has {rows} rows: wanted the same")
    return ends
