"""The weights of a call of attention tile by tile, so that they are never all in memory."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from harken.attention import attention
from harken.masks.mask import Mask

Array = NDArray[Any]
Slices = tuple[slice, ...]

TILE = 2 << 20  # bytes of weights; 4 MiB take a tenth longer, for they leave the cache before they are looked at
ROWS = 32  # queries of a head in a tile before it takes another head, a task of its own; 16 take a third longer
LANES = 16  # queries that the kernels take at once
FAR = 1 << 47  # a position near no key; what is farther is the same to the kernels


@dataclass(frozen=True)
class Tile:
    """Some queries of some heads, and their weights on the keys that they may see."""

    heads: Slices
    """Of the axes (..., Hkv, G)."""
    queries: slice
    keys: slice
    """No query of the tile sees a key outside."""
    weights: Array
    """(heads..., queries, keys), in the type that is computed in."""
    lse: Array
    """(heads..., queries)."""


class Whole:
    """A call of attention that was found right, its arrays as views of (..., Hkv, G, L, D), G = Hq / Hkv.

    All axes before L are alike then, and a tile is a slice of each.
    """

    def __init__(self, q: ArrayLike, k: ArrayLike, options: Mapping[str, Any], compute: DTypeLike) -> None:
        Q, K = np.asarray(q), np.asarray(k)
        self.one_head = Q.ndim == K.ndim == 2
        Q, K = (x[None] if x.ndim == 2 else x.swapaxes(-3, -2) if options["head_axis"] == -2 else x for x in (Q, K))
        self.Hq, self.Lq, self.Lk = int(Q.shape[-3]), int(Q.shape[-2]), int(K.shape[-2])
        Hkv, D = K.shape[-3], Q.shape[-1]
        self.batch = np.broadcast_shapes(Q.shape[:-3], K.shape[:-3])
        self.heads = (*self.batch, Hkv, self.Hq // max(Hkv, 1))
        self.compute = np.dtype(compute)
        self.Q = self.per_head(Q, self.Lq, D)
        self.K = np.broadcast_to(K, (*self.batch, Hkv, self.Lk, D))[..., None, :, :]
        self.k_scale: Array | None = None
        if options["k_scale"] is not None:
            by = np.broadcast_to(np.asarray(options["k_scale"], self.compute), np.shape(k))
            by = by.swapaxes(-3, -2) if options["head_axis"] == -2 and by.ndim > 2 else by
            self.k_scale = np.broadcast_to(by, (*self.batch, Hkv, self.Lk, D))[..., None, :, :]

        def given(*names: str) -> dict[str, Any]:
            return {name: options[name] for name in names if options[name] is not None}

        self.alike = given("causal", "score", "softcap", "precision", "threads")
        self.of_heads = {name: self.per_head(np.asarray(x)) for name, x in given("scale", "alibi", "sinks").items()}
        self.of_channels = {name: self.per_head(np.asarray(x), D) for name, x in given("w").items()}
        pairs, window = given("mask", "bias"), options["window"]
        self.lists: tuple[Array, Array, Array] | None = None
        if isinstance(pairs.get("mask"), Mask):
            mask, where = pairs.pop("mask"), (options[name] for name in ("q_start", "q_lengths", "kv_lengths"))
            left, right, array, lists = mask._compile((*self.batch, self.Hq), self.Lq, self.Lk, *where)
            window = tuple(_narrower(a, b) for a, b in zip(window or (None, None), (left, right), strict=True))
            pairs |= {} if array is None else {"mask": array}
            if lists is not None:
                self.lists = self.per_head(lists[0], self.Lq), *lists[1:]
        self.alike["window"] = window
        self.of_pairs = {name: self.per_head(np.asarray(x), self.Lq, self.Lk) for name, x in pairs.items()}
        lengths = {"q_lengths": self.Lq, "kv_lengths": self.Lk} | given("q_lengths", "kv_lengths", "q_start")
        integers = {name: self.per_key_head(x) for name, x in lengths.items()}
        self.q_length, self.kv_length = integers["q_lengths"], integers["kv_lengths"]
        self.start = integers.get("q_start", self.kv_length - self.q_length)
        sides = (None if side is None else operator.index(side) for side in window or (None, None))
        self.left, self.right = sides
        if options["causal"]:
            self.right = 0

    def per_head(self, x: Array, *own: int) -> Array:
        """What broadcasts to (..., Hq, *own) as a view of (..., Hkv, G, *own)."""
        return np.broadcast_to(x, (*self.batch, self.Hq, *own)).reshape(*self.heads, *own)

    def per_key_head(self, x: ArrayLike) -> Array:
        """Integers of any size that broadcast to the leading axes as a view of (..., Hkv)."""
        near = np.asarray(np.clip(np.asarray(x, object), -FAR, FAR), np.int64)
        return np.broadcast_to(np.broadcast_to(near, self.batch)[..., None], self.heads[:-1])

    def result(self, x: Array) -> Array:
        """An array of (..., Hkv, G, *own) as (..., Hq, *own), or as (*own) if q and k are 2-D."""
        own = x.shape[len(self.heads) :]
        return x.reshape(own if self.one_head else (*self.batch, self.Hq, *own))

    def tiles(self, runs: list[tuple[int, int]]) -> Iterator[Tile]:
        """The queries of these runs, from the first up to the last, in every head."""
        most = TILE // self.compute.itemsize
        longest = max((last - first for first, last in runs), default=0)
        widened = 0 if self.K.dtype == self.compute and self.k_scale is None else self.Lk * self.Q.shape[-1]
        for heads in cut(self.heads, most // max(min(longest, ROWS) * self._keys(ROWS), widened, 1)):
            K = self.K[heads[:-1]].astype(self.compute, copy=False)
            if self.k_scale is not None:
                K = K * self.k_scale[heads[:-1]]
            step = self._queries(most // math.prod(part.stop - part.start for part in heads))
            end = int(self.q_length[heads[:-1]].max())
            for first, last in runs:
                for at in range(first, min(last, end), step):
                    yield self._tile(heads, K, slice(at, min(at + step, last, end)))

    def _keys(self, queries: int) -> int:
        """How many keys so many queries in a row see at most."""
        if self.left is None or self.right is None:
            return self.Lk
        return min(self.Lk, self.left + self.right + queries)

    def _queries(self, most: int) -> int:
        """How many queries in a row have no more than so many weights, at least 1."""
        n = most // max(self.Lk, 1)
        if self._keys(0) < self.Lk:  # n (n + w) <= most
            w = self._keys(0)
            n = max(n, (math.isqrt(w * w + 4 * most) - w) // 2)
        return max(n - n % LANES, min(n, LANES), 1)

    def _tile(self, heads: Slices, K: Array, at: slice) -> Tile:
        """Let the weights of a tile be computed; positions and lengths count from its first query and key."""
        key_heads, queries = heads[:-1], at.stop - at.start
        start, kv_length = self.start[key_heads] + at.start, self.kv_length[key_heads]
        first, end = 0, int(kv_length.max())
        if self.left is not None:
            first = max(first, int(start.min()) - self.left)
        if self.right is not None:
            end = min(end, int(start.max()) + queries + self.right)
        keys = slice(min(first, self.Lk), max(end, min(first, self.Lk)))
        own: dict[str, Any] = {name: x[heads] for name, x in self.of_heads.items()}
        own |= {name: x[heads] for name, x in self.of_channels.items()}
        own |= {name: x[(*heads, at, keys)] for name, x in self.of_pairs.items()}
        if self.lists is not None:
            shown = _shown(*self.lists, (*heads, at), keys)
            own["mask"] = shown & own["mask"] if "mask" in own else shown
        _, lse, weights = attention(
            self.Q[(*heads, at)].astype(self.compute, copy=False),
            K[..., keys, :],
            K[..., keys, :0],  # values without channels: no second product
            q_start=start - keys.start,
            q_lengths=np.clip(self.q_length[key_heads] - at.start, 0, queries),
            kv_lengths=np.clip(kv_length - keys.start, 0, keys.stop - keys.start),
            **own,
            **self.alike,
            return_lse=True,
            return_weights=True,
        )
        return Tile(heads, at, keys, weights, lse)


def _narrower(a: Any, b: int | None) -> Any:
    """The nearer side of two windows."""
    return b if a is None else a if b is None else min(operator.index(a), b)


def _shown(number: Array, begin: Array, ends: Array, rows: tuple[slice, ...], keys: slice) -> Array:
    """Whether these rows see these keys, by lists of intervals: +1 where one begins, -1 behind it, and sums of that."""
    lists, of_row = np.unique(number[rows], return_inverse=True)
    counts = begin[lists + 1] - begin[lists]
    which = np.repeat(np.arange(len(lists)), counts)
    at = np.arange(len(which)) + np.repeat(begin[lists] - (np.cumsum(counts) - counts), counts)
    steps = np.zeros((len(lists), keys.stop - keys.start + 1), np.int32)
    for side, step in ((0, 1), (1, -1)):
        np.add.at(steps, (which, np.clip(ends[at, side] - keys.start, 0, keys.stop - keys.start)), step)
    seen: Array = steps.cumsum(axis=1)[:, :-1] > 0
    return seen[of_row.reshape(number[rows].shape)]


def cut(shape: tuple[int, ...], most: int) -> Iterator[Slices]:
    """Slices of all axes with at most so many entries, or one; in the order of the entries."""
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    step = max(1, most // max(inner, 1))
    for i in range(0, shape[0], step):
        for rest in cut(shape[1:], most if step == 1 else inner):
            yield slice(i, min(i + step, shape[0])), *rest
