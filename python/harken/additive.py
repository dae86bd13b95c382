"""Additive attention: a query meets a key by w . tanh(q + k), in tiles like every other score."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypedDict, Unpack, overload

from numpy.typing import ArrayLike, NDArray

from harken.attention import Window, attention

Array = NDArray[Any]
P = ParamSpec("P")


class AdditiveOptions(TypedDict, total=False):
    """The keywords of `additive_attention` that do not decide how many arrays it returns."""

    mask: ArrayLike | None
    bias: ArrayLike | None
    causal: bool
    window: Window | None
    q_start: ArrayLike | None
    q_lengths: ArrayLike | None
    kv_lengths: ArrayLike | None
    scale: ArrayLike | None
    softcap: float | None
    alibi: ArrayLike | None
    sinks: ArrayLike | None
    precision: Literal["highest", "high", "medium"]
    head_axis: int
    out: Array | None
    threads: int | None
    device: str | None


def _like_attention(function: Callable[P, Any]) -> Callable[P, Any]:
    """Give the function the parameters of `attention`, which stand there alone, with w in front and without score."""
    parameters = dict(inspect.signature(attention).parameters)
    del parameters["score"]
    w = parameters.pop("w").replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first, rest = [*parameters.values()][:3], [*parameters.values()][3:]
    vars(function)["__signature__"] = inspect.Signature([*first, w, *rest], return_annotation="Any")
    return function


@overload
def additive_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    w: ArrayLike | None = None,
    *,
    return_lse: Literal[False] = False,
    return_weights: Literal[False] = False,
    **options: Unpack[AdditiveOptions],
) -> Array: ...
@overload
def additive_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    w: ArrayLike | None = None,
    *,
    return_lse: bool = False,
    return_weights: bool = False,
    **options: Unpack[AdditiveOptions],
) -> Any: ...


@_like_attention
def additive_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    w: ArrayLike | None = None,
    **options: Any,
) -> Any:
    """Attend by additive scores, as in the first attention of neural translation.

    For query i and the keys j that it may see::

        s_ij = scale * sum_d w_d tanh(q_id + k_jd)
        p_ij = exp(s_ij) / sum_j exp(s_ij)
        o_i  = sum_j p_ij v_j

    and then everything as in `harken.attention`, of which this is `score="additive"`: masks, bias, windows, lengths,
    sinks, softcap, ALiBi, grouped heads, `return_lse` for `harken.merge`. Written with NumPy it needs an array of
    (..., Lq, Lk, D); here a tile of scores lives and dies in the cache.

    Parameters
    ----------
    q : array_like, (..., Hq, Lq, D)
        Queries, after their projection (W s in [1]_). float64, float32, float16 or `ml_dtypes.bfloat16`, as in
        `harken.attention`; 2-D arrays are one head.
    k : array_like, (..., Hkv, Lk, D)
        Keys, after theirs (U h in [1]_).
    v : array_like, (..., Hkv, Lk, Dv)
        Values, one for each key.
    w : array_like of floats, broadcastable to (..., Hq, D), optional
        What each channel weighs, v in [1]_, `scale` of Keras' AdditiveAttention. By default 1, its `use_scale=False`.
    scale : float or array_like, broadcastable to (..., Hq), optional
        By default 1.
    **options
        The keywords of `harken.attention` but `score`.

    Returns
    -------
    out : ndarray, (..., Hq, Lq, Dv)
        In the dtype of q; then lse and weights where they are asked for.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As in `harken.attention`.

    See Also
    --------
    attention : what the keywords mean.
    reference : the definition, with `score="additive"`; `explain` takes the same.

    Notes
    -----
    From e^2q and e^2k, which are taken once, tanh(q + k) is a fraction, and fractions share a division; so a pair
    takes no exponential. Queries and keys that are all small start from tanh q and tanh k instead, and those
    beyond |q| + |k| = 21 (85 in float64), each its largest channel, take the tanh itself, at 7 to 15 times the cost.

    References
    ----------
    .. [1] D. Bahdanau, K. Cho and Y. Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate",
       2014, arXiv:1409.0473.

    Examples
    --------
    >>> import numpy as np
    >>> from harken import additive_attention
    >>> q = np.array([[4.0, 0.0], [-4.0, 0.0]])
    >>> k = np.array([[0.0, 2.0], [0.0, -2.0]])
    >>> v = np.array([[10.0], [20.0]])
    >>> additive_attention(q, k, v).round(2)
    array([[11.27],
           [11.27]])
    >>> additive_attention(q, k, v, w=[1, -1]).round(2)
    array([[18.73],
           [18.73]])
    """
    return attention(q, k, v, score="additive", w=w, **options)
