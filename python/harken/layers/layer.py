"""What every layer is: named parameters, layers inside of it, a call, and a state that is loaded and given back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.foreign import view
from harken.layers.contiguous import placed
from harken.layers.integers import NAMED
from harken.layers.weights import read

Array = NDArray[Any]
Rng = np.random.Generator | int | None


class Layer:
    """The base of all layers.

    A layer computes in its `dtype`, float32 or float64, and takes inputs of that type: mixing them is a mistake that
    it names. Its parameters are attributes, plain arrays in C order that may be changed or assigned at any time; none
    is remembered in another form between calls. What is assigned must have the parameter's shape; it becomes of the
    layer's dtype, and is shared where it is so already: `head.weight = embedding.weight` ties the two. Layers that are
    attributes of a layer are inside of it, and their parameters carry their names: `encoder.layers.0.linear1.weight`.

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

    def __setattr__(self, name: str, value: Any) -> None:
        shape = vars(self).get("_parameters", {}).get(name)
        if shape is not None:
            value = np.asarray(_floating(name, value), self.dtype, order="C")
            if value.shape != shape:
                raise ValueError(f"{name} is {value.shape}, wanted {shape}")
        super().__setattr__(name, value)

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
            Of any floating type, of NumPy or of another library; they are copied, and rounded to the layer's dtype
            where that is narrower. `torch.nn.Module.state_dict()` is such a mapping, and saved by `safetensors` or by
            `np.savez` such a file.
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
            Parameters that are missing, or that the layer does not have, or have another shape: all kinds are named
            at once, and nothing has been changed.
        TypeError
            A parameter that holds no floating numbers; nothing has been changed.
        ImportError
            A .safetensors file without the package safetensors, or with bfloat16 in it and without ml_dtypes.

        Examples
        --------
        >>> import numpy as np
        >>> from harken.layers import Linear
        >>> layer = Linear(3, 2).load({"weight": np.ones((2, 3)), "bias": np.zeros(2)})
        >>> layer(np.float32([1, 2, 3]))
        array([6., 6.], dtype=float32)
        """
        every = state if isinstance(state, Mapping) else read(state)
        if others := [name for name in every if not isinstance(name, str)]:
            raise TypeError(f"the state has the name {others[0]!r}: wanted words, such as 'weight'")
        given = {name.removeprefix(prefix): value for name, value in every.items() if name.startswith(prefix)}
        owned = {name: (layer, own) for name, layer, own in self._owned()}
        if owned and every and not given:
            raise ValueError(f"no name in the state begins with {prefix!r}: there are {', '.join(_few(list(every)))}")
        taken, wrong = {}, []
        for name, (layer, own) in owned.items():
            if name in given:
                array = _floating(prefix + name, given[name])
                if array.shape != layer._parameters[own]:
                    wrong.append(f"{prefix}{name} is {array.shape}, wanted {layer._parameters[own]}")
                taken[name] = array
        missing = [prefix + name for name in owned if name not in given]
        surplus = [prefix + name for name in given if name not in owned] if strict else []
        mistakes = [", ".join(_few(wrong))] if wrong else []
        mistakes += [f"missing: {', '.join(_few(missing))}"] if missing else []
        mistakes += [f"unknown: {', '.join(_few(surplus))}"] if surplus else []
        if mistakes:
            raise ValueError(f"the state does not fit {type(self).__name__}: {'; '.join(mistakes)}")
        copies = {name: placed(array, owned[name][0].dtype) for name, array in taken.items()}
        for name, copy in copies.items():
            layer, own = owned[name]
            setattr(layer, own, copy)
        return self

    def take(self, name: str, x: ArrayLike, *, axes: int, last: int | None = None) -> Array:
        """An input as an array of the layer's dtype, with at least so many axes, the last of the size that is wanted.

        Lists, integers and numbers of another byte order become the layer's dtype; floating arrays of another type are
        a TypeError.
        """
        array = x if type(x) is np.ndarray and x.dtype == self.dtype else self._converted(name, x)
        if array.ndim < axes:
            raise ValueError(f"{name} is {array.shape}: wanted {axes} or more axes")
        if last is not None and array.shape[-1] != last:
            raise ValueError(f"{name} is {array.shape}: wanted {last} numbers along the last axis")
        return array

    def _converted(self, name: str, x: Any) -> Array:
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, whose mask would be lost: give np.asarray({name})")
        try:
            array = np.asarray(view(name, x))
        except ValueError as error:
            raise ValueError(f"{name} cannot be read as an array: {error}") from None
        given = array.dtype.newbyteorder("=")
        if hasattr(x, "dtype") and given.kind not in "iu" and given != self.dtype:
            remedy = f"give {name}.astype(np.{self.dtype})"
            if given in (np.float32, np.float64):
                raise TypeError(
                    f"{name} is {given}, the layer is {self.dtype}: {remedy}, or make the layer with dtype={given}"
                )
            raise TypeError(f"{name} is {array.dtype}: {remedy}")
        if given.kind not in "iuf":
            raise TypeError(f"{name} is {given}: wanted floating numbers")
        return array.astype(self.dtype, copy=False)

    def output_lengths(self, lengths: ArrayLike) -> ArrayLike:
        """How many positions the answer has where x has so many: as many, unless the layer says otherwise."""
        return lengths

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """What the layer makes of its inputs."""
        raise TypeError(f"{type(self).__name__} says not what it computes: define its __call__")

    def __repr__(self) -> str:
        parts = [f"{name}{shape}" for name, shape in self._parameters.items()]
        parts += [f"{name}={layer!r}" for name, layer in self.inner()]
        return f"{type(self).__name__}({', '.join(parts)})"


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= NAMED else [*names[:NAMED], f"and {len(names) - NAMED} more"]


def _floating(name: str, x: Any) -> Array:
    """The numbers of a parameter, of whatever floating type, or a list of any numbers."""
    array = np.asarray(view(name, x))
    whole = array.dtype.kind in "iu" and not hasattr(x, "dtype")
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16" and not whole:
        raise TypeError(f"{name} is {array.dtype}: wanted floating numbers")
    return array
