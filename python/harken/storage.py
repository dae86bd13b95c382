"""Where the keys and values of each row lie: in a place of its own, round and round in it, or in pages of a pool."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harken.pages import Pages

Array = NDArray[Any]
LINE = 64  # bytes; rows that begin with a cache line are read 4 % faster than those 16 bytes into one


class Storage:
    """Keys (place, head, key, channel), values alike; position p of a row is key p % size of a place.

    Without a pool a row's one place is its own number.
    """

    def __init__(
        self, count: int, heads: int, size: int, channels: tuple[int, int], dtype: np.dtype[Any], pool: Pages | None
    ) -> None:
        self.k, self.v = (_memory((count, heads, size, n), dtype) for n in channels)
        self.size, self.pool = size, pool

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

    def write(self, row: int, at: int, k: Array, v: Array) -> None:
        """Keys (head, L, channel) and values at a row's positions at .. at + L - 1."""
        for place, here, there in self.pieces(row, at, at + k.shape[1]):
            source = slice(there.start - at, there.stop - at)
            self.k[place, :, here] = k[:, source]
            self.v[place, :, here] = v[:, source]

    def write_one(self, rows: Array, positions: Array, k: Array, v: Array) -> None:
        """One key (row, head, channel) and value at one position of each row."""
        places, within = self.places(rows, positions)
        self.k[places, :, within] = k
        self.v[places, :, within] = v

    def read(self, which: Array, row: int, first: int, end: int) -> Array:
        """A row's keys, or values, (head, end - first, channel): a view where they lie evenly, else a copy."""
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
