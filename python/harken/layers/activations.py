"""Activations: functions of each number by itself, in one native pass, and the same as layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken._load import core
from harken.layers.contiguous import apart, beside, numbers, target
from harken.layers.layer import Layer

Array = NDArray[Any]

NAMES = ("gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh")


def _activate(name: str, x: ArrayLike, bias: ArrayLike | None, out: Array | None) -> Array:
    array = numbers("x", x)
    if bias is not None and array.ndim == 0:
        raise ValueError("x is (): wanted an axis, the last, along which bias is added")
    b = beside("bias", bias, array, array.shape[-1:], "the last axis of x")
    out = target("out", out, array.dtype, array.shape)
    core._activate(name, apart(array, out), None if b is None else apart(b, out, in_place=False), out)
    return out


def gelu(x: ArrayLike, approximate: str = "none", *, bias: ArrayLike | None = None, out: Array | None = None) -> Array:
    """x Phi(x), with Phi the normal distribution function.

    Phi keeps its relative accuracy on the left, where (1 + erf(x / sqrt(2))) / 2 loses it.

    Parameters
    ----------
    x : (...,), float32 or float64
    approximate : {"none", "tanh"}
        "tanh" takes (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 for Phi, as networks do that were trained so.
    bias : (C,), optional
        Is added along the last axis of x first, in the same pass.
    out : array like x, optional
        Receives the result; `out=x` computes in place.

    Returns
    -------
    array like x

    Raises
    ------
    ValueError
        `approximate` is another word; `bias` or `out` do not fit x.
    TypeError
        x is not of a floating type, or `bias` of another.

    Examples
    --------
    >>> gelu([-1.0, 0.0, 1.0]).round(3)
    array([-0.159,  0.   ,  0.841])

    References
    ----------
    .. [1] D. Hendrycks and K. Gimpel, "Gaussian Error Linear Units (GELUs)", 2016, arXiv:1606.08415.
    """
    return _activate(_gelu(approximate), x, bias, out)


def _gelu(approximate: str) -> str:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is {approximate!r}: wanted 'none' or 'tanh'")
    return "gelu" if approximate == "none" else "gelu_tanh"


def relu(x: ArrayLike, *, bias: ArrayLike | None = None, out: Array | None = None) -> Array:
    """max(x, 0), or of x + bias; NaN stays NaN. `out=x` computes in place.

    >>> relu([-1.0, 2.0])
    array([0., 2.])
    """
    return _activate("relu", x, bias, out)


def silu(x: ArrayLike, *, bias: ArrayLike | None = None, out: Array | None = None) -> Array:
    """x / (1 + exp(-x)), also known as swish, or of x + bias. `out=x` computes in place.

    >>> silu([-1.0, 0.0, 1.0]).round(3)
    array([-0.269,  0.   ,  0.731])

    References
    ----------
    .. [1] S. Elfwing et al., "Sigmoid-Weighted Linear Units for Neural Network Function Approximation", 2017,
       arXiv:1702.03118.
    """
    return _activate("silu", x, bias, out)


def sigmoid(x: ArrayLike, *, bias: ArrayLike | None = None, out: Array | None = None) -> Array:
    """1 / (1 + exp(-x)), or of x + bias. `out=x` computes in place.

    >>> sigmoid([0.0, 2.0]).round(3)
    array([0.5  , 0.881])
    """
    return _activate("sigmoid", x, bias, out)


def tanh(x: ArrayLike, *, bias: ArrayLike | None = None, out: Array | None = None) -> Array:
    """(exp(2 x) - 1) / (exp(2 x) + 1), or of x + bias. `out=x` computes in place.

    >>> tanh([0.0, 1.0]).round(3)
    array([0.   , 0.762])
    """
    return _activate("tanh", x, bias, out)


class _Activation(Layer):
    """A layer without parameters, which computes a function of each number."""

    function: Callable[..., Array]

    def __init__(self, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)

    def __call__(self, x: ArrayLike) -> Array:
        return type(self).function(self.take("x", x, axes=0))


class GELU(Layer):
    """`gelu` as a layer.

    >>> GELU(approximate="tanh", dtype=np.float64)([-1.0, 1.0]).round(4)
    array([-0.1588,  0.8412])
    """

    approximate: str

    def __init__(self, approximate: str = "none", *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)
        _gelu(approximate)
        self.approximate = approximate

    def __call__(self, x: ArrayLike) -> Array:
        return gelu(self.take("x", x, axes=0), approximate=self.approximate)


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
