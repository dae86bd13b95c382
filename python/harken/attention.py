"""Attention: softmax(Q Kᵀ) V, exact and fused, over NumPy arrays of any layout."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack, overload

from numpy.typing import ArrayLike, NDArray

from harken._load import core
from harken.masks import Mask

Array = NDArray[Any]
Window = tuple[int | None, int | None]


class Options(TypedDict, total=False):
    """The keywords of `attention` that do not decide how many arrays it returns."""

    mask: ArrayLike | Mask | None
    bias: ArrayLike | None
    causal: bool
    window: Window | None
    q_start: ArrayLike | None
    q_lengths: ArrayLike | None
    kv_lengths: ArrayLike | None
    scale: ArrayLike | None
    score: Literal["dot", "cosine", "additive"]
    w: ArrayLike | None
    softcap: float | None
    alibi: ArrayLike | None
    sinks: ArrayLike | None
    k_scale: ArrayLike | None
    v_scale: ArrayLike | None
    precision: Literal["highest", "high", "medium"]
    head_axis: int
    out: Array | None
    threads: int | None
    device: str | None


@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    return_lse: Literal[False] = False,
    return_weights: Literal[False] = False,
    **options: Unpack[Options],
) -> Array: ...
@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    return_lse: Literal[True],
    return_weights: Literal[True],
    **options: Unpack[Options],
) -> tuple[Array, Array, Array]: ...
@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    return_lse: Literal[True],
    return_weights: Literal[False] = False,
    **options: Unpack[Options],
) -> tuple[Array, Array]: ...
@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    return_lse: Literal[False] = False,
    return_weights: Literal[True],
    **options: Unpack[Options],
) -> tuple[Array, Array]: ...
@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    return_lse: bool,
    return_weights: bool = False,
    **options: Unpack[Options],
) -> Any: ...


@core.native
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
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
    v_scale: ArrayLike | None = None,
    precision: Literal["highest", "high", "medium"] = "highest",
    head_axis: int = -3,
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Any:
    """Attend: for every query the mean of the values, weighted by how well its keys match.

    For query i at position p_i = i + q_start, over the keys j that it may see::

        s_ij = scale * (q_i . k_j)                     score="dot"
        s_ij = scale * (q_i . k_j) / (|q_i| |k_j|)     score="cosine"; a zero vector has cosine 0
        s_ij = scale * sum_d w_d tanh(q_id + k_jd)     score="additive"; see `harken.additive_attention`
        s_ij = softcap * tanh(s_ij / softcap)          if softcap is given
        s_ij = s_ij + bias_ij - alibi * |p_i - j|
        p_ij = exp(s_ij) / (exp(sink) + sum_j exp(s_ij))
        o_i  = sum_j p_ij v_j

    and no (Lq, Lk) array is ever made: a tile of scores lives and dies in the cache.

    Parameters
    ----------
    q : array_like, (..., Hq, Lq, D)
        Queries. float64, float32, float16 or `ml_dtypes.bfloat16`. Lists and integers become float64. 2-D arrays are
        one head, 3-D arrays are (H, L, D), and any further leading axes broadcast between q, k and v by NumPy's rule.
        Strides of any kind are read in place, without a copy. So are, here and everywhere below, the arrays of other
        libraries that export DLPack: PyTorch, JAX and more, on the CPU.
    k : array_like, (..., Hkv, Lk, D)
        Keys. Hq is a multiple of Hkv: query head h reads key head h // (Hq // Hkv). Beside a float64 q, float64; else
        float32, float16, bfloat16 or, with `k_scale`, int8, whatever q is, and v may be another of these.
    v : array_like, (..., Hkv, Lk, Dv)
        Values, one for each key.
    mask : array_like of bool, broadcastable to (..., Hq, Lq, Lk), or Mask, optional
        True where a query may look; or an expression of `harken.masks`, as `Causal() & Documents(ids)`, which costs no
        more than what is visible. Both are ANDed with the following.
    bias : array_like of floats, broadcastable to (..., Hq, Lq, Lk), optional
        Added to the scores.
    causal : bool
        No query sees a key past its own position: j <= p_i.
    window : (left, right), optional
        Keys from p_i - left to p_i + right, both included; None is an unbounded side. What a window or `causal` hides
        from all queries of a tile costs nothing.
    q_start : int or array_like of int, broadcastable to the leading axes, optional
        The position of the first query. By default kv_length - q_length: the last query stands at the last key, as a
        cache of keys needs it. 0 is the other convention, where the first query stands at the first key.
    q_lengths, kv_lengths : int or array_like of int, broadcastable to the leading axes, optional
        How many of the queries and of the keys exist. Keys past the length are not read; queries past it give 0.
    scale : float or array_like, broadcastable to (..., Hq), optional
        By default 1 / sqrt(D) for "dot", 1 for "cosine" and "additive".
    score : {"dot", "cosine", "additive"}
        How a query meets a key.
    w : array_like of floats, broadcastable to (..., Hq, D), optional
        For "additive" alone: what each channel weighs; by default 1.
    softcap : float, optional
        Bends the scores into (-softcap, softcap).
    alibi : array_like, broadcastable to (..., Hq), optional
        A slope for each head: how much a key loses with each step of distance.
    sinks : array_like, broadcastable to (..., Hq), optional
        A logit for each head that joins the sum below the fraction and has no value.
    k_scale, v_scale : array_like, broadcastable to the shape of k, of v, optional
        What the numbers that are stored stand for: k_scale * k and v_scale * v. One factor for all, for each head, for
        each row (..., Hkv, Lk, 1) or for each channel (..., Hkv, 1, D). int8 requires it; `harken.quantize` makes both.
        Used in float32 (float64 for a float64 q), and best given so.
    precision : {"highest", "high", "medium"}
        For float32 on a machine with a matrix engine (backend "amx"), how many bfloat16 products stand for one:
        "highest" six, as exact as float32; "high" three, relative error about 1e-5; "medium" one, about 4e-3. Short
        and other problems compute as "highest"; `harken.explain` says what is done. On a card "medium" is one product
        of TF32 where its matrix engine computes float32, relative error about 1e-3, and the others are three.
    head_axis : {-3, -2}
        -2 reads q, k, v and gives out as (..., L, H, D); lse and weights keep their layout.
    return_lse : bool
        Also return the log-sum-exp of each row, which is what `harken.merge` needs.
    return_weights : bool
        Also return the weights p_ij.
    out : ndarray, or an array of another library, optional
        Where the result goes: a writeable array of the shape and dtype of the result, of any strides. It may overlap
        the inputs.
    threads : int, optional
        How many threads may work; see `harken.set_num_threads`. The result does not depend on it.
    device : str, optional
        None or "cpu"; "cuda" or "cuda:1" computes on a card, see `harken.cuda`. Arrays that lie on a card need no
        device: there they are computed.

    Returns
    -------
    out : ndarray, (..., Hq, Lq, Dv), or (..., Lq, Hq, Dv) with `head_axis=-2`
        In the dtype of q, and of q's library where that is not NumPy: then so are lse and weights. A query that sees
        no key gives 0.
    lse : ndarray, (..., Hq, Lq), only with `return_lse`
        float64 for float64 input, else float32. -inf where no key is seen and no sink is given.
    weights : ndarray, (..., Hq, Lq, Lk), only with `return_weights`
        In the dtype of q.

    Raises
    ------
    TypeError
        A dtype that is not computed with, or float64 beside another; a number, a word or a flag of another kind.
    ValueError
        Shapes that do not fit, values out of range. `out` has not been written to.
    MemoryError
        No memory for the results or for the work.

    See Also
    --------
    additive_attention : `score="additive"` as a function of its own.
    reference : the same signature in plain NumPy.
    explain : how a call would be computed.

    Notes
    -----
    What a query does not see cannot reach its result, be it NaN or never initialised. The bits of a row do not depend
    on the number of threads, nor on what else is in the batch. Scores and sums are kept in float32, or float64 for
    float64 input, and rounded once.

    Types mix without a copy in memory. Floating types give exactly the bits of a call with q, k and v all in the widest
    of their types (float16 and bfloat16: float32), rounded to q's at the end; only where a few queries read bfloat16
    beside another type are channels added in another order. int8 is as precise as what it meets: the factors multiply
    scores, weights, q and the result, or rows as they come near, and no array of k_scale * k exists.

    The algorithm is the online softmax of [1]_ over tiles [2]_.

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867.
    .. [2] T. Dao, D. Y. Fu, S. Ermon, A. Rudra and C. Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention
       with IO-Awareness", 2022, arXiv:2205.14135.

    Examples
    --------
    Two queries look up three keys; the first stands close to the third key.

    >>> import numpy as np
    >>> from harken import attention
    >>> q = np.array([[0.0, 8.0], [0.0, 0.0]])
    >>> k = np.array([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    >>> v = np.array([[10.0], [20.0], [30.0]])
    >>> attention(q, k, v).round(2)
    array([[29.93],
           [20.  ]])

    Eight query heads on two key heads, each position seeing itself and what came before.

    >>> rng = np.random.default_rng(0)
    >>> q = rng.normal(size=(4, 8, 100, 64)).astype(np.float32)
    >>> k, v = rng.normal(size=(2, 4, 2, 100, 64)).astype(np.float32)
    >>> out, lse = attention(q, k, v, causal=True, return_lse=True)
    >>> out.shape, lse.shape
    ((4, 8, 100, 64), (4, 8, 100))
    """
