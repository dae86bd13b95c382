"""A cache, and beside it each row's keys and values as plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from compare import Array, same_bits

import harken

LAYOUTS: list[dict[str, Any]] = [
    {"layout": "contiguous"},
    {"layout": "ring"},
    {"layout": "paged"},
    {"layout": "paged", "page_size": 5},
]
NAMES = ["contiguous", "ring", "paged", "pages of 5"]


class Twin:
    """What is done to one is done to the other, and check() compares them."""

    def __init__(self, batch: int, capacity: int, dtype: Any = np.float32, D: int = 64, **layout: Any) -> None:
        self.cache = harken.KVCache(batch, 2, capacity, D, value_dim=D // 2, dtype=dtype, **layout)
        self.rng = np.random.default_rng(0)
        self.k = [np.empty((2, 0, D), dtype) for _ in range(batch)]
        self.v = [np.empty((2, 0, D // 2), dtype) for _ in range(batch)]
        self.dropped = [0] * batch

    def random(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(self.cache.dtype)

    def append(self, L: int, lengths: Any = None) -> None:
        cache = self.cache
        k = self.random(cache.batch, 2, L, cache.head_dim)
        v = self.random(cache.batch, 2, L, cache.value_dim)
        cache.append(k, v, lengths)
        for b, count in enumerate(np.broadcast_to(L if lengths is None else lengths, cache.batch)):
            self.k[b] = np.concatenate([self.k[b], k[b, :, :count]], axis=1)
            self.v[b] = np.concatenate([self.v[b], v[b, :, :count]], axis=1)
            self.dropped[b] = max(self.dropped[b], self.k[b].shape[1] - cache.capacity)

    def truncate(self, lengths: Any) -> None:
        ends = self.cache.starts + np.broadcast_to(lengths, self.cache.batch)
        self.cache.truncate(lengths)
        for b, end in enumerate(ends):
            self.k[b], self.v[b] = self.k[b][:, :end], self.v[b][:, :end]

    def check(self, Lq: int = 1, **options: Any) -> None:
        cache = self.cache
        q = self.random(cache.batch, 4, Lq, cache.head_dim)
        out, lse = cache.attend(q, **options, return_lse=True)
        for b in range(cache.batch):
            start = self.dropped[b]
            assert start == cache.starts[b]
            k, v = self.k[b][:, start:], self.v[b][:, start:]
            assert cache.lengths[b] == k.shape[1]
            expected = harken.attention(q[b], k, v, **{"causal": True, **options}, return_lse=True)
            same_bits(out[b], expected[0])
            same_bits(lse[b], expected[1])
            same_bits(cache.keys(b), k)
            same_bits(cache.values(b), v)
