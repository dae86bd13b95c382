"""Keys and values that stay on a card between calls: appended to there, attended to there."""

from __future__ import annotations

import inspect
from ctypes import byref, c_int32
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.attention import attention
from harken.cache import KVCache as OnHost
from harken.cache.storage import Storage
from harken.cuda.arrays import card_of, described, make_there, run, stream_of, view
from harken.cuda.interface import load
from harken.cuda.plan import require

Array = NDArray[Any]


class KVCache(OnHost):
    """The keys and values of `batch` sequences in the memory of a card; otherwise `harken.KVCache`.

    ``attend(q)[b] = attention(q[b], K_b, V_b)`` as there. What a call moves is its new keys, its queries and results.

    Parameters
    ----------
    batch, kv_heads, capacity, head_dim, value_dim, dtype, kv_dtype
        As in `harken.KVCache`.
    layout : "contiguous"
        The only one on a card.
    device : str
        "cuda", or the card by its number, "cuda:1".

    Raises
    ------
    RuntimeError
        Without a card, or with none that a kernel was checked on; see `harken.cuda.why_not`.
    MemoryError
        Where the card has no room for `capacity` keys of every row.

    Notes
    -----
    `append` takes NumPy arrays, and arrays of that card in the cache's dtype, whose rows have no gaps and which are
    kept in it. `attend` answers in kind: NumPy arrays for NumPy's, arrays of q's library for those on the card, in the
    order of its stream. `keys` and `values` are copies on the host. `append` returns when the keys are there.

    Examples
    --------
    >>> import numpy as np
    >>> import harken.cuda
    >>> if harken.cuda.is_available():
    ...     cache = harken.cuda.KVCache(1, 8, 4096, 128, dtype=np.float16)
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: DTypeLike = np.float32,
        kv_dtype: DTypeLike | None = None,
        layout: Literal["contiguous"] = "contiguous",
        device: str = "cuda",
    ) -> None:
        if layout != "contiguous":
            raise ValueError(f"layout is {layout!r}: on a card wanted 'contiguous'")
        self.card = require(device)
        super().__init__(batch, kv_heads, capacity, head_dim, value_dim=value_dim, dtype=dtype, kv_dtype=kv_dtype)

    def _stored(self, *given: Any) -> Storage:
        return CardStorage(self.card, *given)

    def _given(self, name: str, x: ArrayLike, channels: int) -> Array:
        if (card := card_of(x)) is None:
            return super()._given(name, x, channels)
        if card != self.card:
            raise ValueError(f"{name} lies on cuda:{card}, the cache on cuda:{self.card}: give a copy that lies there")
        array: Array = view(name, x, card, 0)
        if array.dtype != self.kv_dtype or array.strides[-2:] != (channels * array.itemsize, array.itemsize):
            raise TypeError(
                f"{name} is {array.dtype} on cuda:{card} with strides {array.strides}: a cache there wanted "
                f"{self.kv_dtype} and rows without gaps, or a copy that lies on the CPU"
            )
        return super()._given(name, array, channels)


class CardStorage(Storage):
    """Keys (row, head, key, channel) in the memory of a card: arrays over its addresses, which nobody here reads."""

    on_host = False

    def __init__(
        self, card: int, count: int, heads: int, size: int, channels: tuple[int, int], dtype: np.dtype[Any], pool: None
    ) -> None:
        self.card, self.size, self.pool = card, size, pool
        self.k, self.v = (make_there(card, 0, (count, heads, size, n), dtype, False) for n in channels)
        self.k_scale = self.v_scale = None
        if dtype == np.int8:
            factors = (count, heads, size, 1)
            self.k_scale, self.v_scale = (make_there(card, 0, factors, np.dtype(np.float32), False) for _ in channels)

    def write(self, row: int, at: int, given: dict[str, Array]) -> None:
        for name, array in self.arrays.items():
            self._copy(array[row, :, at : at + given[name].shape[1]], given[name])

    def write_one(self, rows: Array, positions: Array, given: dict[str, Array]) -> None:
        for row, at in zip(rows.tolist(), positions.tolist(), strict=True):
            self.write(row, at, {name: x[row][:, None] for name, x in given.items()})

    def read(self, name: str, row: int, first: int, end: int) -> Array:
        there = self.arrays[name][row, :, first:end]
        here = np.empty(there.shape, there.dtype)
        self._copy(here, there)
        return here

    def attend(
        self, q: ArrayLike, table: Array | None, origins: Array | None, lengths: Array, options: dict[str, Any]
    ) -> Any:
        longest = int(lengths.max(initial=0))
        its = {name: array[:, :, :longest] for name, array in self.arrays.items()}
        bound = inspect.signature(attention).bind(q, **(options | its | {"kv_lengths": lengths}))
        bound.apply_defaults()
        given = dict(bound.arguments)
        stream = 0 if card_of(q) is None else stream_of(None, q, self.card)
        return run(given, described(given, self.card, stream), self.card, stream)

    def _copy(self, to: Array, source: Array) -> None:
        """(head, L, channel) between two places, of which either may be the card's; returns when it is there."""
        if to.size == 0:
            return
        library = load()
        if card_of_memory(source) < 0:
            source = np.ascontiguousarray(source, to.dtype)
        bytes_of_head = source[0].size * source.itemsize
        library.call(
            "copy_rows", self.card, to.__array_interface__["data"][0], to.strides[0],
            source.__array_interface__["data"][0], source.strides[0], bytes_of_head, len(source), None,
        )  # fmt: skip
        library.call("wait", self.card, None)


def card_of_memory(x: Array) -> int:
    """The card that the memory under a NumPy array is of; -1: the host."""
    number = c_int32(-1)
    load().call("where", x.__array_interface__["data"][0], byref(number))
    return number.value
