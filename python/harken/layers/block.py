"""What the layers of encoder and decoder share: a sum with what a part makes of x, normalised, and a perceptron."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from harken.layers.activations import NAMES
from harken.layers.layer import Layer
from harken.layers.linear import Linear, product
from harken.layers.norm import LayerNorm

Array = NDArray[Any]
Activation = str | Callable[[Array], Array]


class Block(Layer):
    """A layer of an encoder or decoder: parts in a row, each added to its input, normalised before or after."""

    d_model: int
    norm_first: bool
    linear1: Linear
    linear2: Linear
    norm1: LayerNorm
    norm2: LayerNorm

    def _build(
        self, d_model: int, width: int, activation: Activation, eps: float, bias: bool, norms: int, rng: Any
    ) -> None:
        """The perceptron and the normalisations, behind the attention that there is already."""
        if isinstance(activation, str) and activation not in NAMES:
            raise ValueError(f"activation is {activation!r}: wanted one of {', '.join(NAMES)}, or a function")
        if not isinstance(activation, str) and not callable(activation):
            raise TypeError(f"activation is {activation!r}: wanted a name, {', '.join(NAMES)}, or a function")
        self.d_model, self.activation = d_model, activation
        self.linear1 = Linear(d_model, width, bias, dtype=self.dtype, rng=rng)
        self.linear2 = Linear(width, d_model, bias, dtype=self.dtype, rng=rng)
        for n in range(norms):
            setattr(self, f"norm{n + 1}", LayerNorm(d_model, eps, bias=bias, dtype=self.dtype))

    def _through(self, x: Array, *parts: tuple[LayerNorm, Callable[[Array], Array]]) -> Array:
        """x = norm(x + part(x)) for each part, or x = x + part(norm(x)) with norm_first.

        Sums are taken in the pass of the normalisation behind them, into what a part has made anew; x stays as it is.
        """
        if not self.norm_first:
            for norm, part in parts:
                y = part(x)
                x = norm(y, residual=x, out=y)
            return x
        (norm, part), *others = parts
        y = part(norm(x))
        for norm, part in others:
            z = norm(y, residual=x, total=y)
            x, y = y, part(z)
        y += x
        return y

    def _feed(self, x: Array) -> Array:
        """linear2(activation(linear1(x)))."""
        weight, bias, f = self.linear1.weight, self.linear1.bias, self.activation
        h = product(x, weight, bias, f if isinstance(f, str) else None)
        if not isinstance(f, str):
            a = np.asarray(f(h))
            if a.shape != h.shape or a.dtype != h.dtype:
                raise ValueError(f"activation gives {a.dtype} {a.shape} for {h.dtype} {h.shape}: wanted the same")
            h = a
        return product(h, self.linear2.weight, self.linear2.bias)


OneLayer = TypeVar("OneLayer", bound=Block)


class Stack(Layer, Generic[OneLayer]):
    """Copies of a layer in a row, and a normalisation behind the last: what encoders and decoders are alike."""

    layers: list[OneLayer]

    def __init__(self, layer: OneLayer, num_layers: int, norm: LayerNorm | None) -> None:
        super().__init__(layer.dtype)
        self.d_model = layer.d_model
        self.layers = [copy.deepcopy(layer) for _ in range(num_layers)]
        self.norm = norm

    def inner(self) -> Iterator[tuple[str, Layer]]:
        yield from ((f"layers.{n}", layer) for n, layer in enumerate(self.layers))
        yield from super().inner()
