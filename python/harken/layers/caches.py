"""What layers keep between calls: that it fits the layer, and that a step that fails leaves it as it was."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.cache import KVCache
from harken.explain import explain
from harken.layers.rows import Rows

Array = NDArray[Any]


class DecoderCache:
    """What one decoder layer keeps of a batch: its own keys and values so far, and those of the memory.

    Made by `TransformerDecoderLayer.cache`; `TransformerDecoder.cache` gives one for each layer.

    Attributes
    ----------
    own : KVCache
        The keys and values of the self-attention, which grow with each call.
    memory : KVCache
        The keys and values of the memory, projected once.
    """

    def __init__(self, own: KVCache, memory: KVCache) -> None:
        self.own, self.memory = own, memory

    def __repr__(self) -> str:
        return f"<DecoderCache own={self.own!r} memory={self.memory!r}>"

    def truncate(self, lengths: ArrayLike) -> None:
        """Keep the first `lengths` positions of each row, (batch,) or one number for all."""
        self.own.truncate(lengths)


class Unchanged:
    """Around a step: if it fails, rows hold what they held before, but for what a ring has dropped by then."""

    def __init__(self, caches: Iterable[KVCache]) -> None:
        caches = list(caches)
        for cache in caches:
            if not isinstance(cache, KVCache):
                raise TypeError(f"cache is {type(cache).__name__}: wanted a KVCache, as cache() makes it")
        self.before = [(cache, cache.starts, cache.lengths) for cache in caches]

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            return
        for cache, starts, lengths in self.before:
            dropped = cache.starts - starts
            cache.truncate(np.minimum(np.maximum(lengths - dropped, 0), cache.lengths))


def fits(cache: KVCache, rows: Rows, heads: int, channels: int, dtype: np.dtype[Any]) -> None:
    """The cache is one that the layer's `cache` could have made, for as many sequences."""
    made = cache.kv_heads, cache.head_dim, cache.value_dim, cache.dtype
    if made != (heads, channels, channels, dtype):
        wanted = f"{heads} heads of {channels} channels in {dtype}"
        raise ValueError(f"cache is {cache!r} of {made[0]} heads of {made[1]}: wanted {wanted}, as cache() makes it")
    if len(rows.lead) > 1 or math.prod(rows.lead) != cache.batch:
        raise ValueError(f"cache has {cache.batch} rows, the input {rows.lead}: wanted one sequence for each")


def legal(q: Array, cache: KVCache, held: Array, options: dict[str, Any]) -> None:
    """Raise what `cache.attend(q, **options)` would over `held` keys, before a ring drops what no error brings back."""
    shape = (cache.batch, int(held.max(initial=0)), cache.kv_heads, cache.head_dim)
    keys = np.broadcast_to(np.zeros((), cache.dtype), shape)
    explain(q, keys, keys, kv_lengths=held, **options)


def own(cache: Any, layers: int, kind: type) -> list[Any]:
    """The caches of a stack, one for each layer."""
    if not isinstance(cache, list | tuple) or len(cache) != layers or not all(isinstance(one, kind) for one in cache):
        given = f"{len(cache)} of them" if isinstance(cache, list | tuple) else type(cache).__name__
        raise TypeError(
            f"cache is {given}: wanted a {kind.__name__} for each of {layers} layers, as cache() makes them"
        )
    return list(cache)
