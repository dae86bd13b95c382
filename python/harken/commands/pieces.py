"""A long problem is cut along batch and queries into pieces whose answers are exactly the whole's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harken.commands.arrays import Array

ROWS = 256  # queries are cut at multiples of this, which every kernel's tile divides
PIECE = 4e9  # floating point operations of a piece per thread: about a tenth of a second

# how many axes of its own each option has after the batch axes, and which of them runs over queries
OWN = {"scale": 1, "sinks": 1, "alibi": 1, "mask": 3, "bias": 3, "q_start": 0, "q_lengths": 0, "kv_lengths": 0}


@dataclass(frozen=True)
class Piece:
    """A range of every batch axis, and a range of queries."""

    batch: tuple[slice, ...]
    rows: slice

    def take(self, array: Array, own: int, row_axis: int | None) -> Array:
        """This piece of an array that has `own` axes after the batch axes; an axis of length 1 is broadcast."""
        lead = max(array.ndim - own, 0)
        index = [*self.batch[len(self.batch) - lead :], *[slice(None)] * (array.ndim - lead)]
        if row_axis is not None and array.ndim >= -row_axis:
            index[row_axis] = self.rows
        return array[tuple(slice(None) if n == 1 else part for part, n in zip(index, array.shape, strict=True))]


@dataclass(frozen=True)
class Whole:
    """The problem before it is cut: arrays, and options of `harken.attention`."""

    q: Array
    k: Array
    v: Array
    options: Mapping[str, Any]

    def row_axis(self, array: Array) -> int:
        """The axis of queries or keys; two axes are one head, (L, D), in both layouts."""
        return -3 if array.ndim > 2 and self.options.get("head_axis") == -2 else -2

    @property
    def batch(self) -> tuple[int, ...]:
        return np.broadcast_shapes(self.q.shape[:-3], self.k.shape[:-3], self.v.shape[:-3])

    @property
    def queries(self) -> int:
        return int(self.q.shape[self.row_axis(self.q)])

    @property
    def keys(self) -> int:
        return int(self.k.shape[self.row_axis(self.k)])

    @property
    def row_cost(self) -> float:
        """Floating point operations for one query of all heads against all keys."""
        heads = math.prod(self.q.shape[-3:-1]) // max(self.queries, 1) if self.q.ndim > 2 else 1
        return 2.0 * heads * self.keys * int(self.q.shape[-1] + self.v.shape[-1])

    def pieces(self, threads: int) -> list[Piece]:
        """The problem in pieces that so many threads compute in about a tenth of a second."""
        return [Piece(batch, rows) for batch, rows in cut(self.batch, self.queries, self.row_cost, PIECE * threads)]

    def arguments(self, piece: Piece) -> tuple[Array, Array, Array, dict[str, Any]]:
        """q, k, v and options of a piece; positions become explicit, for a slice of the queries has other defaults."""
        options = dict(self.options)
        if piece.rows != slice(0, self.queries):
            q_lengths, kv_lengths = options.get("q_lengths"), options.get("kv_lengths")
            if options.get("q_start") is None:
                last = np.asarray(self.keys if kv_lengths is None else kv_lengths)
                options["q_start"] = last - (self.queries if q_lengths is None else np.asarray(q_lengths))
            options["q_start"] = np.asarray(options["q_start"]) + piece.rows.start
            if q_lengths is not None:
                rows = piece.rows.stop - piece.rows.start
                options["q_lengths"] = np.asarray(np.clip(np.asarray(q_lengths) - piece.rows.start, 0, rows))
        for name, own in OWN.items():
            if isinstance(options.get(name), np.ndarray):
                part = piece.take(options[name], own, -2 if own == 3 else None)
                options[name] = part if part.ndim else part.item()
        q = piece.take(self.q, 3, self.row_axis(self.q))
        return q, piece.take(self.k, 3, None), piece.take(self.v, 3, None), options


def cut(batch: tuple[int, ...], rows: int, row_cost: float, budget: float) -> Iterator[tuple[tuple[slice, ...], slice]]:
    """Whole ranges of the first batch axis if they fit the budget, else one entry at a time cut along the rest."""
    if not batch:
        step = max(ROWS, int(budget / max(row_cost, 1.0)) // ROWS * ROWS)
        for first in range(0, rows, step):
            yield (), slice(first, min(first + step, rows))
        return
    size, rest = batch[0], batch[1:]
    entry = math.prod(rest) * rows * row_cost
    if entry > budget:
        for i in range(size):
            for inner, part in cut(rest, rows, row_cost, budget):
                yield (slice(i, i + 1), *inner), part
        return
    step = max(1, int(budget / max(entry, 1.0)))
    for i in range(0, size, step):
        yield (slice(i, min(i + step, size)), *(slice(0, n) for n in rest)), slice(0, rows)
