"""Normalisation of the last axis: layer normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.layers.layer import Layer

Array = NDArray[Any]


class LayerNorm(Layer):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, whose variance is that of all its numbers.

    Parameters
    ----------
    normalized_shape : int
        The size of the last axis.
    eps : float
    elementwise_affine : bool
        Whether there are weight and bias.
    bias : bool
        Whether there is a bias, if there is a weight.

    Attributes
    ----------
    weight, bias : (normalized_shape,), or None
    """

    weight: Array | None
    bias: Array | None

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(dtype)
        self.size, self.eps = normalized_shape, eps
        self.weight = self.bias = None
        if elementwise_affine:
            self.own(weight=np.ones(normalized_shape))
            if bias:
                self.own(bias=np.zeros(normalized_shape))

    def __call__(
        self,
        x: ArrayLike,
        *,
        residual: ArrayLike | None = None,
        out: Array | None = None,
        total: Array | None = None,
    ) -> Array:
        """The last axis of x + residual, normalized, into `out`; `total` receives x + residual."""
        x = self.take("x", x, axes=1, last=self.size)
        if residual is not None:
            x = np.add(x, residual, out=total)
        y: Array = np.subtract(x, x.mean(axis=-1, keepdims=True), out=out)
        variance = np.einsum("...c,...c->...", y, y)[..., None] / self.dtype.type(self.size)
        y /= np.sqrt(variance + self.dtype.type(self.eps))
        if self.weight is not None:
            y *= self.weight
        if self.bias is not None:
            y += self.bias
        return y
