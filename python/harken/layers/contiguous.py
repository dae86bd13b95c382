"""Arrays as native passes take them: float32 or float64 in C order, and outputs that may overlap what is read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]


def numbers(name: str, x: ArrayLike) -> Array:
    """An input in C order and native byte order; integers and booleans become float64, as they do in NumPy."""
    array = np.asarray(x)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    native = array.dtype.newbyteorder("=")
    if native not in (np.float32, np.float64):
        raise TypeError(f"{name} is {array.dtype}: wanted float32 or float64")
    return np.ascontiguousarray(array, native).reshape(array.shape)


def beside(name: str, x: ArrayLike | None, like: Array, shape: tuple[int, ...], why: str) -> Array | None:
    """A further input of the type of the first, of a shape that follows from it."""
    if x is None:
        return None
    array = np.asarray(x)
    if array.dtype != like.dtype:
        if isinstance(x, np.ndarray):
            raise TypeError(f"{name} is {array.dtype}, x is {like.dtype}: give both the same dtype")
        array = array.astype(like.dtype)
    if array.shape != shape:
        raise ValueError(f"{name} is {array.shape}: wanted {shape}, {why}")
    return np.ascontiguousarray(array).reshape(shape)


def room(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """A new array that begins at a multiple of 64 bytes: a register of it never lies across two lines of the cache."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    memory = np.empty(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(kind).reshape(shape)


def placed(x: ArrayLike, dtype: DTypeLike) -> Array:
    """A copy in such a place."""
    array = np.asarray(x)
    copy = room(array.shape, dtype)
    copy[...] = array
    return copy


def target(name: str, out: Array | None, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """A new array, or the given one if it fits."""
    if out is None:
        return room(shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        given = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"{name} is {given}: wanted an array of {dtype} {shape}")
    if not (out.flags.c_contiguous and out.flags.writeable and out.dtype.isnative):
        raise ValueError(f"{name} is read-only or not contiguous: wanted a writeable array in C order")
    return out


def apart(x: Array, *outputs: Array | None, in_place: bool = True) -> Array:
    """An input that outputs may be written over: a copy if one overlaps it; being the same array is no overlap."""
    for out in outputs:
        if out is not None and np.may_share_memory(x, out) and not (in_place and x.ctypes.data == out.ctypes.data):
            return x.copy()
    return x
