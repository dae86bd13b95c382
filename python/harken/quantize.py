"""Keys and values in eight bits, each number an integer times a factor that it shares, and keys made fit for it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.reference import STORAGE

Array = NDArray[Any]
Axes = int | tuple[int, ...] | None

LARGEST = 127


def quantize(x: ArrayLike, dtype: Literal["int8"] = "int8", axis: Axes = -1) -> tuple[Array, Array]:
    """Round numbers to integers of eight bits that share a factor, symmetric about 0.

    ::

        scale = max|x| / 127            over `axis`
        n     = round(x / scale)        -127 .. 127, to nearest, ties to even

    so that n * scale differs from x by at most scale / 2. `harken.attention` takes n as k or v with scale as `k_scale`
    or `v_scale`, and reads a quarter of the bytes of float32.

    Parameters
    ----------
    x : array_like of floats, (..., H, L, D)
        float64, float32, float16 or bfloat16, all numbers finite.
    dtype : "int8"
        What is stored.
    axis : int, tuple of int or None
        What shares a factor. -1: each token has its own, (..., H, L, 1), which a cache can append to. -2: each channel,
        (..., H, 1, D); (-2, -1): each head, (..., H, 1, 1); None: one for all. Of (..., L, H, D) they are -1, -3,
        (-3, -1) and None.

    Returns
    -------
    n : ndarray of int8, the shape of x
    scale : ndarray of float32, the shape of x with 1 at `axis`
        0 where all numbers are 0.

    Raises
    ------
    TypeError
        x holds no floating numbers.
    ValueError
        x holds NaN or Inf, which no integer stands for; an axis that x does not have; another dtype.

    See Also
    --------
    smooth : makes keys with large means lose less.

    Examples
    --------
    >>> import numpy as np
    >>> from harken import attention, quantize
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(3, 8, 100, 64)).astype(np.float32)
    >>> (k8, k_scale), (v8, v_scale) = quantize(k), quantize(v)
    >>> k8.dtype, k_scale.shape
    (dtype('int8'), (8, 100, 1))
    >>> out = attention(q, k8, v8, k_scale=k_scale, v_scale=v_scale)
    >>> bool(abs(out - attention(q, k, v)).max() < 0.05)
    True
    """
    if dtype != "int8":
        raise ValueError(f"dtype is {dtype!r}: wanted 'int8'")
    x = _floats("x", x)
    with np.errstate(over="ignore", invalid="ignore"):
        largest = np.abs(x).max(axis=axis, keepdims=True, initial=0)
    if not np.isfinite(largest).all():
        raise ValueError("x holds NaN or Inf: wanted finite numbers, which integers times a factor can stand for")
    scale = (largest / LARGEST).astype(np.float32)
    n = np.rint(x / np.where(scale == 0, np.float32(1), scale))
    return np.clip(n, -LARGEST, LARGEST).astype(np.int8), scale


def smooth(k: ArrayLike, head_axis: int = -3) -> tuple[Array, Array]:
    """Take from all keys of a head their mean, which a softmax does not see, before they are quantised.

    Channels of keys often stand far from 0, all on one side; eight bits spent on that are lost to what tells keys
    apart. Without it every score of a query i is less by the same number, scale * q_i . mean::

        softmax_j(scale * q_i . k_j) = softmax_j(scale * q_i . (k_j - mean))

    What does see it: lse, which is less by `smooth_shift(q, mean)`; a sink, which stands beside the scores, and which
    ``bias=smooth_shift(q, mean)[..., None]`` sets right, lse with it; `softcap` and ``score="cosine"``, which bend
    scores before anything is added to them, so that keys for these must not be smoothed.

    Parameters
    ----------
    k : array_like of floats, (..., Hkv, Lk, D)
    head_axis : {-3, -2}
        -2 for (..., Lk, Hkv, D).

    Returns
    -------
    smoothed : ndarray, the shape of k
        float32, or float64 for float64 k.
    mean : ndarray, the shape of k with 1 for Lk
        A cache keeps it and takes it from the keys that come later; any vector will do that lies near them.

    Raises
    ------
    TypeError, ValueError
        k holds no floating numbers, or has no two axes.

    References
    ----------
    .. [1] J. Zhang, J. Wei, H. Huang, P. Zhang, J. Zhu and J. Chen, "SageAttention: Accurate 8-Bit Attention for
       Plug-and-play Inference Acceleration", 2024, arXiv:2410.02367.

    Examples
    --------
    >>> import numpy as np
    >>> from harken import attention, quantize, smooth, smooth_shift
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(3, 8, 100, 64)).astype(np.float32)
    >>> k = k + 20 * rng.normal(size=64).astype(np.float32)
    >>> exact, exact_lse = attention(q, k, v, return_lse=True)
    >>> k8, k_scale = quantize(k)
    >>> plain = attention(q, k8, v, k_scale=k_scale)
    >>> smoothed, mean = smooth(k)
    >>> k8, k_scale = quantize(smoothed)
    >>> better, lse = attention(q, k8, v, k_scale=k_scale, return_lse=True)
    >>> bool(abs(better - exact).max() < abs(plain - exact).max() / 10)
    True
    >>> np.allclose(lse + smooth_shift(q, mean), exact_lse, atol=0.05)
    True
    """
    k, axis = _floats("k", k), _tokens("k", k, head_axis)
    mean = (
        k.mean(axis=axis, keepdims=True, dtype=np.float64) if k.shape[axis] else np.zeros_like(k, shape=_one(k, axis))
    )
    mean = mean.astype(k.dtype)
    return k - mean, mean


def smooth_shift(q: ArrayLike, mean: ArrayLike, scale: ArrayLike | None = None, head_axis: int = -3) -> Array:
    """What smoothing took from the scores of each query: scale * q_i . mean.

    Parameters
    ----------
    q : array_like of floats, (..., Hq, Lq, D)
        The queries.
    mean : array_like of floats, (..., Hkv, 1, D)
        What `smooth` gave. Query head h reads key head h // (Hq // Hkv).
    scale : array_like, broadcastable to (..., Hq), optional
        That of the call; by default 1 / sqrt(D).
    head_axis : {-3, -2}
        -2 for (..., Lq, Hq, D) and (..., 1, Hkv, D).

    Returns
    -------
    shift : ndarray, (..., Hq, Lq)
        float32, or float64 if q or mean is. Add it to lse, or with sinks give ``bias=shift[..., None]``.

    Raises
    ------
    TypeError, ValueError
        No floating numbers; shapes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from harken import smooth_shift
    >>> smooth_shift(np.array([[2.0, 0.0], [0.0, 4.0]]), np.array([[1.0, 3.0]]), scale=1)
    array([ 2., 12.])
    """
    q, mean = _floats("q", q), _floats("mean", mean)
    for name, x in (("q", q), ("mean", mean)):
        if x.shape[_tokens(name, x, head_axis)] != 1 and name == "mean":
            raise ValueError(f"mean has shape {mean.shape}: wanted 1 for the keys, as harken.smooth returns it")
    if q.shape[-1] != mean.shape[-1]:
        raise ValueError(f"q has {q.shape[-1]} channels, mean has {mean.shape[-1]}: wanted the mean of q's keys")
    one_head = q.ndim == mean.ndim == 2
    Q, M = (x[None] if x.ndim == 2 else x.swapaxes(-3, -2) if head_axis == -2 else x for x in (q, mean))
    Hq, Hkv, D = Q.shape[-3], M.shape[-3], Q.shape[-1]
    if Hq % Hkv if Hkv else Hq:
        raise ValueError(f"mean has {Hkv} heads, q has {Hq}: q's heads must be a multiple of k's")
    M = M[..., np.arange(Hq) * Hkv // max(Hq, 1), :, :]
    factor = np.asarray(1 / np.sqrt(max(D, 1)) if scale is None else scale, np.float64)[..., None]
    sums = (factor * (Q.astype(np.float64) * M.astype(np.float64)).sum(axis=-1)).astype(np.result_type(Q, M))
    shift: Array = sums[0] if one_head else sums
    return shift


def _floats(name: str, x: ArrayLike) -> Array:
    """The array in float64 if that is what it is, else in float32."""
    x = np.asarray(x)
    if x.dtype.name not in STORAGE:
        raise TypeError(f"{name} is {x.dtype}: wanted floating numbers, {', '.join(STORAGE)}")
    return x.astype(np.float64 if x.dtype == np.float64 else np.float32)


def _tokens(name: str, x: Array, head_axis: int) -> int:
    """The axis of the tokens."""
    if head_axis not in (-3, -2):
        raise ValueError(f"head_axis is {head_axis!r}: wanted -3 for (..., H, L, D) or -2 for (..., L, H, D)")
    if x.ndim < 2:
        raise ValueError(f"{name} has shape {x.shape}: wanted at least two axes, (length, channels)")
    return -3 if head_axis == -2 and x.ndim > 2 else -2


def _one(x: Array, axis: int) -> tuple[int, ...]:
    shape = list(x.shape)
    shape[axis] = 1
    return tuple(shape)
