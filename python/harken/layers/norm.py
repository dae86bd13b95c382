"""Normalisation of the last axes: LayerNorm by mean and variance, RMSNorm by the mean square."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.layers.layer import Layer

Array = NDArray[Any]


def _normalize(x: Array, axes: int, weight: Array | None, bias: Array | None, eps: float, center: bool) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axes; without `center` the mean counts as 0."""
    over = tuple(range(-axes, 0))
    if x.size == 0:
        return x.copy()
    with np.errstate(all="ignore"):  # infinities and NaN go where the equation takes them
        y: Array = x - x.mean(over, keepdims=True) if center else x
        y = y / np.sqrt((y * y).mean(over, keepdims=True) + x.dtype.type(eps))
        if weight is not None:
            y *= weight
        if bias is not None:
            y += bias
    return y


class _Norm(Layer):
    """What both have in common: the shape that is normalised, and a weight of that shape."""

    weight: Array | None
    bias: Array | None

    def __init__(
        self, normalized_shape: int | Iterable[int], elementwise_affine: bool, bias: bool, dtype: DTypeLike
    ) -> None:
        super().__init__(dtype)
        shape = (normalized_shape,) if isinstance(normalized_shape, int | np.integer) else tuple(normalized_shape)
        if not shape or not all(isinstance(n, int | np.integer) and n >= 0 for n in shape):
            raise ValueError(f"normalized_shape is {normalized_shape}: wanted the sizes of one or more last axes")
        self.normalized_shape = tuple(map(int, shape))
        self.weight = self.bias = None
        if elementwise_affine:
            self.own(weight=np.ones(self.normalized_shape))
            if bias:
                self.own(bias=np.zeros(self.normalized_shape))

    def _taken(self, x: ArrayLike) -> Array:
        wanted = self.normalized_shape
        array = self.take("x", x, axes=len(wanted))
        if array.shape[-len(wanted) :] != wanted:
            raise ValueError(f"x is {array.shape}: wanted {wanted} along the last axes")
        return array


class LayerNorm(_Norm):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, mean and variance being those of the last axes.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The sizes of the last axes, over which it is taken: x is (..., *normalized_shape).
    eps : float
        1e-5, as in PyTorch; Keras' default is 1e-3.
    elementwise_affine : bool
        Whether there are parameters.
    bias : bool
        Whether there is a bias among them.
    dtype : float32 or float64

    Attributes
    ----------
    weight, bias : normalized_shape, or None

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer Normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import LayerNorm
    >>> LayerNorm(3)(np.float32([1, 2, 3])).round(3)
    array([-1.225,  0.   ,  1.225], dtype=float32)
    """

    def __init__(
        self,
        normalized_shape: int | Iterable[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, elementwise_affine, bias, dtype)
        self.eps = eps

    def __call__(self, x: ArrayLike) -> Array:
        return _normalize(self._taken(x), len(self.normalized_shape), self.weight, self.bias, self.eps, center=True)


class RMSNorm(_Norm):
    """y = x / sqrt(mean(x²) + eps) * weight, the mean being that of the last axes.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The sizes of the last axes, over which it is taken: x is (..., *normalized_shape).
    eps : float, optional
        None is the distance from 1 to the next number of the dtype, 1.2e-7 in float32, as in PyTorch. Keras' default
        is 1e-6, as is that of many models.
    elementwise_affine : bool
        Whether there is a weight.
    dtype : float32 or float64

    Attributes
    ----------
    weight : normalized_shape, or None

    References
    ----------
    .. [1] B. Zhang and R. Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import RMSNorm
    >>> RMSNorm(2)(np.float32([3, 4])).round(3)
    array([0.849, 1.131], dtype=float32)
    """

    def __init__(
        self,
        normalized_shape: int | Iterable[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, elementwise_affine, bias=False, dtype=dtype)
        self.eps = eps

    def __call__(self, x: ArrayLike) -> Array:
        eps = float(np.finfo(self.dtype).eps) if self.eps is None else self.eps
        return _normalize(self._taken(x), len(self.normalized_shape), self.weight, None, eps, center=False)
