"""Rotary positions inside a layer: queries and keys turn where they lie, by tables that grow with the positions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken._load import core
from harken.positions.rope_table import rope_table

Array = NDArray[Any]
Rope = float | tuple[ArrayLike, ArrayLike]

FIRST = 128  # rows of a table that is begun


class Rotary:
    """The tables of `rope` for heads of `head_dim` channels: from the base of their frequencies, or as given."""

    def __init__(self, given: Rope, head_dim: int, interleaved: bool, dtype: np.dtype[Any]) -> None:
        self.interleaved, self.dtype = interleaved, dtype
        self.base: float | None = None
        if isinstance(given, int | float):
            if head_dim % 2:
                raise ValueError(f"rope is {given!r} and a head has {head_dim} channels: they turn in pairs")
            self.base, self.dim = float(given), head_dim
            self.tables = rope_table(FIRST, head_dim, base=self.base, dtype=dtype)
            return
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise TypeError(f"rope is {type(given).__name__}: wanted a number, the base, or (cos, sin) of rope_table")
        cos, sin = (np.array(table, dtype, order="C") for table in given)
        if cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > head_dim:
            wanted = f"two tables (positions, up to {head_dim // 2})"
            raise ValueError(f"rope holds {cos.shape} and {sin.shape}: wanted {wanted}, half the channels of a head")
        self.tables = cos, sin

    def upto(self, end: int) -> tuple[Array, Array]:
        """cos and sin of the positions before `end`, at least."""
        tables = self.tables
        if end > len(tables[0]):
            if self.base is None:
                raise ValueError(f"rope has tables of {len(tables[0])} rows: position {end - 1} needs longer ones")
            tables = rope_table(max(end, 2 * len(tables[0])), self.dim, base=self.base, dtype=self.dtype)
            self.tables = tables  # one assignment: other threads see the old pair or the new one
        return tables

    def turn(self, x: Array, first: int = 0) -> None:
        """Turn (..., L, H, D) in place; row i stands at position first + i."""
        end = first + x.shape[-3]
        cos, sin = self.upto(end)
        core._rotate(x, cos[first:end, None], sin[first:end, None], x, self.interleaved)  # rope checks for 10 us

    def turn_at(self, x: Array, positions: Array) -> None:
        """Turn (..., L, H, D) in place, each row by its position (..., L)."""
        cos, sin = self.upto(int(positions.max(initial=-1)) + 1)
        core._rotate(x, cos[positions][..., None, :], sin[positions][..., None, :], x, self.interleaved)

    def turn_on(self, x: Array, at: Array, lengths: Array | None) -> None:
        """Turn (B, L, H, D) in place; row i of sequence b stands at at[b] + i, and only lengths[b] of them count."""
        if lengths is None and (at == at[0]).all():
            self.turn(x, int(at[0]))
            return
        counts = x.shape[1] if lengths is None else lengths[:, None]
        self.turn_at(x, at[:, None] + np.minimum(np.arange(x.shape[1]), np.maximum(counts - 1, 0)))
