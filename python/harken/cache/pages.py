"""Which pages of a pool hold the keys of which row, who shares them, and which are free."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Pages:
    """A pool of `count` pages of `size` keys, and for each row the pages that its keys lie in, in order.

    A page is written only by a row that holds it alone: `extend` gives a row its own copy of a last page that it
    shares. Lengths are the caller's; of the table only the first `used(length)` pages of a row mean anything.
    """

    def __init__(self, rows: int, width: int, size: int, count: int) -> None:
        self.size = size
        self.table = np.zeros((rows, width), np.int64)
        self.holders = np.zeros(count, np.int64)  # rows that hold a page
        self.free = list(range(count))[::-1]

    def used(self, lengths: Array) -> Array:
        """How many pages hold so many keys."""
        return -(-lengths // self.size)

    def extend(self, before: Array, after: Array) -> list[tuple[int, int]]:
        """Pages for rows that grow from `before` keys to `after`; which page is to be copied to which, first.

        ValueError, and nothing has changed, where the pool has too few.
        """
        have, want = self.used(before), self.used(after)
        partly = np.flatnonzero((after > before) & (before % self.size > 0))
        last = self.table[partly, have[partly] - 1]
        shared = self.holders[last] > 1
        needed = int((want - have).sum())
        if needed == 0 and not shared.any():
            return []
        for page, writers in zip(*np.unique(last[shared], return_counts=True), strict=True):
            needed += int(writers) - int(writers == self.holders[page])  # the last of the holders writes in place
        if needed > len(self.free):
            raise ValueError(
                f"the cache has {len(self.free)} free pages of {self.size} keys, this takes {needed}: truncate or "
                "reset rows, or make the cache with more pages="
            )
        copies = []
        for row, page in zip(partly[shared].tolist(), last[shared].tolist(), strict=True):
            if self.holders[page] == 1:
                continue
            self.holders[page] -= 1
            self.table[row, have[row] - 1] = own = self._take()
            copies.append((page, own))
        for row in np.flatnonzero(want > have).tolist():
            for n in range(have[row], want[row]):
                self.table[row, n] = self._take()
        return copies

    def cut(self, before: Array, after: Array) -> None:
        """Gives up what rows no longer need that shrink from `before` keys to `after`."""
        have, want = self.used(before), self.used(after)
        for row in np.flatnonzero(want < have).tolist():
            for page in self.table[row, want[row] : have[row]].tolist():
                self.holders[page] -= 1
                if self.holders[page] == 0:
                    self.free.append(page)

    def share(self, row: int, into: int, length: int) -> None:
        """Row `into`, which holds nothing, holds the pages of the first `length` keys of `row`."""
        used = -(-length // self.size)
        self.table[into, :used] = self.table[row, :used]
        self.holders[self.table[row, :used]] += 1

    def add_row(self) -> None:
        """One row more, which holds nothing."""
        self.table = np.concatenate([self.table, np.zeros_like(self.table[:1])])

    def fill(self, lengths: Array) -> tuple[Array, Array]:
        """The pages that are held, and how many of the keys of each mean something."""
        filled = np.zeros(len(self.holders), np.int64)
        for row, length in enumerate(lengths.tolist()):
            pages = self.table[row, : -(-length // self.size)]
            filled[pages] = np.maximum(filled[pages], np.minimum(self.size, length - np.arange(len(pages)) * self.size))
        held = np.flatnonzero(self.holders)
        return held, filled[held]

    def restore(self, table: Array, lengths: Array) -> None:
        """A pool that nobody has used takes over a table."""
        self.table[:, : table.shape[1]] = table
        used = self.used(lengths)
        for row in range(len(lengths)):
            np.add.at(self.holders, table[row, : used[row]], 1)
        self.free = np.flatnonzero(self.holders == 0)[::-1].tolist()

    def _take(self) -> int:
        page = self.free.pop()
        self.holders[page] = 1
        return page
