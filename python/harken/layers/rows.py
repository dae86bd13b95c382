"""Sequences end to end: (..., L, C) becomes (T, C) without its padding, and comes back with zeros in its place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


class Rows:
    """How the rows of an array (..., L, C) lie: all of them, or of each sequence the first `lengths`.

    What is computed row by row is computed for `pack(x)`, and padding costs nothing and reaches nothing.

    Attributes
    ----------
    lead, L : tuple of int, int
        The leading axes, and the rows of a sequence.
    lengths : ndarray of int64, (sequences,), or None
        How many rows of each sequence exist; None where all do.
    ends : ndarray of int64, (sequences + 1,)
        Where each sequence begins in what is packed.
    """

    __slots__ = ("L", "_at", "_ends", "lead", "lengths")

    def __init__(self, x: Array, lengths: ArrayLike | None = None, name: str = "lengths") -> None:
        self.lead: tuple[int, ...] = x.shape[:-2]
        self.L: int = x.shape[-2]
        self.lengths: Array | None = None
        self._ends: Array | None = None
        self._at: Array | None = None
        if lengths is None:
            return
        given = np.asarray(lengths)
        if given.dtype.kind not in "iu" and given.size:
            raise TypeError(f"{name} is {given.dtype}: wanted integers, one for each sequence")
        try:
            each = np.broadcast_to(given, self.lead)
        except ValueError:
            raise ValueError(
                f"{name} has shape {given.shape}: wanted one integer for each sequence, {self.lead}"
            ) from None
        if each.size and (each.min() < 0 or each.max() > self.L):
            wrong = each.min() if each.min() < 0 else each.max()
            raise ValueError(f"{name} holds {wrong}: wanted 0 to {self.L}, the rows of a sequence")
        if (each != self.L).any():
            self.lengths = each.astype(np.int64).reshape(-1)
            self._at = np.flatnonzero(np.arange(self.L) < self.lengths[:, None])

    @property
    def ends(self) -> Array:
        if self._ends is None:
            each = np.full(math.prod(self.lead), self.L) if self.lengths is None else self.lengths
            self._ends = np.zeros(len(each) + 1, np.int64)
            np.cumsum(each, out=self._ends[1:])
        return self._ends

    @property
    def counts(self) -> Array | None:
        """The lengths over the leading axes."""
        return None if self.lengths is None else self.lengths.reshape(self.lead)

    @property
    def longest(self) -> int:
        """The rows of the longest sequence."""
        return self.L if self.lengths is None else int(self.lengths.max(initial=0))

    @property
    def positions(self) -> Array:
        """Where in its sequence each row that is packed stands, (T,)."""
        if self._at is None:
            return np.tile(np.arange(self.L), math.prod(self.lead))
        return self._at % self.L

    def spreads(self, rows: Rows) -> bool:
        """Whether the leading axes broadcast to those of other rows."""
        pairs = zip(reversed(self.lead), reversed(rows.lead), strict=False)
        return len(self.lead) <= len(rows.lead) and all(n in (1, m) for n, m in pairs)

    def pack(self, x: Array) -> Array:
        """(..., L, C) to (T, C): a view where there is no padding and x lies evenly."""
        rows = x.reshape(math.prod(self.lead) * self.L, x.shape[-1])
        return rows if self._at is None else rows[self._at]

    def unpack(self, rows: Array) -> Array:
        """(T, ...) to (..., L, ...): a view where there is no padding, else a copy with zeros there."""
        shape = (*self.lead, self.L, *rows.shape[1:])
        if self._at is None:
            return rows.reshape(shape)
        padded = np.zeros((math.prod(self.lead) * self.L, *rows.shape[1:]), rows.dtype)
        padded[self._at] = rows
        return padded.reshape(shape)
