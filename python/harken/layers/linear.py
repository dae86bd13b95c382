"""A linear map of the last axis, y = x Wᵀ + b, by NumPy's matrix product."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.layers.activations import ACTIVATIONS
from harken.layers.layer import Layer, Rng

Array = NDArray[Any]


class Linear(Layer):
    """y = x Wᵀ + b along the last axis.

    Parameters
    ----------
    in_features, out_features : int
        x is (..., in_features), y (..., out_features).
    bias : bool
        Whether there is a b.
    dtype : float32 or float64
    rng : numpy.random.Generator or int, optional
        Draws the first values, uniform on +-1 / sqrt(in_features), as PyTorch does.

    Attributes
    ----------
    weight : (out_features, in_features)
    bias : (out_features,), or None

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import Linear
    >>> Linear(512, 64)(np.ones((8, 100, 512), np.float32)).shape
    (8, 100, 64)
    """

    weight: Array
    bias: Array | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: DTypeLike = np.float32, rng: Rng = None
    ) -> None:
        super().__init__(dtype)
        rng = np.random.default_rng(rng)
        reach = 1 / max(in_features, 1) ** 0.5
        self.own(weight=rng.uniform(-reach, reach, (out_features, in_features)))
        self.bias = None
        if bias:
            self.own(bias=rng.uniform(-reach, reach, out_features))

    def __call__(self, x: ArrayLike) -> Array:
        x = self.take("x", x, axes=1, last=self.weight.shape[1])
        # As one matrix of rows: NumPy multiplies a stack of matrices one by one, (8, 100, 512) twice as long.
        rows, (out_features, in_features) = math.prod(x.shape[:-1]), self.weight.shape
        return product(x.reshape(rows, in_features), self.weight, self.bias).reshape(*x.shape[:-1], out_features)


def product(
    x: Array, weight: Array, bias: Array | None, activation: str | None = None, out: Array | None = None
) -> Array:
    """f(x Wᵀ + b) for a matrix of rows, (T, in) to (T, out)."""
    y: Array = np.matmul(x, weight.T, out=out)
    if bias is not None:
        y += bias
    return y if activation is None else ACTIVATIONS[activation](y, out=y)
