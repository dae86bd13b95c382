"""Activations: functions of each number by itself, in one native pass, and the same as layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken._load import core
from harken.layers.layer import Layer

Array = NDArray[Any]


def _activate(name: str, x: ArrayLike, out: Array | None) -> Array:
    array = np.asarray(x)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"x is {array.dtype}: wanted float32 or float64")
    array = np.ascontiguousarray(array).reshape(array.shape)  # of native byte order, too
    if out is None:
        out = np.empty_like(array)
    elif not isinstance(out, np.ndarray) or out.dtype != array.dtype or out.shape != array.shape:
        given = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out is {given}: wanted an array of {array.dtype} {array.shape}, as x is")
    elif not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out is read-only or not contiguous: wanted a writeable array in C order")
    core._activate(name, array, out)
    return out


def relu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """max(x, 0); NaN stays NaN. `out=x` computes in place.

    >>> relu([-1.0, 2.0])
    array([0., 2.])
    """
    return _activate("relu", x, out)


_erf = np.frompyfunc(math.erf, 1, 1)


def gelu(x: ArrayLike, approximate: Literal["none", "tanh"] = "none", *, out: Array | None = None) -> Array:
    """x (1 + erf(x / sqrt 2)) / 2, or with tanh(sqrt(2 / pi) (x + 0.044715 x^3)) for erf. `out=x` computes in place.

    >>> gelu([-1.0, 0.0, 1.0]).round(3)
    array([-0.159,  0.   ,  0.841])
    """
    array = np.asarray(x)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if approximate == "tanh":
        inner = np.tanh(math.sqrt(2 / math.pi) * (array + 0.044715 * array**3))
    else:
        inner = np.asarray(_erf(array / math.sqrt(2)), array.dtype)
    result: Array = np.multiply(array / 2, 1 + inner, out=out)
    return result


def silu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """x / (1 + exp(-x)), also known as swish. `out=x` computes in place.

    >>> silu([-1.0, 0.0, 1.0]).round(3)
    array([-0.269,  0.   ,  0.731])

    References
    ----------
    .. [1] S. Elfwing et al., "Sigmoid-Weighted Linear Units for Neural Network Function Approximation", 2017,
       arXiv:1702.03118.
    """
    return _activate("silu", x, out)


def sigmoid(x: ArrayLike, *, out: Array | None = None) -> Array:
    """1 / (1 + exp(-x)). `out=x` computes in place.

    >>> sigmoid([0.0, 2.0]).round(3)
    array([0.5  , 0.881])
    """
    return _activate("sigmoid", x, out)


def tanh(x: ArrayLike, *, out: Array | None = None) -> Array:
    """(exp(2 x) - 1) / (exp(2 x) + 1). `out=x` computes in place.

    >>> tanh([0.0, 1.0]).round(3)
    array([0.   , 0.762])
    """
    return _activate("tanh", x, out)


class _Activation(Layer):
    """A layer without parameters, which computes a function of each number."""

    function: Callable[..., Array]

    def __init__(self, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)

    def __call__(self, x: ArrayLike) -> Array:
        return type(self).function(self.take("x", x, axes=0))


class ReLU(_Activation):
    """`relu` as a layer."""

    function = staticmethod(relu)


class SiLU(_Activation):
    """`silu` as a layer."""

    function = staticmethod(silu)


class Sigmoid(_Activation):
    """`sigmoid` as a layer."""

    function = staticmethod(sigmoid)


class Tanh(_Activation):
    """`tanh` as a layer."""

    function = staticmethod(tanh)


ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "relu": relu,
    "sigmoid": sigmoid,
    "silu": silu,
    "tanh": tanh,
}
NAMES = tuple(ACTIVATIONS)
