"""Where the queries of a call stand: the positions that masks are patterns of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

FAR = 2**46  # a position beyond any array, as in the kernels


@dataclass(frozen=True, eq=False)
class Frame:
    """Where the queries of a call stand."""

    Lq: int
    Lk: int
    start: Array
    """(..., 1), the last axis for the heads."""
    queries: Array
    """How many exist, likewise."""

    @classmethod
    def of_call(
        cls,
        Lq: int,
        Lk: int,
        q_start: ArrayLike | None,
        q_lengths: ArrayLike | None = None,
        kv_lengths: ArrayLike | None = None,
    ) -> Frame:
        queries, keys = _whole("q_lengths", q_lengths, Lq), _whole("kv_lengths", kv_lengths, Lk)
        start = keys - queries if q_start is None else _whole("q_start", q_start, 0)
        return cls(Lq, Lk, start[..., None], queries[..., None])

    @property
    def p(self) -> Array:
        """The positions, (..., 1, Lq)."""
        return self.start[..., None] + np.arange(self.Lq)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.Lq, self.Lk, *((x.shape, x.tobytes()) for x in (self.start, self.queries))

    def inside(self, what: str, at: Array, end: int, unit: str) -> Array:
        """`at`, cut to 0 .. end - 1, where every query that exists must lie."""
        outside = ((at < 0) | (at >= end)) & (np.arange(self.Lq) < self.queries[..., None])
        if outside.any():
            p = np.broadcast_to(self.p, outside.shape)[outside]
            raise ValueError(
                f"{what} has {end} {unit}, and queries stand outside of them, at positions {p.min()} to {p.max()}: "
                "give it for all positions, or q_start=0 if query i stands at position i"
            )
        cut: Array = np.clip(at, 0, max(end - 1, 0))
        return cut


def _whole(name: str, x: ArrayLike | None, default: int) -> Array:
    """Integers as int64; what lies beyond is as good as its end."""
    if isinstance(x, int):
        x = min(max(x, -FAR), FAR)
    given = np.asarray(default if x is None else x)
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"{name} is {given.dtype}: wanted integers, one for all or one for each of the leading axes")
    near: Array = np.clip(np.minimum(given, FAR).astype(np.int64), -FAR, FAR)
    return near
