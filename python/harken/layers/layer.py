"""What every layer is: named parameters, layers inside of it, a call, and a state that is loaded and given back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.layers.contiguous import placed
from harken.layers.weights import read

Array = NDArray[Any]
Rng = np.random.Generator | int | None

NAMED = 5  # how many names of many an error message says


class Layer:
    """The base of all layers.

    A layer computes in its `dtype`, float32 or float64, and takes inputs of that type: mixing them is a mistake that
    it names. Its parameters are attributes, plain arrays in C order that may be changed or assigned at any time; none
    is remembered in another form between calls. Layers that are attributes of a layer are inside of it, and their
    parameters carry their names: `encoder.layers.0.linear1.weight`.

    A layer of one's own declares its parameters with `own` and keeps its inner layers as attributes::

        class Gate(Layer):
            def __init__(self, size, *, dtype=np.float32, rng=None):
                super().__init__(dtype)
                rng = np.random.default_rng(rng)
                self.own(bias=rng.uniform(-1, 1, size))
                self.linear = Linear(size, size, dtype=dtype, rng=rng)

            def __call__(self, x):
                return sigmoid(self.linear(x) + self.bias) * x
    """

    dtype: np.dtype[Any]
    """What the layer computes in, and takes and gives."""

    def __init__(self, dtype: DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"dtype is {self.dtype}: layers compute in float32 or float64")
        self._parameters: dict[str, tuple[int, ...]] = {}

    def own(self, **arrays: ArrayLike) -> None:
        """Declare parameters, in the order in which `state` gives them, each with its first value."""
        for name, array in arrays.items():
            value = placed(array, self.dtype)
            self._parameters[name] = value.shape
            setattr(self, name, value)

    def inner(self) -> Iterator[tuple[str, Layer]]:
        """The layers inside of this one, each with its name."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value

    def _owned(self, prefix: str = "") -> Iterator[tuple[str, Layer, str]]:
        """Each parameter, of inner layers too, by its full name, with the layer that owns it and its name there."""
        for name in self._parameters:
            yield prefix + name, self, name
        for name, layer in self.inner():
            yield from layer._owned(f"{prefix}{name}.")

    def state(self) -> dict[str, Array]:
        """All parameters by name: the arrays themselves, not copies."""
        return {name: getattr(layer, own) for name, layer, own in self._owned()}

    def load(
        self, state: Mapping[str, ArrayLike] | str | os.PathLike[str], *, prefix: str = "", strict: bool = True
    ) -> Self:
        """Take over parameters by name: from a dictionary of arrays, or from a .safetensors or .npz file.

        Parameters
        ----------
        state : mapping of str to array, or path
            Of any floating type (arrays of other libraries, too, if NumPy can read them); they are copied, and rounded
            to the layer's dtype where that is narrower. `torch.nn.Module.state_dict()` saved by `safetensors` or by
            `np.savez` is such a file.
        prefix : str
            Only names that begin with this count, and it is taken off: "encoder." of a larger model.
        strict : bool
            Whether names that the layer does not have are a mistake.

        Returns
        -------
        Layer
            Itself.

        Raises
        ------
        ValueError
            Parameters that are missing, or that the layer does not have, or have another shape: all are named, and
            nothing has been changed.
        TypeError
            A parameter that holds no floating numbers.
        ImportError
            A .safetensors file without the package safetensors.

        Examples
        --------
        >>> import numpy as np
        >>> from harken.layers import Linear
        >>> layer = Linear(3, 2).load({"weight": np.ones((2, 3)), "bias": np.zeros(2)})
        >>> layer(np.float32([1, 2, 3]))
        array([6., 6.], dtype=float32)
        """
        given = state if isinstance(state, Mapping) else read(state)
        given = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
        owned = {name: (layer, own) for name, layer, own in self._owned()}
        taken, wrong = {}, []
        for name, (layer, own) in owned.items():
            if name not in given:
                continue
            array = np.asarray(given[name])
            if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
                raise TypeError(f"{prefix}{name} is {array.dtype}: wanted floating numbers")
            if array.shape != layer._parameters[own]:
                wrong.append(f"{prefix}{name} is {array.shape}, wanted {layer._parameters[own]}")
            taken[name] = array
        missing = [prefix + name for name in owned if name not in given]
        surplus = [prefix + name for name in given if name not in owned] if strict else []
        mistakes = [f"{', '.join(_few(wrong))}"] if wrong else []
        mistakes += [f"missing: {', '.join(_few(missing))}"] if missing else []
        mistakes += [f"unknown: {', '.join(_few(surplus))}"] if surplus else []
        if mistakes:
            raise ValueError(f"the state does not fit {type(self).__name__}: {'; '.join(mistakes)}")
        for name, array in taken.items():
            layer, own = owned[name]
            setattr(layer, own, placed(array, layer.dtype))
        return self

    def take(self, name: str, x: ArrayLike, *, axes: int, last: int | None = None) -> Array:
        """An input as an array of the layer's dtype, with at least so many axes, the last of the size that is wanted.

        Lists and integers become the layer's dtype; floating arrays of another one are a TypeError.
        """
        array = np.asarray(x)
        if array.dtype != self.dtype:
            if isinstance(x, np.ndarray | np.generic) and array.dtype.kind not in "iu":
                raise TypeError(
                    f"{name} is {array.dtype}, the layer is {self.dtype}: give {name}.astype(np.{self.dtype}), or make "
                    f"the layer with dtype={array.dtype}"
                    if array.dtype in (np.float32, np.float64)
                    else f"{name} is {array.dtype}: give {name}.astype(np.{self.dtype})"
                )
            if array.dtype.kind not in "iuf":
                raise TypeError(f"{name} is {array.dtype}: wanted floating numbers")
            array = array.astype(self.dtype)
        if array.ndim < axes:
            raise ValueError(f"{name} is {array.shape}: wanted {axes} or more axes")
        if last is not None and array.shape[-1] != last:
            raise ValueError(f"{name} is {array.shape}: wanted {last} numbers along the last axis")
        return array

    def __call__(self, x: ArrayLike) -> Array:
        """What the layer makes of x."""
        raise NotImplementedError(f"{type(self).__name__} says not what it computes")

    def __repr__(self) -> str:
        parts = [f"{name}{shape}" for name, shape in self._parameters.items()]
        parts += [f"{name}={layer!r}" for name, layer in self.inner()]
        return f"{type(self).__name__}({', '.join(parts)})"


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= NAMED else [*names[:NAMED], f"and {len(names) - NAMED} more"]
