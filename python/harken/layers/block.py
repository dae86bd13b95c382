"""What the layers of encoder and decoder share: a sum with what a part makes of x, normalised, and a perceptron."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harken.layers.activations import gelu, relu, silu
from harken.layers.layer import Layer
from harken.layers.linear import Linear, product
from harken.layers.norm import LayerNorm

Array = NDArray[Any]
Activation = str | Callable[[Array], Array]

ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "silu": silu,
}


class Block(Layer):
    """A layer of an encoder or decoder: parts in a row, each added to its input, normalised before or after."""

    linear1: Linear
    linear2: Linear
    norm1: LayerNorm
    norm2: LayerNorm

    def _build(
        self, d_model: int, width: int, activation: Activation, eps: float, bias: bool, norms: int, rng: Any
    ) -> None:
        """The perceptron and the normalisations, behind the attention that there is already."""
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}: wanted one of {', '.join(ACTIVATIONS)}, or a function")
        if not isinstance(activation, str) and not callable(activation):
            raise TypeError(f"activation is {activation!r}: wanted a name, {', '.join(ACTIVATIONS)}, or a function")
        self.d_model, self.activation = d_model, activation
        self.linear1 = Linear(d_model, width, bias, dtype=self.dtype, rng=rng)
        self.linear2 = Linear(width, d_model, bias, dtype=self.dtype, rng=rng)
        for n in range(norms):
            setattr(self, f"norm{n + 1}", LayerNorm(d_model, eps, bias=bias, dtype=self.dtype))

    def _add(self, x: Array, norm: LayerNorm, part: Callable[[Array], Array]) -> Array:
        """norm(x + part(x)), or x + part(norm(x)) with norm_first; x stays as it is."""
        y = part(norm(x) if self.norm_first else x)
        y += x
        return y if self.norm_first else norm(y)

    def _feed(self, x: Array) -> Array:
        """linear2(activation(linear1(x)))."""
        h = product(x, self.linear1.weight, self.linear1.bias)
        if isinstance(self.activation, str):
            ACTIVATIONS[self.activation](h, out=h)
        else:
            a = np.asarray(self.activation(h))
            if a.shape != h.shape or a.dtype != h.dtype:
                raise ValueError(f"activation gives {a.dtype} {a.shape} for {h.dtype} {h.shape}: wanted the same")
            h = a
        return product(h, self.linear2.weight, self.linear2.bias)

    norm_first: bool
