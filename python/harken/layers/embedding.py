"""Embedding: tokens become vectors, rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.layers.integers import rows, size
from harken.layers.layer import Layer, Rng

Array = NDArray[Any]


class Embedding(Layer):
    """y = weight[tokens].

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Tokens are 0 to num_embeddings - 1; y is (*tokens.shape, embedding_dim).
    padding_idx : int, optional
        The token whose first vector is 0; below 0 it counts from the end. Only that: `load` may give it any vector, and
        the layers that follow are told by `lengths=` what is padding.
    dtype : float32 or float64
    rng : numpy.random.Generator or int, optional
        Draws the first values, standard normal, as PyTorch does.

    Attributes
    ----------
    weight : (num_embeddings, embedding_dim)

    Raises
    ------
    IndexError
        Tokens beyond the table, by their value and their place.
    TypeError
        Tokens that are no integers.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import Embedding
    >>> table = Embedding(4, 2).load({"weight": np.arange(8.0).reshape(4, 2)})
    >>> table([[0, 3, 3]])
    array([[[0., 1.],
            [6., 7.],
            [6., 7.]]], dtype=float32)
    """

    weight: Array

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(dtype)
        shape = size("num_embeddings", num_embeddings), size("embedding_dim", embedding_dim)
        self.own(weight=np.random.default_rng(rng).standard_normal(shape))
        if padding_idx is not None:
            if not -shape[0] <= padding_idx < shape[0]:
                raise ValueError(f"padding_idx is {padding_idx}: wanted {-shape[0]} to {shape[0] - 1}")
            self.weight[padding_idx] = 0

    def __call__(self, tokens: ArrayLike) -> Array:
        return self.weight.take(rows("tokens", tokens, len(self.weight)), axis=0)
