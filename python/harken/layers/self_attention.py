"""Attention of a sequence to itself without projections: its vectors are the queries, the keys and the values."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.attention import Window, attention
from harken.layers.integers import row_lengths, size
from harken.layers.layer import Layer
from harken.masks import Mask

Array = NDArray[Any]
Seen = ArrayLike | Mask | None


class SelfAttention(Layer):
    """y_i = sum_j p_ij x_j with p_i = softmax_j(score(x_i, x_j)): one head, no parameters.

    ::

        score(a, b) = scale * (a . b)                  score="dot";    scale=None means 1 / sqrt(hidden_size)
        score(a, b) = scale * (a . b) / (|a| |b|)      score="cosine"; scale=None means 1

    Parameters
    ----------
    hidden_size : int
        x and y are (..., L, hidden_size): one sequence or any batch of them.
    score : {"dot", "cosine"}
    scale : float, optional
        1.0 beside "dot" is the plain dot product.
    dtype : float32 or float64

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, section 3.2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import SelfAttention
    >>> x = np.random.default_rng(0).standard_normal((10, 512), np.float32)
    >>> y, weights = SelfAttention(512)(x, return_weights=True)
    >>> y.shape, weights.shape, bool(np.allclose(weights.sum(axis=-1), 1))
    ((10, 512), (10, 10), True)
    """

    def __init__(
        self,
        hidden_size: int,
        score: Literal["dot", "cosine"] = "dot",
        scale: float | None = None,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(dtype)
        if score not in ("dot", "cosine"):
            raise ValueError(f"score is {score!r}: wanted 'dot' or 'cosine'")
        self.hidden_size = size("hidden_size", hidden_size)
        self.score: Literal["dot", "cosine"] = score
        self.scale = scale

    def __call__(
        self,
        x: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: Seen = None,
        causal: bool = False,
        window: Window | None = None,
        return_weights: bool = False,
    ) -> Any:
        """What each position makes of all that it sees.

        Parameters
        ----------
        x : array_like, (..., L, hidden_size)
        lengths : integers over the batch axes, optional
            Positions at or past the length are not looked at, and give 0.
        mask : array_like of bool, broadcastable to (..., L, L), or Mask, optional
            True where a position (of the axis before the last) may look.
        causal : bool
            No position sees a later one.
        window : (left, right), optional
            How many positions are seen on each side; None is all.
        return_weights : bool
            Return (y, weights), the weights being (..., L, L).
        """
        x = self.take("x", x, axes=2, last=self.hidden_size)
        seen = one_head("mask", mask, (*x.shape[:-1], x.shape[-2]))
        counted = row_lengths("lengths", lengths, x.shape[:-2], x.shape[-2])
        x = x[..., None, :, :]
        answer = attention(
            x, x, x,
            score=self.score, scale=self.scale, mask=seen, causal=causal, window=window,
            q_lengths=counted, kv_lengths=counted, return_lse=False, return_weights=return_weights,
        )  # fmt: skip
        return without_heads(answer)


def one_head(name: str, mask: Seen, wanted: tuple[int, ...]) -> Any:
    """A mask (..., Lq, Lk) as one for a single head, (..., 1, Lq, Lk)."""
    if mask is None or isinstance(mask, Mask):
        return mask
    array = np.asarray(mask)
    try:
        np.broadcast_to(array, wanted)
    except ValueError:
        raise ValueError(f"{name} is {array.shape}: wanted one that broadcasts to {wanted}") from None
    return array[..., None, :, :] if array.ndim > 2 else array


def without_heads(answer: Any) -> Any:
    """The only head of an array (..., 1, L, D), or of each of several."""
    return tuple(map(without_heads, answer)) if isinstance(answer, tuple) else answer[..., 0, :, :]
