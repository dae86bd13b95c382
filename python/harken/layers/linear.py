"""A linear map of the last axis, y = f(x Wᵀ + b): natively where that is faster than NumPy's matrix product."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken._load import core
from harken.layers.activations import NAMES
from harken.layers.contiguous import apart, room, target
from harken.layers.integers import size
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
        in_features, out_features = size("in_features", in_features), size("out_features", out_features)
        rng = np.random.default_rng(rng)
        reach = 1 / max(in_features, 1) ** 0.5
        self.own(weight=rng.uniform(-reach, reach, (out_features, in_features)))
        self.bias = None
        if bias:
            self.own(bias=rng.uniform(-reach, reach, out_features))

    def __call__(self, x: ArrayLike, *, activation: str | None = None, out: Array | None = None) -> Array:
        """y = f(x Wᵀ + b).

        Parameters
        ----------
        x : (..., in_features)
        activation : {"gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh"}, optional
            f, computed as the sums become known, in the pass that adds the bias.
        out : (..., out_features), optional
            Receives the result.

        Returns
        -------
        (..., out_features)
        """
        if activation is not None and activation not in NAMES:
            raise ValueError(f"activation is {activation!r}: wanted one of {', '.join(NAMES)}, or None")
        x = self.take("x", x, axes=1, last=self.weight.shape[1])
        # As one matrix of rows: NumPy multiplies a stack of matrices one by one, (8, 100, 512) twice as long.
        rows, (out_features, in_features) = math.prod(x.shape[:-1]), self.weight.shape
        y = target("out", out, self.dtype, (*x.shape[:-1], out_features))
        x, flat = x.reshape(rows, in_features), y.reshape(rows, out_features)
        bias = None if self.bias is None else apart(self.bias, out, in_place=False)
        product(apart(x, out, in_place=False), apart(self.weight, out, in_place=False), bias, activation, flat)
        return y


def product(
    x: Array, weight: Array, bias: Array | None, activation: str | None = None, out: Array | None = None
) -> Array:
    """f(x Wᵀ + b) for a matrix of rows, (T, in) to (T, out).

    Few rows are multiplied as x and W lie, many on a matrix engine if there is one, else by NumPy: a row's last bits
    may depend on which of these it is.
    """
    y = room((len(x), len(weight)), x.dtype) if out is None else out
    name = activation or "identity"
    if not core._linear(name, np.ascontiguousarray(x), np.ascontiguousarray(weight), bias, y):
        np.matmul(x, weight.T, out=y)
        if bias is not None or activation is not None:
            core._activate(name, y, bias, y)
    return y
