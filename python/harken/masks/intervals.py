"""Sets of keys, one for each query, as lists of intervals: what masks are computed in, and what the kernels read.

A list is sorted; its intervals are not empty, do not overlap and do not touch, so that a set has one list. Queries that
see the same share one, and no step takes more than O(queries + intervals) of time (times a logarithm) or memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Intervals:
    """For each query the number of a list, and the lists one behind the other."""

    number: Array
    """(..., Hq, Lq) or what broadcasts to it."""
    begin: Array
    """(lists + 1,): list n is ends[begin[n] : begin[n + 1]]."""
    ends: Array
    """(intervals, 2): the first key of each, and the first behind it."""
    keys: int
    """How many there are."""

    def __and__(self, other: Intervals) -> Intervals:
        return _swept(self, other, depth=2)

    def __or__(self, other: Intervals) -> Intervals:
        return _swept(self, other, depth=1)

    def __invert__(self) -> Intervals:
        """The bounds 0 f e f e ... keys of a list, taken in pairs, are what lies between its intervals."""
        lists = np.arange(len(self.begin))
        bounds = np.empty(2 * (len(self.ends) + len(self.begin) - 1), np.int64)
        first = 2 * (self.begin + lists)
        inner = np.ones(len(bounds), bool)
        inner[first[:-1]] = inner[first[1:] - 1] = False
        bounds[first[:-1]], bounds[first[1:] - 1] = 0, self.keys
        bounds[inner] = self.ends.ravel()
        pairs = bounds.reshape(-1, 2)
        some = pairs[:, 0] < pairs[:, 1]
        return Intervals(self.number, _sums(some)[self.begin + lists], pairs[some], self.keys)

    def as_arrays(self) -> tuple[Array, Array, Array]:
        """number, begin and ends as the kernels read them."""
        number, begin, ends = (np.ascontiguousarray(x, np.int64) for x in (self.number, self.begin, self.ends))
        return number, begin, ends

    def visible(self, rows: int, q_size: int, k_size: int) -> Array:
        """How many pairs are seen in each tile of q_size x k_size: (..., tiles of queries, tiles of keys)."""
        number = np.broadcast_to(self.number, (*self.number.shape[:-1], rows))
        tall, wide, lists = -(-rows // q_size), -(-self.keys // k_size), len(self.begin) - 1
        strip = np.arange(number.size // max(rows, 1))[:, None] * tall + np.arange(rows) // q_size
        code, times = np.unique(strip.ravel() * lists + number.ravel(), return_counts=True)
        begin, ends = _taken(self, code % max(lists, 1))
        count = np.diff(begin)
        cell, times = np.repeat(code // max(lists, 1) * (wide + 1), count), np.repeat(times, count)
        size = number.size // max(rows, 1) * tall * (wide + 1)
        # Of the intervals [f, e), so many keys lie below x: the sum of max(x - f, 0) - max(x - e, 0).
        sums = []
        for power in (0, 1):
            f, e = (np.bincount(cell + x // k_size, times * x**power, size) for x in ends.T)
            sums.append((f - e).reshape(-1, wide + 1)[:, :-1].cumsum(axis=1))
        edges = np.minimum(np.arange(1, wide + 1) * k_size, self.keys)
        seen = np.diff(edges * sums[0] - sums[1], axis=1, prepend=0)
        tiles: Array = seen.round().astype(np.int64).reshape(*number.shape[:-1], tall, wide)
        return tiles


def single(first: Any, end: Any, keys: int) -> Intervals:
    """One interval for each query, cut to the keys that there are, or none."""
    first, end = np.broadcast_arrays(np.clip(first, 0, keys), np.clip(end, 0, keys))
    some = first < end
    ends = np.stack([first[some], end[some]], axis=1).astype(np.int64)
    return Intervals(np.arange(first.size).reshape(first.shape), _sums(some.ravel()), ends, keys)


def runs(seen: Array, keys: int, size: int = 1) -> Intervals:
    """Lists of the runs of True in each row (..., rows, n), for keys that come in blocks of `size`."""
    *lead, rows, n = seen.shape
    padded = np.zeros((int(np.prod(lead)) * rows, n + 2), bool)
    padded[:, 1:-1] = seen.reshape(len(padded), n)
    change = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    row, ends = change[::2] // (n + 1), (change % (n + 1)).reshape(-1, 2)
    return listed(np.arange(len(padded)).reshape(*lead, rows), len(padded), row, ends * size, keys)


def listed(number: Array, lists: int, row: Array, ends: Array, keys: int) -> Intervals:
    """Intervals in order, with the number of the list of each; what lies past the keys is cut off."""
    ends = np.minimum(ends, keys).astype(np.int64)
    some = ends[:, 0] < ends[:, 1]
    return Intervals(number, _sums(np.bincount(row[some], minlength=lists)), ends[some], keys)


def _sums(count: Array) -> Array:
    """0, and the sum of the first, of the first two, ... of all."""
    sums = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=sums[1:])
    return sums


def _taken(of: Intervals, lists: Array) -> tuple[Array, Array]:
    """begin and ends of these lists, in this order."""
    if len(lists) == len(of.begin) - 1 and (lists == np.arange(len(lists))).all():
        return of.begin, of.ends
    count = of.begin[lists + 1] - of.begin[lists]
    begin = _sums(count)
    return begin, of.ends[np.arange(begin[-1]) + np.repeat(of.begin[lists] - begin[:-1], count)]


def _pairs(a: Intervals, b: Intervals) -> tuple[Array, Array, Array]:
    """Every pair of lists that a query has: its number, and the two of each."""
    of_a, of_b = np.broadcast_arrays(a.number, b.number)
    A, B = len(a.begin) - 1, len(b.begin) - 1
    if 4 * of_a.size >= A * B:  # a table of all pairs
        code = of_a * B + of_b
        used = np.zeros(A * B, bool)
        used[code] = True
        at = np.flatnonzero(used)
        return (np.cumsum(used) - 1)[code], at // B, at % B
    of_a, of_b, shape = of_a.ravel(), of_b.ravel(), of_a.shape  # neighbours that have the same
    new = np.ones(len(of_a), bool)
    new[1:] = (of_a[1:] != of_a[:-1]) | (of_b[1:] != of_b[:-1])
    return (np.cumsum(new) - 1).reshape(shape), of_a[new], of_b[new]


def _swept(a: Intervals, b: Intervals, depth: int) -> Intervals:
    """What lies in `depth` of the two: where a sweep over all ends counts that many intervals under way.

    The ends are sorted as numbers (list, key, which). Where one begins as another ends, a union must count the begin
    first, to join the two, and an intersection the end.
    """
    number, of_a, of_b = _pairs(a, b)
    keys, begins = a.keys, depth - 1
    events = []
    for side, lists in ((a, of_a), (b, of_b)):
        begin, ends = _taken(side, lists)
        base = np.repeat(np.arange(len(lists)) * (keys + 1), np.diff(begin))
        events.append(((base[:, None] + ends) * 2 + (begins, 1 - begins)).ravel())
    event = np.sort(np.concatenate(events), kind="stable")  # two sorted halves: one pass
    is_begin = (event & 1) == begins
    under_way = np.cumsum(np.where(is_begin, 1, -1))
    place, key = np.divmod(event[is_begin & (under_way == depth)] >> 1, keys + 1)
    end = (event[~is_begin & (under_way == depth - 1)] >> 1) % (keys + 1)
    begin = _sums(np.bincount(place, minlength=len(of_a)))
    return Intervals(number, begin, np.stack([key, end], axis=1), keys)
