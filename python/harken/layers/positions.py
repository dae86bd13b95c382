"""Positions added to the input: sines of them, or vectors that were learned for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.layers.integers import per_row, rows, size, whole
from harken.layers.layer import Layer, Rng

Array = NDArray[Any]

KEPT = 8192  # rows of sines that a layer keeps, the first ones


def sinusoidal_positions(
    length: int, dim: int, *, offset: ArrayLike = 0, base: float = 10000.0, dtype: DTypeLike = np.float32
) -> Array:
    """A vector for each position p = offset, offset + 1, ...: sines and cosines of falling frequencies, in turns.

    ::

        y[p, 2 i]     = sin(p / base^(2 i / dim))
        y[p, 2 i + 1] = cos(p / base^(2 i / dim))

    Parameters
    ----------
    length, dim : int
        Of an odd dim the last channel is a sine without its cosine.
    offset : int or array_like of int
        The first position: where a stream has arrived. An array gives a table for each of its numbers.
    base : float
    dtype : float32 or float64
        Computed in float64, and rounded.

    Returns
    -------
    ndarray, (*offset.shape, length, dim)

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, section 3.5.

    Examples
    --------
    >>> from harken.layers import sinusoidal_positions
    >>> sinusoidal_positions(2, 4).round(3)
    array([[0.   , 1.   , 0.   , 1.   ],
           [0.841, 0.54 , 0.01 , 1.   ]], dtype=float32)
    """
    length, dim = size("length", length), size("dim", dim)
    p = whole("offset", offset).astype(np.float64)[..., None] + np.arange(length)
    angles = p[..., None] * base ** (-np.arange(0, dim, 2) / max(dim, 1))
    table = np.empty((*p.shape, dim), dtype)
    table[..., 0::2] = np.sin(angles)
    table[..., 1::2] = np.cos(angles[..., : dim // 2])
    return table


class SinusoidalPositions(Layer):
    """y = x + sinusoidal_positions(L, dim), without parameters.

    Parameters
    ----------
    dim : int
        x is (..., L, dim).
    base : float
    dtype : float32 or float64

    Examples
    --------
    A sequence at once, and its last frame as it arrives.

    >>> import numpy as np
    >>> from harken.layers import SinusoidalPositions
    >>> positions, x = SinusoidalPositions(6), np.ones((100, 6), np.float32)
    >>> bool((positions(x)[99:] == positions(x[99:], offset=99)).all())
    True
    """

    def __init__(self, dim: int, base: float = 10000.0, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)
        self.dim, self.base = size("dim", dim), float(base)
        self._table = self._rows(0, 0)

    def __call__(self, x: ArrayLike, *, offset: ArrayLike = 0) -> Array:
        """x with its positions, of which the first is `offset`: one number, or one for each row of the batch."""
        x = self.take("x", x, axes=2, last=self.dim)
        length, first = x.shape[-2], per_row("offset", offset, x.shape[:-2])
        if first.ndim == 0 and first >= 0 and int(first) + length <= KEPT:
            end, table = int(first) + length, self._table
            if end > len(table):
                self._table = table = self._rows(0, min(KEPT, max(end, 2 * len(table))))
            return x + table[end - length : end]
        return x + self._rows(first, length)

    def _rows(self, offset: ArrayLike, length: int) -> Array:
        return sinusoidal_positions(length, self.dim, offset=offset, base=self.base, dtype=self.dtype)


class LearnedPositions(Layer):
    """y = x + weight[p] for each position p.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        x is (..., L, embedding_dim), and its positions are 0 to num_embeddings - 1.
    dtype : float32 or float64
    rng : numpy.random.Generator or int, optional
        Draws the first values, standard normal, as PyTorch's Embedding does.

    Attributes
    ----------
    weight : (num_embeddings, embedding_dim)

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import LearnedPositions
    >>> positions = LearnedPositions(512, 64)
    >>> positions(np.zeros((8, 100, 64), np.float32)).shape
    (8, 100, 64)
    >>> positions(np.zeros((2, 1, 64), np.float32), offset=[7, 30]).shape
    (2, 1, 64)
    """

    weight: Array

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: DTypeLike = np.float32, rng: Rng = None
    ) -> None:
        super().__init__(dtype)
        shape = size("num_embeddings", num_embeddings), size("embedding_dim", embedding_dim)
        self.own(weight=np.random.default_rng(rng).standard_normal(shape))

    def __call__(self, x: ArrayLike, *, offset: ArrayLike = 0) -> Array:
        """x with its positions, of which the first is `offset`: one number, or one for each row of the batch."""
        count, channels = self.weight.shape
        x = self.take("x", x, axes=2, last=channels)
        first = per_row("offset", offset, x.shape[:-2])
        return x + self.weight[rows("positions", first[..., None] + np.arange(x.shape[-2]), count)]
