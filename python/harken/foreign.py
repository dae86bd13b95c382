"""Arrays of other libraries: read where they lie and answered in kind, by way of DLPack.

An object whose type has `__dlpack__` says where its numbers are, and a library with `from_dlpack` makes an array of its
own from such a saying. That is all that is known here of any library, and neither way is a number copied. (Classes that
also have `__dlpack_c_exchange_api__`, such as PyTorch's, meet `attention` in foreign.cpp without a call of Python.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harken._load import core

Array = NDArray[Any]


class OnCard(RuntimeError):
    """An array lies on a card, where this function does not compute."""


def is_foreign(x: object) -> bool:
    """Is it an array of another library?"""
    if isinstance(x, np.ndarray):
        return False
    return hasattr(type(x), "__dlpack__") or hasattr(type(x), "__cuda_array_interface__")


def view(name: str, x: Any) -> Any:
    """A NumPy array over the memory of a foreign array, which it keeps alive; anything else as it is."""
    if not is_foreign(x):
        return x
    if not hasattr(type(x), "__dlpack__"):
        raise OnCard(f"{name} lies on a card: this function computes on the CPU only; give a copy that lies on the CPU")
    if getattr(x, "requires_grad", False):
        raise TypeError(f"{name} requires a gradient, which harken does not compute: give {name}.detach()")
    if hasattr(x, "is_neg") and x.is_neg():  # which PyTorch exports as if it were not
        raise TypeError(f"{name} negates what lies in memory: give {name}.resolve_neg()")
    try:
        try:
            capsule = x.__dlpack__(max_version=(1, 0))
        except Exception:  # of an exporter from before version 1; another says again what is wrong
            capsule = x.__dlpack__()
    except MemoryError:
        raise
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise TypeError(f"{name} is a {_kind(x)} that cannot be read where it lies: {why}") from error
    if type(capsule).__name__ != "PyCapsule":
        raise TypeError(f"{name} is a {_kind(x)} that gives no DLPack capsule: it gives {type(capsule).__name__}")
    return core._view(capsule, name)


def give(like: Any, array: Array) -> Any:
    """The array as one of the library and on the device of `like`; a NumPy array where no library takes it."""
    library = library_of(like) if is_foreign(like) else None
    if library is None:
        return array
    exporter = array if array.dtype.isbuiltin == 1 else _Export(array)
    result, device = library.from_dlpack(exporter), getattr(like, "device", None)
    return result if getattr(result, "device", None) == device else library.from_dlpack(exporter, device=device)


def any_foreign(given: Iterable[Any]) -> bool:
    """Is one of them an array of another library, or a list with one?"""
    return any(is_foreign(x) or (isinstance(x, (list, tuple)) and any(map(is_foreign, x))) for x in given)


def in_numpy(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What a function of q (or x), ... and out that computes with NumPy answers to arrays of any library."""

    def viewed(name: str, x: Any) -> Any:
        if isinstance(x, (list, tuple)) and any(map(is_foreign, x)):
            return [view(f"{name}[{n}]", part) for n, part in enumerate(x)]
        return view(name, x)

    def answered(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return give(like, x)
        if isinstance(x, (list, tuple)):
            return type(x)(map(answered, x))
        if is_dataclass(x) and not isinstance(x, type):
            return type(x)(*(answered(getattr(x, f.name)) for f in fields(x)))
        return x

    results = function(**{name: viewed(name, x) for name, x in given.items()})
    like, out = given["q" if "q" in given else "x"], given.get("out")
    if isinstance(like, (list, tuple)):
        like = like[0]
    if out is None:
        return answered(results)
    return (out, *map(answered, results[1:])) if isinstance(results, tuple) else out


class _Export:
    """An array for other libraries that is of none of NumPy's own types, such as bfloat16: NumPy exports no other."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **wanted: object) -> object:
        return core._capsule(self.array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def library_of(x: Any) -> Any:
    """What has the `from_dlpack` that makes such arrays: the namespace it names, or the package of its class."""
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    packages = (sys.modules.get(kind.__module__.partition(".")[0]) for kind in type(x).__mro__)
    return next((package for package in packages if hasattr(package, "from_dlpack")), None)


def _kind(x: Any) -> str:
    """torch.Tensor, jax.DynamicJaxprTracer: the class by its package and its name."""
    return f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
