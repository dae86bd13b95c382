"""Answers about attention without the (Lq, Lk) matrix: the top keys, entropies, what each key gets, some rows."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.attention import Window, attention
from harken.explain import explain
from harken.foreign import any_foreign, in_numpy
from harken.masks.mask import Mask
from harken.tiles import Whole

Array = NDArray[Any]

GROUPS = 16  # of keys, for each of the largest weights: these pass 1.2 numbers a weight that is wanted


@dataclass(frozen=True, eq=False)
class AttentionStats:
    """What `attention_stats` found; None is what was not asked for.

    Heads come first in every layout. Without a head axis in q and k there is none here. Weights and entropy are float64
    for float64 input, else float32.
    """

    lse: Array
    """(..., Hq, Lq), the log-sum-exp of each query, as `harken.attention` gives it."""
    top_indices: Array | None
    """(..., Hq, Lq, top_k), int64: the keys of the largest weights, -1 where there are no more."""
    top_weights: Array | None
    """(..., Hq, Lq, top_k): their weights, the largest first, 0 where there are no more."""
    entropy: Array | None
    """(..., Hq, Lq), in nats."""
    per_key_mass: Array | None
    """(..., Hq, Lk), float64: the weight that each key received from all queries."""
    row_weights: Array | None
    """(..., Hq, len(rows), Lk): all weights of the chosen queries."""


def attention_stats(
    q: ArrayLike,
    k: ArrayLike,
    *,
    mask: ArrayLike | Mask | None = None,
    bias: ArrayLike | None = None,
    causal: bool = False,
    window: Window | None = None,
    q_start: ArrayLike | None = None,
    q_lengths: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    score: Literal["dot", "cosine", "additive"] = "dot",
    w: ArrayLike | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    k_scale: ArrayLike | None = None,
    precision: Literal["highest", "high", "medium"] = "highest",
    head_axis: int = -3,
    threads: int | None = None,
    top_k: int = 0,
    per_key_mass: bool = False,
    entropy: bool = False,
    rows: ArrayLike | None = None,
) -> AttentionStats:
    """Say which keys the queries of `harken.attention` look at, how widely, and what each key receives.

    Of the weights p_ij of query i on key j, which are never all in memory::

        top_indices_i, top_weights_i = the top_k largest p_ij, equal ones in the order of their keys
        entropy_i      = -sum_j p_ij log p_ij - r_i log r_i      r_i = exp(sink - lse_i), what a sink takes; else 0
        per_key_mass_j = sum_i p_ij
        row_weights    = p_ij of the queries i in rows

    Parameters
    ----------
    q : array_like, (..., Hq, Lq, D)
        Queries.
    k : array_like, (..., Hkv, Lk, D)
        Keys.
    mask, bias, causal, window, q_start, q_lengths, kv_lengths, scale, score, w, softcap, alibi, sinks, k_scale,
    precision, head_axis, threads
        As in `harken.attention`.
    top_k : int
        How many of the largest weights of each query to give, and where they are. 0: none. A key whose weight is 0 is
        not listed, whether it is not seen or too far below the others to count.
    per_key_mass : bool
        Give the total weight that each key received from the queries of each query head, summed in float64.
    entropy : bool
        Give the entropy of each query, in nats: 0 where it looks at one key only, log(n) where it looks at n alike. A
        sink is one of the things looked at, so that all shares add up to 1: with all of it on the sink, the entropy is
        0. Among the keys alone it is (entropy + r log r) / (1 - r) + log(1 - r).
    rows : array_like of int, one axis, optional
        The queries whose weights to give in full; -1 is the last one.

    Returns
    -------
    AttentionStats
        lse always, and what was asked for. A query that sees no key has entropy 0, and -1 for its keys.

    Raises
    ------
    TypeError, ValueError
        What `harken.attention` would raise; a `top_k` below 0; `rows` that are no queries.
    MemoryError
        No memory for the results or for the work.

    See Also
    --------
    attention : gives all the weights with `return_weights=True`.

    Notes
    -----
    The weights are those of `harken.attention`, asked for a tile at a time. A tile holds 2 MiB, or one query of one
    head where that is more; keys that no query of a tile may see by `causal`, `window` or `kv_lengths` are not in it.
    float16 and bfloat16 are widened to float32, the keys of a head at a time, so that weights are not rounded to 11 or
    8 bits, in which many would be equal.

    The entropy is log Z - (sum_j p_ij log p_ij) / Z with Z = sum_j p_ij in float64. What all weights of a query are off
    by alike drops out, and so does what the largest is off by where it is nearly 1: relative to itself the entropy is
    as exact as the weights are, down to 1e-15.

    A NaN counts as larger than any weight; the entropy of its query is NaN.

    Examples
    --------
    Two queries and four keys; the first query stands on the third key, the second is 0 and looks at all keys alike.

    >>> import numpy as np
    >>> from harken import attention_stats
    >>> q = np.array([[0.0, 9.0], [0.0, 0.0]])
    >>> k = np.array([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> stats = attention_stats(q, k, top_k=2, entropy=True, per_key_mass=True)
    >>> stats.top_indices
    array([[2, 0],
           [0, 1]])
    >>> stats.top_weights.round(3)
    array([[0.997, 0.002],
           [0.25 , 0.25 ]])
    >>> stats.entropy.round(3)
    array([0.025, 1.386])
    >>> stats.per_key_mass.round(3)
    array([0.252, 0.25 , 1.247, 0.252])
    """
    given = dict(locals())
    if any_foreign(given.values()):
        return cast(AttentionStats, in_numpy(attention_stats, given))
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "causal": causal,
        "window": window,
        "q_start": q_start,
        "q_lengths": q_lengths,
        "kv_lengths": kv_lengths,
        "scale": scale,
        "score": score,
        "w": w,
        "softcap": softcap,
        "alibi": alibi,
        "sinks": sinks,
        "k_scale": k_scale,
        "precision": precision,
        "head_axis": head_axis,
        "threads": threads,
    }
    plan = explain(q, k, k, **options, v_scale=k_scale, return_lse=True, return_weights=True)  # which checks them all
    whole = Whole(q, k, options, plan.computed_in)
    Lq, Lk, count = whole.Lq, whole.Lk, _count(top_k)
    per_key_mass, entropy = _flag("per_key_mass", per_key_mass), _flag("entropy", entropy)
    chosen = _rows(() if rows is None else rows, Lq)

    def table(wanted: bool, *own: int, dtype: Any = whole.compute, fill: float = 0) -> Any:
        return np.full((*whole.heads, *own), fill, dtype) if wanted else None

    all_queries = count > 0 or per_key_mass or entropy
    lse = table(all_queries, Lq, fill=-np.inf)
    top_indices, top_weights = table(count > 0, Lq, count, dtype=np.int64, fill=-1), table(count > 0, Lq, count)
    nats, mass = table(entropy, Lq), table(per_key_mass, Lk, dtype=np.float64)
    row_weights = table(rows is not None, len(chosen), Lk)

    with np.errstate(all="ignore"):
        for tile in whole.tiles([(0, Lq)] if all_queries else _runs(chosen)):
            P, at = tile.weights, (*tile.heads, tile.queries)
            if all_queries:
                lse[at] = tile.lse
            if count:
                keys, top_weights[at] = _largest(P, tile.lse, count)
                top_indices[at] = np.where(keys < 0, keys, keys + tile.keys.start)
            if entropy:
                sink = -np.inf if sinks is None else whole.of_heads["sinks"][tile.heads][..., None]
                nats[at] = _entropy(P, tile.lse, sink)
            if per_key_mass:
                mass[(*tile.heads, tile.keys)] += P.sum(axis=-2, dtype=np.float64)
            if rows is not None:
                here = np.flatnonzero((tile.queries.start <= chosen) & (chosen < tile.queries.stop))
                row_weights[(*tile.heads, here, tile.keys)] = P[..., chosen[here] - tile.queries.start, :]

    found = [None if x is None else whole.result(x) for x in (top_indices, top_weights, nats, mass, row_weights)]
    if all_queries:
        return AttentionStats(whole.result(lse), *found)
    return AttentionStats(attention(q, k, np.asarray(k)[..., :0], **options, v_scale=1.0, return_lse=True)[1], *found)


def _largest(P: Array, lse: Array, count: int) -> tuple[Array, Array]:
    """The keys and weights of the largest of each row, -1 and 0 where no more are above 0.

    Those that reach the row's bound are at least as many as are asked for, and few more. They are found in three quick
    passes over the weights, set side by side in the order of their keys, and only they are sorted.
    """
    shape, width = (*P.shape[:-1], count), P.shape[-1]
    P = P.reshape(lse.size, width)
    ranks = P if (lse < np.inf).all() else np.where(np.isnan(P), np.inf, P)
    least = np.maximum(_bound(ranks, min(count, width)), np.nextafter(P.dtype.type(0), P.dtype.type(1)))[:, None]
    reached, starts = ranks >= least, np.arange(len(P)) * width
    if np.count_nonzero(reached) <= 4 * count * len(P):
        found = np.flatnonzero(reached)
    else:  # many equal the bound: the first of these are enough
        equal = np.append(np.flatnonzero(ranks == least), P.size)
        firsts = equal[np.minimum(np.searchsorted(equal, starts)[:, None] + np.arange(count), len(equal) - 1)]
        found = np.union1d(np.flatnonzero(ranks > least), firsts[firsts < starts[:, None] + width])
    row = found // max(width, 1)
    place = np.arange(len(found)) - np.searchsorted(found, starts)[row]
    most = max(count, int(place.max(initial=0)) + 1)
    keys, weights = np.full((len(P), most), -1), np.zeros((len(P), most), P.dtype)
    keys[row, place] = found - starts[row]
    weights[row, place] = P.reshape(-1)[found]
    order = np.argsort(-np.where(np.isnan(weights), np.inf, weights), axis=-1, kind="stable")[:, :count]
    keys, weights = (np.take_along_axis(x, order, axis=-1).reshape(shape) for x in (keys, weights))
    return keys, weights


def _bound(P: Array, count: int) -> Array:
    """A number that at least `count` of each row reach, and few more: the count-th largest of the maxima of groups.

    Keys that are n apart are a group, so that neighbours, which are often alike, meet in different ones.
    """
    rows, width = P.shape
    groups = max(GROUPS * count, 64)
    if width < 2 * groups:
        most = P
    else:
        whole = width // groups * groups
        most = P[:, :whole].reshape(rows, -1, groups).max(axis=1)
        np.maximum(most[:, : width - whole], P[:, whole:], out=most[:, : width - whole])
    return np.partition(most, -count, axis=-1)[:, -count] if count else np.zeros(rows, P.dtype)


def _entropy(P: Array, lse: Array, sink: Any) -> Array:
    """-sum_j (p_j / Z) log (p_j / Z), Z = sum_j p_j, with the sink's share as one of the p_j."""
    plogp = np.maximum(P, np.finfo(P.dtype).tiny)
    np.log(plogp, out=plogp)
    plogp *= P
    r = np.where(np.isneginf(lse), 0, np.exp(sink - lse.astype(np.float64)))
    Z = P.sum(axis=-1, dtype=np.float64) + r
    H = np.log(Z) - (plogp.sum(axis=-1) + np.where(r > 0, r * np.log(r), r)) / Z
    return np.where(Z == 0, 0, np.maximum(H, 0))


def _runs(rows: Array) -> list[tuple[int, int]]:
    """Queries as ranges of neighbours: each from its first up to its last."""
    rows = np.unique(rows)
    parts = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts if len(part)]


def _count(top_k: Any) -> int:
    """top_k, checked."""
    if isinstance(top_k, (bool, np.bool_)) or not hasattr(top_k, "__index__"):
        raise TypeError(f"top_k is {top_k!r}: wanted an integer, how many of the largest weights to give; 0 for none")
    if operator.index(top_k) < 0:
        raise ValueError(f"top_k is {top_k!r}: wanted 0 or more, how many of the largest weights to give")
    return operator.index(top_k)


def _flag(name: str, given: Any) -> bool:
    """A flag, checked."""
    if not isinstance(given, (bool, np.bool_)):
        raise TypeError(f"{name} is {given!r}: wanted True or False")
    return bool(given)


def _rows(rows: ArrayLike, Lq: int) -> Array:
    """The chosen queries counted from 0, checked."""
    chosen = np.asarray(rows)
    if chosen.ndim != 1:
        raise ValueError(f"rows has shape {chosen.shape}: wanted one axis, the numbers of the queries")
    if chosen.size and chosen.dtype.kind not in "iu":
        instead = "; give np.flatnonzero(rows)" if chosen.dtype == bool else ""
        raise TypeError(f"rows is {chosen.dtype}: wanted integers, the numbers of the queries{instead}")
    wrong = chosen[(chosen < -Lq) | (chosen >= Lq)]
    if wrong.size:
        raise ValueError(f"rows holds {wrong[0]}: wanted {-Lq} to {Lq - 1}, the queries in q")
    chosen = chosen.astype(np.int64)
    return np.where(chosen < 0, chosen + Lq, chosen)
