"""Layers one after the other, numbered or named."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.layers.layer import Layer

Array = NDArray[Any]


class Sequential(Layer):
    """y = last(... second(first(x))).

    Parameters
    ----------
    *layers : Layer, or one mapping of names to layers
        Numbered from 0, "0.weight", "1.weight", or named as in the mapping: `Sequential({"0": a, "3": b})` takes the
        parameters of a PyTorch model in which 1 and 2 have none, such as activations or Dropout. All of one dtype but
        for the first, which takes the input; none at all gives back x.

    Notes
    -----
    A layer that answers several arrays, such as LSTM, hands on the first of them. `lengths=` reaches the layers that
    take it, each as long as `output_lengths` of those before it says.

    Examples
    --------
    >>> import numpy as np
    >>> from harken.layers import Linear, Sequential, SiLU
    >>> model = Sequential(Linear(8, 32), SiLU(), Linear(32, 2))
    >>> list(model.state())
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> model(np.ones((5, 8), np.float32)).shape, len(model), model[-1].weight.shape
    ((5, 2), 3, (2, 32))
    """

    def __init__(self, *layers: Layer | Mapping[Any, Layer]) -> None:
        given: Mapping[Any, Any] = dict(enumerate(layers))
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            given = layers[0]
        for name, layer in given.items():
            if not isinstance(layer, Layer):
                raise TypeError(f"layer {name} is {layer!r}: wanted a Layer")
            if not str(name) or "." in str(name):
                raise ValueError(f"a layer is named {name!r}: wanted a name without a dot")
        super().__init__(next((layer.dtype for layer in given.values()), np.float32))
        self._layers: dict[str, Layer] = {str(name): layer for name, layer in given.items()}
        if len(self._layers) < len(given):
            raise ValueError(f"layers are named {', '.join(map(repr, given))}: wanted each name once")

    def inner(self) -> Iterator[tuple[str, Layer]]:
        """The layers, each with its name."""
        yield from self._layers.items()
        yield from super().inner()  # attributes of a class of one's own

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    @overload
    def __getitem__(self, which: int | str) -> Layer: ...
    @overload
    def __getitem__(self, which: slice) -> Sequential: ...
    def __getitem__(self, which: int | str | slice) -> Layer:
        """A layer by its place or its name; a slice is a Sequential of the same layers, which keep their names."""
        if isinstance(which, str):
            if which not in self._layers:
                raise KeyError(f"no layer is named {which!r}: there are {', '.join(map(repr, self._layers))}")
            return self._layers[which]
        if isinstance(which, slice):
            return Sequential(dict([*self._layers.items()][which]))
        return [*self._layers.values()][which]

    def output_lengths(self, lengths: ArrayLike) -> ArrayLike:
        """How many positions the answer has where x has so many."""
        for layer in self:
            lengths = layer.output_lengths(lengths)
        return lengths

    def __call__(self, x: ArrayLike, *, lengths: ArrayLike | None = None) -> Array:
        """What the last layer makes of what the others made of x."""
        y: Any = x
        for layer in self:
            if lengths is None:
                y = layer(y)
            else:
                takes = "lengths" in inspect.signature(layer.__call__).parameters
                y = layer(y, lengths=lengths) if takes else layer(y)
                lengths = layer.output_lengths(lengths)
            if isinstance(y, tuple):
                y = y[0]
        return y if len(self) else np.asarray(x)
