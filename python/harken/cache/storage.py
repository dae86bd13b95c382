"""Where the keys and values of each row lie: in a place of its own, round and round in it, or in pages of a pool."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken._load import core
from harken.attention import attention
from harken.cache.pages import Pages
from harken.quantize import quantize

Array = NDArray[Any]
LINE = 64  # bytes; rows that begin with a cache line are read 4 % faster than those 16 bytes into one


class Storage:
    """Keys (place, head, key, channel), values alike; position p of a row is key p % size of a place.

    Without a pool a row's one place is its own number. int8 has factors, (place, head, key, 1).
    """

    on_host = True

    def __init__(
        self, count: int, heads: int, size: int, channels: tuple[int, int], dtype: np.dtype[Any], pool: Pages | None
    ) -> None:
        self.k, self.v = (_memory((count, heads, size, n), dtype) for n in channels)
        self.k_scale: Array | None = None
        self.v_scale: Array | None = None
        if dtype == np.int8:
            self.k_scale, self.v_scale = (_memory((count, heads, size, 1), np.dtype(np.float32)) for _ in channels)
        self.size, self.pool = size, pool

    @property
    def arrays(self) -> dict[str, Array]:
        """All that is stored, by name."""
        every = {"k": self.k, "v": self.v, "k_scale": self.k_scale, "v_scale": self.v_scale}
        return {name: array for name, array in every.items() if array is not None}

    @property
    def factors(self) -> dict[str, Array]:
        """Those of int8, as `attention` takes them."""
        return {name: array for name, array in self.arrays.items() if name not in ("k", "v")}

    def as_stored(self, k: Array, v: Array) -> dict[str, Array]:
        """Keys and values (..., channel) as `arrays` hold them."""
        if self.k.dtype != np.int8:
            return {"k": k, "v": v}
        (k, k_scale), (v, v_scale) = quantize(k), quantize(v)
        return {"k": k, "v": v, "k_scale": k_scale, "v_scale": v_scale}

    def attend(
        self, q: ArrayLike, table: Array | None, origins: Array | None, lengths: Array, options: dict[str, Any]
    ) -> Any:
        """Attention of q over the first keys of each row, as many as `lengths` says."""
        return core.attend_stored(attention, q, self.k, self.v, table, origins, lengths, options)

    def copy_page(self, source: int, to: int) -> None:
        for array in self.arrays.values():
            array[to] = array[source]

    def places(self, rows: Any, positions: Any) -> tuple[Any, Any]:
        """The place, and the key there, of one position of each row."""
        n, within = np.divmod(positions, self.size)
        return (rows if self.pool is None else self.pool.table[rows, n]), within

    def pieces(self, row: int, first: int, end: int) -> Iterator[tuple[int, slice, slice]]:
        """A row's positions first .. end - 1, piece by piece: the place, its keys, the positions."""
        while first < end:
            place, at = (int(x) for x in self.places(row, first))
            count = min(self.size - at, end - first)
            yield place, slice(at, at + count), slice(first, first + count)
            first += count

    def write(self, row: int, at: int, given: dict[str, Array]) -> None:
        """Keys (head, L, channel) and values, as stored, at a row's positions at .. at + L - 1."""
        for place, here, there in self.pieces(row, at, at + given["k"].shape[1]):
            source = slice(there.start - at, there.stop - at)
            for name, array in self.arrays.items():
                array[place, :, here] = given[name][:, source]

    def write_one(self, rows: Array, positions: Array, given: dict[str, Array]) -> None:
        """One key (row, head, channel) and value, as stored, at one position of each row."""
        places, within = self.places(rows, positions)
        for name, array in self.arrays.items():
            array[places, :, within] = given[name]

    def read(self, name: str, row: int, first: int, end: int) -> Array:
        """A row's keys, values or factors, (head, end - first, channel): a view where they lie evenly, else a copy."""
        which = self.arrays[name]
        found = [which[place, :, here] for place, here, _ in self.pieces(row, first, end)]
        if len(found) == 1:
            return found[0]
        return np.concatenate(found, axis=1) if found else which[0, :, :0]


def _memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Memory that begins with a cache line; not a byte of it is touched."""
    count = math.prod(shape) * dtype.itemsize
    bytes_ = np.empty(count + LINE, np.uint8)
    first = -bytes_.ctypes.data % LINE
    return bytes_[first : first + count].view(dtype).reshape(shape)


def stored_as(kv_dtype: DTypeLike | None, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What keys of `dtype` are kept in."""
    if kv_dtype is None:
        return dtype
    if kv_dtype == "bfloat16":
        import ml_dtypes

        kv_dtype = ml_dtypes.bfloat16
    kept = np.dtype(kv_dtype)
    narrow = ("float32", "float16", "bfloat16", "int8")
    if kept != dtype and (dtype == np.float64 or kept.name not in narrow or not kept.isnative):
        wanted = "float64 alone" if dtype == np.float64 else f"one of {', '.join(narrow)}"
        raise TypeError(f"kv_dtype is {kept} for a cache of {dtype}: wanted {wanted}, or None for the same")
    return kept


def whole_size(name: str, given: Any) -> int:
    try:
        size = operator.index(given)
    except TypeError:
        raise TypeError(f"{name} is {given!r}: wanted an integer, 1 or more") from None
    if size < 1:
        raise ValueError(f"{name} is {size}: wanted 1 or more")
    return size
