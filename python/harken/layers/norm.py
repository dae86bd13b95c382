"""Normalization of the last axes by mean and variance or by the mean square, in one native pass with a residual."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken._load import core
from harken.layers.contiguous import apart, beside, numbers, target
from harken.layers.layer import Layer

Array = NDArray[Any]


def _normalize(
    centered: bool,
    x: ArrayLike,
    axes: int,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    eps: float | None,
    residual: ArrayLike | None,
    out: Array | None,
    total: Array | None,
) -> Array:
    array = numbers("x", x)
    if array.ndim < axes:
        raise ValueError(f"x is {array.shape}: wanted {axes} or more axes")
    if eps is None:
        eps = float(np.finfo(array.dtype).eps)
    if not eps >= 0:
        raise ValueError(f"eps is {eps}: wanted a number of at least 0")
    shape = array.shape[array.ndim - axes :]
    w = beside("weight", weight, array, shape, "the last axis of x")
    b = beside("bias", bias, array, shape, "the last axis of x")
    added = beside("residual", residual, array, array.shape, "as x is")
    if total is not None and added is None:
        raise ValueError("total is given without residual: wanted both, total receives x + residual")
    y = target("out", out, array.dtype, array.shape)
    if total is not None:
        total = target("total", total, array.dtype, array.shape)
        if np.may_share_memory(total, y):
            raise ValueError("total overlaps out: wanted two arrays")
    C = math.prod(shape)
    rows = (math.prod(array.shape[: array.ndim - axes]), C)
    core._normalize(
        centered,
        apart(array, out, total).reshape(rows),
        None if added is None else apart(added, out, total),
        None if w is None else apart(w, out, total, in_place=False),
        None if b is None else apart(b, out, total, in_place=False),
        eps,
        y,
        total,
    )
    return y


def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    residual: ArrayLike | None = None,
    out: Array | None = None,
    total: Array | None = None,
) -> Array:
    """Rows of mean 0 and variance 1: y = (s - mean s) / sqrt(var s + eps) w + b, with s = x + residual.

    The variance is the mean of (s - mean s)^2, and the mean is corrected by the mean of the differences: a large
    offset costs no digits beside those that it has taken from x.

    Parameters
    ----------
    x : (..., C), float32 or float64
    weight, bias : (C,), optional
        w and b; 1 and 0 where they are not given.
    eps : float
    residual : array like x, optional
        Is added to x first, in the same pass.
    out : array like x, optional
        Receives the result. It may be x or the residual.
    total : array like x, optional
        Receives x + residual, which is what networks that normalize first go on with. It may be x or the residual.

    Returns
    -------
    array like x

    Raises
    ------
    ValueError
        A shape that does not fit x; `total` without `residual`, or overlapping `out`.
    TypeError
        x is not of a floating type, or another array is of another type than x.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import layer_norm
    >>> layer_norm([[1.0, 2.0, 3.0]], residual=[[0.0, 0.0, 3.0]]).round(3)
    array([[-0.926, -0.463,  1.389]])

    References
    ----------
    .. [1] J. L. Ba et al., "Layer Normalization", 2016, arXiv:1607.06450.
    """
    return _normalize(True, x, 1, weight, bias, eps, residual, out, total)


def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    eps: float | None = None,
    *,
    residual: ArrayLike | None = None,
    out: Array | None = None,
    total: Array | None = None,
) -> Array:
    """Rows of mean square 1: y = s / sqrt(mean(s^2) + eps) w, with s = x + residual.

    Parameters and errors are those of `layer_norm`; eps is that of x's type where it is None, 1.2e-7 or 2.2e-16.

    Examples
    --------
    >>> from harken.layers import rms_norm
    >>> rms_norm([[3.0, 4.0]]).round(3)
    array([[0.849, 1.131]])

    References
    ----------
    .. [1] B. Zhang and R. Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
    """
    return _normalize(False, x, 1, weight, None, eps, residual, out, total)


class _Norm(Layer):
    """Parameters over the last axes, and a call that takes a residual."""

    normalized_shape: tuple[int, ...]
    eps: float | None
    weight: Array | None
    bias: Array | None
    centered: bool

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float | None, affine: bool, bias: bool, dtype: DTypeLike
    ) -> None:
        super().__init__(dtype)
        shape = (normalized_shape,) if isinstance(normalized_shape, int | np.integer) else tuple(normalized_shape)
        if not shape or not all(isinstance(n, int | np.integer) and n >= 0 for n in shape):
            raise ValueError(f"normalized_shape is {normalized_shape}: wanted the sizes of one or more last axes")
        self.normalized_shape = tuple(int(n) for n in shape)
        self.eps = eps
        self.weight = self.bias = None
        if affine:
            self.own(weight=np.ones(self.normalized_shape))
        if affine and bias:
            self.own(bias=np.zeros(self.normalized_shape))

    def __call__(
        self,
        x: ArrayLike,
        *,
        residual: ArrayLike | None = None,
        out: Array | None = None,
        total: Array | None = None,
    ) -> Array:
        """The last axes of x + residual, normalized; out and total as in `layer_norm`."""
        axes = len(self.normalized_shape)
        x = self.take("x", x, axes=axes)
        if x.shape[x.ndim - axes :] != self.normalized_shape:
            raise ValueError(f"x is {x.shape}: wanted {self.normalized_shape} along the last axes")
        if residual is not None:
            residual = self.take("residual", residual, axes=axes)
        return _normalize(self.centered, x, axes, self.weight, self.bias, self.eps, residual, out, total)


class LayerNorm(_Norm):
    """y = (x - mean x) / sqrt(var x + eps) w + b over the last axes, as `layer_norm`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The sizes of the last axes, over which mean and variance are taken together.
    eps : float
    elementwise_affine : bool
        Whether there are w and b.
    bias : bool
        Whether there is a b, if there is a w.
    dtype : float32 or float64

    Attributes
    ----------
    weight : normalized_shape, or None
    bias : normalized_shape, or None

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import LayerNorm
    >>> LayerNorm(4)(np.float32([[1, 2, 3, 4]])).round(3)
    array([[-1.342, -0.447,  0.447,  1.342]], dtype=float32)

    References
    ----------
    .. [1] J. L. Ba et al., "Layer Normalization", 2016, arXiv:1607.06450.
    """

    centered = True

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, dtype)


class RMSNorm(_Norm):
    """y = x / sqrt(mean(x^2) + eps) w over the last axes, as `rms_norm`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The sizes of the last axes, over which the mean is taken.
    eps : float, optional
        That of the dtype if None: 1.2e-7 or 2.2e-16.
    elementwise_affine : bool
        Whether there is a w.
    dtype : float32 or float64

    Attributes
    ----------
    weight : normalized_shape, or None

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import RMSNorm
    >>> RMSNorm(4)(np.float32([[1, 2, 3, 4]])).round(3)
    array([[0.365, 0.73 , 1.095, 1.461]], dtype=float32)

    References
    ----------
    .. [1] B. Zhang and R. Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
    """

    centered = False

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, False, dtype)
