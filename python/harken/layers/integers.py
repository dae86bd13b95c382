"""The integers that layers take: sizes, tokens, offsets and lengths, checked and named where they are wrong."""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.foreign import view

Array = NDArray[Any]

NAMED = 5  # how many of many an error message says


def size(name: str, value: Any, least: int = 0) -> int:
    """A whole number that says how large a layer is; a ValueError or TypeError names it."""
    try:
        number = index(value) if not isinstance(value, bool) else None
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} is {value!r}: wanted an integer")
    if number < least:
        raise ValueError(f"{name} is {number}: wanted {least} or more")
    return number


def whole(name: str, numbers: ArrayLike) -> Array:
    """Integers of any type as an array; what is none is a TypeError that names it."""
    array = np.asarray(view(name, numbers))
    if array.size == 0 and not hasattr(numbers, "dtype"):
        return array.astype(np.intp)  # an empty list, which NumPy takes to be of floats
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} is {array.dtype}: wanted integers")
    return array


def rows(name: str, numbers: ArrayLike, count: int) -> Array:
    """Integers that number the rows of a table; those beyond it are an IndexError that says which, and where."""
    array = whole(name, numbers)
    if array.size and (array.min() < 0 or array.max() >= count):
        beyond = np.argwhere((array < 0) | (array >= count))
        found = [f"{array[tuple(at)]} at {tuple(map(int, at))}" for at in beyond[:NAMED]]
        found += [f"and {len(beyond) - NAMED} more"] if len(beyond) > NAMED else []
        raise IndexError(f"{name} holds {', '.join(found)}: wanted 0 to {count - 1}")
    return array.astype(np.intp, copy=False)


def per_row(name: str, numbers: ArrayLike, batch: tuple[int, ...]) -> Array:
    """An integer for each row of the batch, or one for all, as it was given."""
    array = whole(name, numbers)
    try:
        np.broadcast_to(array, batch)
    except ValueError:
        raise ValueError(f"{name} is {array.shape}: wanted one number, or {batch}, one for each row") from None
    return array.astype(np.int64)


def row_lengths(name: str, lengths: ArrayLike | None, batch: tuple[int, ...], most: int) -> Array | None:
    """How many positions of each row count, 0 to `most`; None is all of them."""
    if lengths is None:
        return None
    array = per_row(name, lengths, batch)
    if array.size and (array.min() < 0 or array.max() > most):
        worst = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{name} holds {worst}: wanted 0 to {most}, the positions that there are")
    return array
