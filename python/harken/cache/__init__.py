"""Keys and values that stay between calls: appended to, attended to, cut back, forked and saved."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.cache.file import load_cache, save_cache
from harken.cache.pages import Pages
from harken.cache.storage import Storage, stored_as, whole_size
from harken.foreign import view
from harken.masks.mask import Mask
from harken.reference import STORAGE

Array = NDArray[Any]
Layout = Literal["contiguous", "ring", "paged"]
LAYOUTS = ("contiguous", "ring", "paged")


class KVCache:
    """The keys and values of `batch` sequences, one token or many at a time.

    Row b holds `lengths[b]` keys at the positions `starts[b]`, `starts[b] + 1`, ...::

        attend(q)[b] = attention(q[b], K_b, V_b)        K_b, V_b = all that was appended to row b and is still held

    bit for bit: a row's result depends neither on the layout nor on what the other rows hold.

    Parameters
    ----------
    batch : int
        Rows: sequences that are attended to together.
    kv_heads : int
        Heads of keys and values.
    capacity : int
        Keys that a row can hold.
    head_dim : int
        Channels of a key.
    value_dim : int, optional
        Channels of a value; `head_dim` unless given.
    dtype : float32, float64, float16 or ml_dtypes.bfloat16
        Of keys and values as they are appended, and of the queries that attend to them.
    kv_dtype : None, "int8", "float16", "bfloat16" or "float32"
        What they are kept in; `dtype` unless given. int8 keeps a factor for each token and head, `quantize(x)`, and
        rounds each number to 1/127 of the largest beside it. float64 is kept as it is.
    layout : "contiguous", "ring" or "paged"
        contiguous: one place a key; a row that is full takes no more. ring: a row that is full drops its oldest keys
        and goes on. paged: rows take pages of `page_size` keys from a pool as they grow, and `fork` shares them.
    page_size : int, optional
        Keys of a page, 64 unless given. Multiples of 64 are read where they lie; of others, blocks are copied together
        first. For layout="paged" only.
    pages : int, optional
        Pages of the pool, shared by all rows; enough to fill every row unless given. For layout="paged" only.

    Attributes
    ----------
    lengths, starts : ndarray of int64, (batch,)
        How many keys each row holds, and the position of its first; copies. Only a ring's starts leave 0.
    batch, kv_heads, capacity, head_dim, value_dim, dtype, layout, page_size, pages
        As given; `batch` grows with `fork`.
    free_pages : int
        Pages that no row holds; 0 where there are none.
    nbytes : int
        Bytes of keys, values and factors, used or not.

    Notes
    -----
    With another `kv_dtype` than `dtype`, K_b and V_b are what was appended, rounded to it once: the bits are those of
    `attention` over arrays of that type, with k_scale and v_scale for int8. What int8 costs is bounded. With s_j and
    t_j the factors of a key and of its value, logits are off by up to delta = |scale| sum_d |q_d| max_j s_j / 2, and
    the result by up to (e^(2 delta) - 1) max |v| + max_j t_j / 2.

    Storage is (row or page, head, key, channel): a head's keys lie one behind the other, as decoding reads them. With
    the heads of a key side by side, rows of 4 KiB apart, decoding takes 1.37 times as long (8 heads, 4096 keys of 128
    channels, one thread).

    Positions are true ones. After a ring has dropped keys, a query's position and the index of a key have shifted
    alike, so causal, window and alibi see the same distances. A window of w keys to the left is exact in a ring of
    w + L keys or more where L queries attend at once.

    Threads: any number may attend, or read keys and values, at once. Whatever changes the cache (`append`,
    `truncate`, `reset`, `fork`) must be the only one to touch it.

    Pages and copy on write follow [1]_.

    References
    ----------
    .. [1] W. Kwon, Z. Li, S. Zhuang, et al., "Efficient Memory Management for Large Language Model Serving with
       PagedAttention", 2023, arXiv:2309.06180.

    Examples
    --------
    >>> import numpy as np
    >>> import harken
    >>> rng = np.random.default_rng(0)
    >>> k, v = rng.normal(size=(2, 1, 2, 10, 64)).astype(np.float32)
    >>> q = rng.normal(size=(1, 8, 10, 64)).astype(np.float32)
    >>> cache = harken.KVCache(1, 2, 100, 64)
    >>> cache.append(k[:, :, :9], v[:, :, :9])
    >>> prompt = cache.attend(q[:, :, :9])
    >>> cache.append(k[:, :, 9:], v[:, :, 9:])
    >>> token = cache.attend(q[:, :, 9:])
    >>> bool((token == harken.attention(q[:, :, 9:], k, v)).all()), cache.lengths
    (True, array([10]))
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
        layout: Layout = "contiguous",
        page_size: int | None = None,
        pages: int | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}: wanted one of {', '.join(LAYOUTS)}")
        if layout != "paged" and (page_size is not None or pages is not None):
            name = "pages" if page_size is None else "page_size"
            raise ValueError(f"{name} is given for layout={layout!r}: only layout='paged' has pages")
        batch, self.kv_heads = whole_size("batch", batch), whole_size("kv_heads", kv_heads)
        self.capacity, self.head_dim = whole_size("capacity", capacity), whole_size("head_dim", head_dim)
        self.value_dim = self.head_dim if value_dim is None else whole_size("value_dim", value_dim)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        if self.dtype.name not in STORAGE or not self.dtype.isnative:
            raise TypeError(f"dtype is {self.dtype}: give one of {', '.join(STORAGE)}")
        self.kv_dtype: np.dtype[Any] = stored_as(kv_dtype, self.dtype)
        self.layout: Layout = layout
        self.page_size: int | None = None
        pool, count, size = None, batch, self.capacity
        if layout == "paged":
            self.page_size = size = 64 if page_size is None else whole_size("page_size", page_size)
            width = -(-self.capacity // size)
            count = batch * width if pages is None else whole_size("pages", pages)
            pool = Pages(batch, width, size, count)
        self._storage = self._stored(count, self.kv_heads, size, (self.head_dim, self.value_dim), self.kv_dtype, pool)
        self._lengths, self._starts = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        self._rows = np.arange(batch)
        self._twice = np.repeat(self._rows[:, None], 2, axis=1)  # a ring's table: its one page, and it again

    @property
    def batch(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> Array:
        return self._lengths.copy()

    @property
    def starts(self) -> Array:
        return self._starts.copy()

    @property
    def pages(self) -> int | None:
        return None if self._storage.pool is None else len(self._storage.k)

    @property
    def free_pages(self) -> int:
        return 0 if self._storage.pool is None else len(self._storage.pool.free)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._storage.arrays.values())

    def __repr__(self) -> str:
        held = f"{self._lengths.min()} to {self._lengths.max()}" if self.batch else "no"
        kept = "" if self.kv_dtype == self.dtype else f" kept in {self.kv_dtype}"
        return f"<KVCache {self.layout} {self.dtype}{kept}: {self.batch} rows with {held} of {self.capacity} keys>"

    def append(self, k: ArrayLike, v: ArrayLike, lengths: ArrayLike | None = None) -> None:
        """Put keys and values behind those that each row holds.

        Parameters
        ----------
        k, v : array, (batch, kv_heads, L, head_dim) and (batch, kv_heads, L, value_dim)
            In the cache's dtype, any strides.
        lengths : integers, (batch,), optional
            Row b takes the first lengths[b] of the L only.

        Raises
        ------
        ValueError
            A shape that does not fit; a row that is full (not in a ring), or no free page. Nothing has changed then.
            NaN or Inf for int8.
        TypeError
            Another dtype.
        """
        k, v = self._given("k", k, self.head_dim), self._given("v", v, self.value_dim)
        if k.shape[2] != v.shape[2]:
            raise ValueError(f"v has {v.shape[2]} rows, k has {k.shape[2]}: keys and values come in pairs")
        L = k.shape[2]
        counts = np.full(self.batch, L) if lengths is None else self._per_row("lengths", lengths, L, "rows of k")
        held = self._lengths + counts
        if self.layout != "ring" and held.max(initial=0) > self.capacity:
            row = int(held.argmax())
            raise ValueError(
                f"row {row} holds {self._lengths[row]} of {self.capacity} keys, {counts[row]} more do not fit: "
                "truncate or reset it, make the cache larger, or use layout='ring', which drops the oldest"
            )
        storage, at = self._storage, self._starts + self._lengths
        given = storage.as_stored(k, v)
        if storage.pool is not None:
            for shared, own in storage.pool.extend(self._lengths, held):
                storage.copy_page(shared, own)
        if L == 1 and (lengths is None or counts.all()):
            storage.write_one(self._rows, at, {name: x[:, :, 0] for name, x in given.items()})
        else:
            for row, count in enumerate(counts.tolist()):
                skipped = max(0, count - self.capacity)  # of a ring, what would be dropped at once
                its = {name: x[row, :, skipped:count] for name, x in given.items()}
                storage.write(row, int(at[row]) + skipped, its)
        self._lengths = held
        if self.layout == "ring":
            self._lengths = np.minimum(held, self.capacity)
            self._starts += held - self._lengths

    def attend(
        self, q: ArrayLike, *, causal: bool = True, q_start: ArrayLike | None = None, **options: Any
    ) -> Array | tuple[Array, ...]:
        """Attention of the last positions of each row over all keys that it holds.

        Parameters
        ----------
        q : array, (batch, Hq, Lq, head_dim)
            The queries of the last Lq positions; Hq is a multiple of kv_heads. Append their keys first.
        causal : bool
            True unless given, otherwise than in `attention`: a query does not see the keys behind its own.
        q_start : integers, (batch,), optional
            The position of the first query, where they are not the last.
        **options
            All others of `harken.attention` but kv_lengths, k_scale and v_scale, with its defaults. `mask` and `bias`
            broadcast to (batch, Hq, Lq, max(lengths)), and key j of them is the j-th that a row holds. head_axis=-2
            holds for q and the result.

        Returns
        -------
        ndarray or tuple of ndarray
            As `harken.attention` returns them.
        """
        if "kv_lengths" in options:
            raise TypeError("attend() takes no kv_lengths: the cache knows how many keys each row holds, see lengths")
        for name in ("k_scale", "v_scale"):
            if options.get(name) is not None:
                raise TypeError(f"attend() takes no {name}: the cache keeps the factors that belong to its numbers")
        if isinstance(options.get("mask"), Mask):
            options["mask"] = options["mask"]._for_lengths(None, self._lengths)
        options |= {"causal": causal, **self._storage.factors}
        if q_start is not None:
            options["q_start"] = np.subtract(q_start, self._starts) if self._starts.any() else q_start
        table = origins = None
        if self._storage.pool is not None:
            table, origins = self._storage.pool.table, self._starts
        elif self._starts.any():
            table, origins = self._twice, self._starts % self.capacity
        result: Array | tuple[Array, ...] = self._storage.attend(q, table, origins, self._lengths, options)
        return result

    def keys(self, row: int | None = None) -> Array:
        """The keys that a row holds, (kv_heads, lengths[row], head_dim), in the order of their positions.

        A read-only view where they lie evenly: in a contiguous cache, in a ring that has not gone round, in one page.
        Else a copy. Without `row`, those of all rows, (batch, kv_heads, L, head_dim), which must hold L each. Of int8
        the numbers that it stands for, a copy in float32.
        """
        return self._held("k", row)

    def values(self, row: int | None = None) -> Array:
        """The values that a row holds, (kv_heads, lengths[row], value_dim); see `keys`."""
        return self._held("v", row)

    def truncate(self, lengths: ArrayLike) -> None:
        """Keep the first `lengths` keys of each row, (batch,) or one number for all: what a draft got wrong goes.

        What a ring has dropped before does not come back.
        """
        kept = self._per_row("lengths", lengths, None, "keys that the row holds")
        if self._storage.pool is not None:
            self._storage.pool.cut(self._lengths, kept)
        self._lengths = kept

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Empty these rows, or all: their next key has position 0."""
        which = self._rows if rows is None else np.array([self._row(r) for r in np.atleast_1d(rows)], np.int64)
        kept = self._lengths.copy()
        kept[which] = 0
        self.truncate(kept)
        self._starts[which] = 0

    def fork(self, row: int, into: int | None = None) -> int:
        """A row that holds what `row` holds, sharing its pages until either of them writes; for layout="paged" only.

        Parameters
        ----------
        row : int
            The one to continue in two ways.
        into : int, optional
            The row that becomes its twin, and loses what it held; else a new one, and `batch` grows by one.

        Returns
        -------
        int
            The twin's index.
        """
        if self._storage.pool is None:
            raise ValueError(f"fork needs layout='paged', whose pages rows can share; this cache is {self.layout}")
        row = self._row(row)
        if into is None:
            into = self.batch
            self._storage.pool.add_row()
            self._lengths, self._starts = np.append(self._lengths, 0), np.append(self._starts, 0)
            self._rows = np.arange(into + 1)
        into = self._row(into)
        if into == row:
            raise ValueError(f"into is {into}, the row itself: wanted another, or None for a new one")
        self.reset(into)
        self._storage.pool.share(row, into, int(self._lengths[row]))
        self._lengths[into] = self._lengths[row]
        return into

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache to an .npz file: what rows hold, nothing else. The file appears when it is complete."""
        save_cache(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KVCache:
        """The cache that `save` wrote. ValueError if the file holds none."""
        return load_cache(cls, Path(path))

    def _stored(self, *given: Any) -> Storage:
        return Storage(*given)

    def _held(self, name: str, row: int | None) -> Array:
        if row is None:
            length = int(self._lengths[0])
            if (self._lengths != length).any():
                raise ValueError(f"rows hold {self._lengths.tolist()} keys: name one, these make no array")
            storage = self._storage
            if storage.on_host and storage.pool is None and not self._starts.any() and not storage.factors:
                return _read_only(storage.arrays[name][:, :, :length])
            return _read_only(np.stack([self._held(name, n) for n in range(self.batch)]))
        row = self._row(row)
        first, end = int(self._starts[row]), int(self._starts[row] + self._lengths[row])
        held = self._storage.read(name, row, first, end)
        if self._storage.factors:
            held = held * self._storage.read(f"{name}_scale", row, first, end)
        return _read_only(held)

    # --- what was given ---

    def _row(self, row: Any) -> int:
        index = operator.index(row)
        if not -self.batch <= index < self.batch:
            raise ValueError(f"row is {index}: the cache has {self.batch} rows")
        return index % self.batch

    def _given(self, name: str, x: ArrayLike, channels: int) -> Array:
        x = np.asarray(view(name, x))
        if x.dtype != self.dtype:
            raise TypeError(
                f"{name} is {x.dtype}, the cache holds {self.dtype}: give {name}.astype({self.dtype.name!r})"
            )
        if x.ndim != 4 or x.shape != (self.batch, self.kv_heads, x.shape[2], channels):
            wanted = f"({self.batch}, {self.kv_heads}, L, {channels})"
            raise ValueError(f"{name} has shape {x.shape}: wanted {wanted}, (batch, kv_heads, L, channels)")
        return x

    def _per_row(self, name: str, x: ArrayLike, most: int | None, what: str) -> Array:
        """One integer for each row, 0 to `most`, or to what the row holds."""
        given = np.asarray(x)
        if given.dtype.kind not in "iu":
            raise TypeError(f"{name} is {given.dtype}: wanted integers, one for each row")
        if given.shape not in ((), (self.batch,)):
            raise ValueError(f"{name} has shape {given.shape}: wanted ({self.batch},), one for each row")
        each = np.empty(self.batch, np.int64)
        each[...] = given
        limit = self._lengths if most is None else most
        wrong = np.flatnonzero((each < 0) | (each > limit))
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"{name} of row {row} is {each[row]}: wanted 0 to {np.broadcast_to(limit, each.shape)[row]}, the {what}"
            )
        return each


def _read_only(x: Array) -> Array:
    x = x.view()
    x.flags.writeable = False
    return x
