"""What the layers of encoder and decoder share: a sum with what a part makes of x, normalised, and a perceptron."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from harken.layers.activations import NAMES
from harken.layers.heads import MultiHeadAttention
from harken.layers.layer import Layer, Rng
from harken.layers.linear import Linear, product
from harken.layers.norm import LayerNorm
from harken.layers.rotary import Rope

Array = NDArray[Any]
Activation = str | Callable[[Array], Array]


class Block(Layer):
    """A layer of an encoder or decoder: parts in a row, each added to its input, normalised before or after."""

    _attentions: ClassVar[tuple[str, ...]] = ("self_attn",)
    d_model: int
    norm_first: bool
    self_attn: MultiHeadAttention
    linear1: Linear
    linear2: Linear
    norm1: LayerNorm
    norm2: LayerNorm

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        bias: bool = True,
        *,
        num_kv_heads: int | None = None,
        rope: Rope | None = None,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(dtype)
        rng = np.random.default_rng(rng)
        self.norm_first = norm_first
        for name in self._attentions:
            turning = rope if name == "self_attn" else None  # x and a memory have no positions in common
            attention = MultiHeadAttention(
                d_model, nhead, bias, num_kv_heads=num_kv_heads, rope=turning, dtype=dtype, rng=rng
            )
            setattr(self, name, attention)
        if isinstance(activation, str) and activation not in NAMES:
            raise ValueError(f"activation is {activation!r}: wanted one of {', '.join(NAMES)}, or a function")
        if not isinstance(activation, str) and not callable(activation):
            raise TypeError(f"activation is {activation!r}: wanted a name, {', '.join(NAMES)}, or a function")
        self.d_model, self.activation = d_model, activation
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype=dtype, rng=rng)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype=dtype, rng=rng)
        for n in range(len(self._attentions) + 1):
            setattr(self, f"norm{n + 1}", LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype))

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
