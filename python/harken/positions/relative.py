"""Bias by distance: ALiBi's slopes, T5's buckets, and a bias that depends on j - p alone without its (Lq, Lk) array."""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from harken.reference import _floating

Array = NDArray[Any]


def alibi_slopes(heads: int) -> NDArray[np.float64]:
    """Give the slopes of ALiBi, for `alibi=`: how much a key loses with each step of distance.

    For a number of heads n that is a power of two, the paper's geometric sequence; for others that of the power of two
    n below, and of the heads that are left every other of the sequence for 2 n, as its authors' code has it::

        slope_h = 2^(-8 (h + 1) / n)                    h = 0 .. n - 1
        slope_h = 2^(-8 (2 (h - n) + 1) / (2 n))        h = n .. heads - 1

    Parameters
    ----------
    heads : int
        How many query heads, 1 or more.

    Returns
    -------
    ndarray of float64, (heads,)

    Raises
    ------
    ValueError
        heads is below 1.

    References
    ----------
    .. [1] O. Press, N. A. Smith and M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input
       Length Extrapolation", 2021, arXiv:2108.12409.

    Examples
    --------
    >>> from harken import alibi_slopes
    >>> alibi_slopes(4)
    array([0.25      , 0.0625    , 0.015625  , 0.00390625])
    >>> alibi_slopes(6)
    array([0.25      , 0.0625    , 0.015625  , 0.00390625, 0.5       ,
           0.125     ])
    """
    heads = index(heads)
    if heads < 1:
        raise ValueError(f"heads is {heads}: wanted 1 or more")
    n = 1 << (heads.bit_length() - 1)
    h = np.arange(heads)
    return np.exp2(-8 * np.where(h < n, h + 1, h - n + 0.5) / n)


def t5_buckets(
    distance: ArrayLike, *, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> NDArray[np.intp]:
    """Give the bucket of T5 that a relative position j - p falls into: near ones apart, far ones together.

    Of the n buckets of a side the first half, e = n // 2, are for one distance each, and the others grow as powers,
    up to the last one, which holds all from `max_distance` on::

        bucket(d) = d                                                           d < e
        bucket(d) = min(n - 1, e + floor((n - e) log(d / e) / log(max_distance / e)))      else

    Where keys on both sides are told apart, n is buckets // 2, d = |j - p|, and keys after the query have the second n
    buckets. Where only the past counts, n is `buckets` and d = max(p - j, 0).

    Parameters
    ----------
    distance : array_like of int
        j - p, the position of the key less that of the query.
    buckets, max_distance, bidirectional
        `relative_attention_num_buckets` and `relative_attention_max_distance` of a T5 model; its encoder is
        bidirectional, its decoder is not.

    Returns
    -------
    ndarray of int, the shape of distance
        From 0 to buckets - 1. The logarithms are compared as whole numbers: no rounding moves a bound.

    Raises
    ------
    TypeError
        Distances that are no integers.
    ValueError
        Fewer than 2 buckets for a side, or a max_distance that is not above e.

    References
    ----------
    .. [1] C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2019,
       arXiv:1910.10683, section 2.1; the formula is that of its code, `_relative_position_bucket`.

    Examples
    --------
    >>> from harken import t5_buckets
    >>> t5_buckets([-200, -20, -2, -1, 0, 1, 2, 20, 200])
    array([15, 10,  2,  1,  0, 17, 18, 26, 31])
    >>> t5_buckets([-200, -20, -2, -1, 0, 1], bidirectional=False)
    array([31, 17,  2,  1,  0,  0])
    """
    j_p = np.asarray(distance)
    if j_p.dtype.kind not in "iu" and j_p.size:
        raise TypeError(f"distance is {j_p.dtype}: wanted integers, the position of a key less that of a query")
    j_p = j_p.astype(np.int64)
    n, most = index(buckets), index(max_distance)
    n = n // 2 if bidirectional else n
    e = n // 2
    if n < 2:
        raise ValueError(f"buckets is {buckets}: wanted {4 if bidirectional else 2} or more, 2 for each side")
    if most <= e:
        raise ValueError(
            f"max_distance is {max_distance}: wanted more than {e}, up to which each distance has a bucket"
        )
    bounds = [*range(1, e + 1), *(_first(e, most, k, n - e) for k in range(1, n - e))]
    d = np.abs(j_p) if bidirectional else np.maximum(-j_p, 0)
    bucket: NDArray[np.intp] = np.searchsorted(bounds, d, side="right")
    return bucket + n * (j_p > 0) if bidirectional else bucket


def _first(e: int, most: int, k: int, steps: int) -> int:
    """The least whole d with (d / e)^steps >= (most / e)^k."""
    low, high = e, most
    while low < high:
        d = (low + high) // 2
        if d**steps * e**k >= most**k * e**steps:
            high = d
        else:
            low = d + 1
    return low


def relative_bias(
    table: ArrayLike,
    Lq: int,
    Lk: int,
    *,
    q_start: ArrayLike | None = None,
    max_distance: int = 128,
    bidirectional: bool = True,
) -> Array:
    """Give T5's relative position bias, for `bias=`, in memory that grows with Lq + Lk.

    For query i at position p_i = i + q_start::

        bias[h, i, j] = table[bucket(j - p_i), h]

    It depends on j - i alone, so each head needs one number for each of the Lq + Lk - 1 distances; the result is a view
    of these where a step to the next key is one number forward and a step to the next query one number back. The
    kernels of `attention` read it as it is.

    Parameters
    ----------
    table : array_like of floats, (buckets, H)
        The weights of T5's `relative_attention_bias`, in one of the types of `attention`.
    Lq, Lk : int
        How many queries and keys.
    q_start : int or array_like of int, (...), optional
        The position of the first query, for all or for each batch row. By default Lk - Lq, as in `attention`; where
        `kv_lengths` are given to that, give q_start to both.
    max_distance, bidirectional
        As for `t5_buckets`.

    Returns
    -------
    ndarray, (..., H, Lq, Lk)
        A read-only view, in the dtype of the table. A copy of it, or a sum with it, is a dense array.

    Raises
    ------
    TypeError, ValueError
        A table that is not (buckets, H), or too small; sizes and positions that are no integers.

    References
    ----------
    .. [1] C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2019,
       arXiv:1910.10683, section 2.1.

    Examples
    --------
    T5 does not scale its scores.

    >>> import numpy as np
    >>> from harken import attention, relative_bias
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(3, 8, 4096, 64))
    >>> bias = relative_bias(rng.normal(size=(32, 8)), 4096, 4096)
    >>> bias.shape, bias.strides
    ((8, 4096, 4096), (65528, -8, 8))
    >>> attention(q, k, v, bias=bias, scale=1.0).shape
    (8, 4096, 64)
    """
    weights = _floating("table", table)
    if weights.ndim != 2:
        raise ValueError(f"table has shape {weights.shape}: wanted (buckets, H)")
    Lq, Lk = index(Lq), index(Lk)
    if Lq < 0 or Lk < 0:
        raise ValueError(f"Lq is {Lq} and Lk is {Lk}: wanted 0 or more")
    start = np.asarray(Lk - Lq if q_start is None else q_start)
    if start.dtype.kind not in "iu":
        raise TypeError(f"q_start is {start.dtype}: wanted integers, one for all or one for each batch row")
    distance = np.arange(1 - Lq, Lk) - start.astype(np.int64)[..., None]  # j - i - start, from the last query on
    which = t5_buckets(distance, buckets=len(weights), max_distance=max_distance, bidirectional=bidirectional)
    values = np.ascontiguousarray(weights[which].swapaxes(-1, -2))  # (..., H, Lq + Lk - 1)
    if Lq == 0 or Lk == 0:
        return np.zeros((*values.shape[:-1], Lq, Lk), values.dtype)
    return sliding_window_view(values, Lk, axis=-1)[..., ::-1, :]
