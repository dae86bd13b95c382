"""A cache as an .npz file: what its rows hold, and how it was made."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from harken.cache import KVCache

Array = NDArray[Any]
FORMAT = 1
SIZES = ("batch", "kv_heads", "capacity", "head_dim", "value_dim", "page_size", "pages")


def save_cache(cache: KVCache, path: Path) -> None:
    """Keys and values of all rows end to end, (kv_heads, sum of lengths, channels); of pages, (held, kv_heads, ...)."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
    lengths, storage, pool = cache.lengths, cache._storage, cache._storage.pool
    arrays: dict[str, Array] = {"lengths": lengths, "starts": cache.starts}
    if pool is None:
        spans = [(int(first), int(first + n)) for first, n in zip(cache.starts, lengths, strict=True)]
        for name in storage.arrays:
            arrays[name] = np.concatenate([storage.read(name, row, *span) for row, span in enumerate(spans)], axis=1)
    else:
        held, filled = pool.fill(lengths)
        empty = np.arange(pool.size) >= filled[:, None]  # what was never written stays at home
        for name, whole in storage.arrays.items():
            arrays[name] = whole[held]
            arrays[name].swapaxes(1, 2)[empty] = 0
        table = np.zeros((cache.batch, int(pool.used(lengths).max(initial=0))), np.int64)
        for row, used in enumerate(pool.used(lengths).tolist()):
            table[row, :used] = np.searchsorted(held, pool.table[row, :used])
        arrays["table"] = table
    for name in ("k", "v"):
        arrays[name] = arrays[name].view(f"u{cache.kv_dtype.itemsize}")  # NumPy has no name for bfloat16 in a file
    arrays["sizes"] = np.array([getattr(cache, name) or 0 for name in SIZES])
    arrays |= {"format": np.array(FORMAT), "layout": np.array(cache.layout), "dtype": np.array(cache.dtype.name)}
    arrays["kv_dtype"] = np.array(cache.kv_dtype.name)
    named: Any = arrays
    try:
        with hidden.open("wb") as file:
            np.savez(file, **named)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def load_cache(made: type[KVCache], path: Path) -> KVCache:
    """The cache again, as it was; ValueError where the file is none of `save_cache`, or not whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        if int(found["format"]) != FORMAT:
            raise ValueError(f"its format is {found['format']}, this harken reads {FORMAT}")
        return _restored(made, found)
    except (KeyError, IndexError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no cache that KVCache.save wrote: {error}") from None


def _restored(made: type[KVCache], found: dict[str, Array]) -> KVCache:
    dtype = str(found["dtype"])
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    size = {name: int(n) for name, n in zip(SIZES, found["sizes"], strict=True)}
    paged: dict[str, int] = {name: size.pop(name) for name in ("page_size", "pages")}
    layout: Any = str(found["layout"])
    kept = str(found["kv_dtype"])
    cache = made(**size, dtype=dtype, kv_dtype=kept, layout=layout, **(paged if layout == "paged" else {}))
    lengths, starts = found["lengths"].astype(np.int64), found["starts"].astype(np.int64)
    storage, pool = cache._storage, cache._storage.pool
    held = {name: found[name].view(array.dtype) for name, array in storage.arrays.items()}
    if lengths.shape != (cache.batch,) or starts.shape != (cache.batch,) or min(lengths.min(), starts.min()) < 0:
        raise ValueError("lengths and starts do not fit the rows")
    if lengths.max() > cache.capacity:
        raise ValueError("a row is longer than the capacity")
    cache._lengths, cache._starts = lengths, starts
    if pool is None:
        ends = np.cumsum(lengths)
        for row, (first, end) in enumerate(zip(ends - lengths, ends, strict=True)):
            storage.write(row, int(starts[row]), {name: x[:, first:end] for name, x in held.items()})
        return cache
    table = found["table"].astype(np.int64)
    fits = table.shape == (cache.batch, int(pool.used(lengths).max()))
    if not fits or table.min(initial=0) < 0 or table.max(initial=0) >= max(1, len(held["k"])):
        raise ValueError("its table names pages that it does not hold")
    for name, x in held.items():
        storage.arrays[name][: len(x)] = x
    pool.restore(table, lengths)
    return cache
