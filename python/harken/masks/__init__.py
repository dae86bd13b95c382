"""Masks by what they mean: causal, windows, lengths, documents, prefixes, blocks, and what `&`, `|`, `~` make of them.

Given as `mask=`, a mask never becomes an array of queries x keys: each query has the few intervals of keys that it
sees. Blocks of keys that nobody of a tile sees are not computed, and those that all of it see are computed as if there
were no mask: the cost is that of the visible part. `causal=`, `window=` and lengths beside a mask are ANDed with it.

A mask is a pattern of positions. Query i stands at p_i = i + q_start, where q_start is that of the call: by default the
number of keys less that of queries. Only `Dense` goes by index. Arrays in a mask are copied, but for that of `Dense`.

>>> import numpy as np
>>> import harken
>>> from harken.masks import Causal, Documents, Prefix
>>> packed = Causal() & Documents([0, 0, 0, 1, 1])
>>> packed.dense(5, 5).astype(int)
array([[1, 0, 0, 0, 0],
       [1, 1, 0, 0, 0],
       [1, 1, 1, 0, 0],
       [0, 0, 0, 1, 0],
       [0, 0, 0, 1, 1]])
>>> x = np.random.default_rng(0).normal(size=(5, 8))
>>> np.allclose(harken.attention(x, x, x, mask=packed)[3:], harken.attention(x[3:], x[3:], x[3:], causal=True))
True
>>> (Causal() | Prefix(500)).density(1000, 1000)
0.62525
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harken.masks.frame import Array, Frame
from harken.masks.intervals import Intervals, listed, runs, single
from harken.masks.mask import Dense, Mask, Sides

__all__ = ["Blocks", "Causal", "Dense", "Documents", "Lengths", "Mask", "Prefix", "Window"]


def _integers(name: str, x: Any, least: int | None = None) -> Array:
    """A copy as int64."""
    given = np.asarray(x)
    if given.dtype.kind not in "iu" and (given.size or given.dtype != np.float64):
        raise TypeError(f"{name} is {given.dtype}: wanted integers")
    if least is not None and given.size and given.min() < least:
        raise ValueError(f"{name} holds {given.min()}: wanted {least} or more")
    kept = np.array(given.clip(None, 2**46), np.int64)
    kept.setflags(write=False)
    return kept


class Window(Mask):
    """Keys from p_i - left to p_i + right, both included.

    Parameters
    ----------
    left, right : int or array_like of int, optional
        How many keys before and after its own position a query sees; None is an unbounded side. An array, broadcastable
        to (..., Hq), gives each head a window of its own.

    Raises
    ------
    TypeError, ValueError
        A side is not of integers, or below 0.

    Examples
    --------
    >>> Window(1, 0).dense(3, 3).astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1]])
    """

    def __init__(self, left: ArrayLike | None = None, right: ArrayLike | None = None) -> None:
        sides = [None if x is None else _integers(name, x, 0) for name, x in (("left", left), ("right", right))]
        self._parts = tuple(x if x is None or x.ndim else int(x) for x in sides)

    def _bounds(self, frame: Frame) -> tuple[Any, Any]:
        left, right = (x[..., None] if isinstance(x, np.ndarray) else x for x in self._parts)
        return (0 if left is None else frame.p - left), (frame.Lk if right is None else frame.p + right + 1)

    def _dense(self, frame: Frame) -> Array:
        first, end = (np.asarray(x)[..., None] for x in self._bounds(frame))
        j = np.arange(frame.Lk)
        seen: Array = (first <= j) & (j < end)
        return seen if seen.ndim > 1 else seen[None]

    def _intervals(self, frame: Frame) -> Intervals:
        first, end = self._bounds(frame)
        return single(np.atleast_1d(first), np.atleast_1d(end), frame.Lk)

    def _sides(self) -> Sides | None:
        left, right = self._parts
        return None if isinstance(left, np.ndarray) or isinstance(right, np.ndarray) else (left, right)


class Causal(Window):
    """Keys up to the query's own position, j <= p_i.

    Examples
    --------
    >>> Causal().dense(2, 4).astype(int)
    array([[1, 1, 1, 0],
           [1, 1, 1, 1]])
    >>> Causal().dense(2, 4, q_start=0).astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0]])
    """

    def __init__(self) -> None:
        self._parts = (None, 0)

    def __repr__(self) -> str:
        return "Causal()"


class Lengths(Mask):
    """The first n keys, j < n: those of a padded batch that exist. Positions stay, unlike with `kv_lengths=`.

    Parameters
    ----------
    n : int or array_like of int, broadcastable to the leading axes
        One number for all, or one for each batch row; more than there are keys is all of them.

    Raises
    ------
    TypeError, ValueError
        n is not of integers, or below 0.

    Examples
    --------
    >>> Lengths([2, 3]).dense(1, 4).astype(int).reshape(2, 4)
    array([[1, 1, 0, 0],
           [1, 1, 1, 0]])
    """

    def __init__(self, n: ArrayLike) -> None:
        self._parts = (_integers("n", n, 0),)

    def _dense(self, frame: Frame) -> Array:
        seen: Array = np.arange(frame.Lk) < self._parts[0][..., None, None, None]
        return seen

    def _intervals(self, frame: Frame) -> Intervals:
        return single(0, self._parts[0][..., None, None], frame.Lk)


class Prefix(Lengths):
    """The first n keys, for all to see: `Causal() | Prefix(n)` is the mask of a prefix language model.

    Parameters and errors are those of `Lengths`.

    Examples
    --------
    >>> (Causal() | Prefix(2)).dense(4, 4).astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 0],
           [1, 1, 1, 1]])
    """


class Documents(Mask):
    """Keys of the query's own document: ids[j] == ids[p_i].

    Parameters
    ----------
    ids : array_like of int, (..., L)
        The document of each position, of at least as many as there are keys. Any numbers in any order; where documents
        are packed one behind the other, each query has one interval.
    queries : array_like of int, (..., Lq), optional
        The documents of the queries where they are not those of the keys: of query i, not of position p_i.

    Raises
    ------
    TypeError
        They are not integers.
    ValueError
        No axis of positions; in a call: fewer ids than positions.

    Examples
    --------
    >>> Documents([7, 7, 3, 7]).dense(4, 4).astype(int)
    array([[1, 1, 0, 1],
           [1, 1, 0, 1],
           [0, 0, 1, 0],
           [1, 1, 0, 1]])
    """

    def __init__(self, ids: ArrayLike, queries: ArrayLike | None = None) -> None:
        self._parts = (_integers("ids", ids), None if queries is None else _integers("queries", queries))
        for name, x in zip(("ids", "queries"), self._parts, strict=True):
            if x is not None and x.ndim == 0:
                raise ValueError(f"{name} is a single number: wanted one for each position, (..., L)")

    def _of_keys(self, frame: Frame) -> Array:
        ids: Array = self._parts[0]
        if ids.shape[-1] < frame.Lk:
            raise ValueError(f"Documents has {ids.shape[-1]} ids, there are {frame.Lk} keys: wanted one for each")
        return ids[..., : frame.Lk]

    def _of_queries(self, frame: Frame) -> Array:
        """(..., 1, Lq), the axis of 1 for the heads."""
        ids, queries = self._parts
        if queries is not None:
            if queries.shape[-1] != frame.Lq:
                raise ValueError(f"Documents has {queries.shape[-1]} ids of queries, there are {frame.Lq} queries")
            of_all: Array = queries[..., None, :]
            return of_all
        if ids.shape[-1] == 0:
            return np.zeros((1, frame.Lq), np.int64)
        at = frame.inside("Documents", frame.p, ids.shape[-1], "ids")
        lead = np.broadcast_shapes((*ids.shape[:-1], 1), at.shape[:-1])
        ids = np.broadcast_to(ids[..., None, :], (*lead, ids.shape[-1]))
        return np.take_along_axis(ids, np.broadcast_to(at, (*lead, frame.Lq)), -1)

    def _dense(self, frame: Frame) -> Array:
        seen: Array = self._of_queries(frame)[..., None] == self._of_keys(frame)[..., None, None, :]
        return seen

    def _intervals(self, frame: Frame) -> Intervals:
        """A list for each document of each batch row, and an empty one; runs of equal ids are its intervals."""
        Lk, keys, queries = frame.Lk, self._of_keys(frame), self._of_queries(frame)
        lead = keys.shape[:-1]
        rows = int(np.prod(lead))
        if rows * Lk == 0:
            return single(0, np.zeros((*queries.shape[:-1], 1), np.int64), Lk)
        ids = keys.reshape(rows, Lk)
        new = np.ones((rows, Lk), bool)
        np.not_equal(ids[:, 1:], ids[:, :-1], out=new[:, 1:])
        first = np.flatnonzero(new)
        row, first_key = np.divmod(first, Lk)
        end_key = np.append(first[1:], rows * Lk) - row * Lk
        names, which = np.unique(ids.ravel()[first], return_inverse=True)
        document = row * len(names) + which
        order = np.argsort(document, kind="stable")
        ends = np.stack([first_key, end_key], axis=1)[order]
        place = np.minimum(np.searchsorted(names, queries), len(names) - 1)
        of_row = np.arange(rows).reshape(lead)[..., None, None] * len(names)
        lists = rows * len(names)
        number = np.where(names[place] == queries, of_row + place, lists)
        return listed(number, lists + 1, document[order], ends, Lk)


class Blocks(Mask):
    """Blocks of queries see blocks of keys: grid[p_i // block_size, j // block_size], as in block-sparse attention.

    Parameters
    ----------
    grid : array_like of bool, (..., Hq, blocks of queries, blocks of keys), or (begin, columns)
        True where the queries of a block see the keys of one. Leading axes and heads broadcast. As a pair of integer
        arrays it is one grid in CSR form: block row r sees the block columns columns[begin[r] : begin[r + 1]].
    block_size : int or (int, int)
        Of queries and of keys, both the same or (queries, keys). Blocks at the end may be cut short.

    Raises
    ------
    TypeError, ValueError
        A grid of other numbers or axes, a size below 1, a CSR that is none; in a call: fewer blocks than positions.

    Examples
    --------
    >>> Blocks([[True, False], [True, True]], 2).dense(3, 3).astype(int)
    array([[1, 1, 0],
           [1, 1, 0],
           [1, 1, 1]])
    >>> Blocks(([0, 1, 3], [0, 0, 1]), 2).tiles(4, 4, 2)
    array([[2, 0],
           [2, 2]], dtype=int8)
    """

    def __init__(self, grid: Any, block_size: int | tuple[int, int] = 128) -> None:
        pair = block_size if isinstance(block_size, tuple) else (block_size, block_size)
        sizes = _integers("block_size", pair, 1)
        if sizes.shape != (2,):
            raise ValueError(f"block_size is {block_size!r}: wanted one number, or those of queries and of keys")
        if isinstance(grid, tuple) and len(grid) == 2:
            begin, columns = _integers("begin", grid[0], 0), _integers("columns", grid[1], 0)
            sound = begin.ndim == columns.ndim == 1 and len(begin) > 0 and begin[0] == 0 and begin[-1] == len(columns)
            if not sound or (np.diff(begin) < 0).any():
                raise ValueError(
                    f"grid is a pair of {begin.shape} and {columns.shape}: wanted CSR, begin from 0 up to len(columns)"
                )
            self._parts = (begin, columns, *map(int, sizes))
            return
        seen = np.array(grid)
        if seen.dtype != bool:
            raise TypeError(f"grid is {seen.dtype}: wanted bool, or (begin, columns) of integers")
        if seen.ndim < 2:
            raise ValueError(f"grid has shape {seen.shape}: wanted (..., blocks of queries, blocks of keys)")
        seen.setflags(write=False)
        self._parts = (seen, *map(int, sizes))

    def _rows(self, frame: Frame, rows: int) -> Array:
        """The block of each query."""
        return frame.inside("Blocks", frame.p // self._parts[-2], rows, f"rows of {self._parts[-2]} queries")

    def _dense(self, frame: Frame) -> Array:
        *grid, _, wide = self._parts
        if len(grid) == 2:
            begin, columns = grid
            seen = np.zeros((len(begin) - 1, max(columns.max(initial=0) + 1, -(-frame.Lk // wide))), bool)
            seen[np.repeat(np.arange(len(begin) - 1), np.diff(begin)), columns] = True
        else:
            seen = self._wide_enough(grid[0], frame.Lk)
        rows, j = self._rows(frame, seen.shape[-2]), np.arange(frame.Lk) // wide
        lead = np.broadcast_shapes(seen.shape[:-2], rows.shape[:-1])
        seen = np.broadcast_to(seen, (*lead, *seen.shape[-2:]))[..., j]
        return np.take_along_axis(seen, np.broadcast_to(rows, (*lead, frame.Lq))[..., None], -2)

    def _intervals(self, frame: Frame) -> Intervals:
        *grid, _, wide = self._parts
        if len(grid) == 2:
            begin, columns = grid
            row = np.repeat(np.arange(len(begin) - 1), np.diff(begin))
            stride = int(columns.max(initial=0)) + 2
            code = np.unique(row * stride + columns)
            new = np.diff(code, prepend=-2) > 1  # runs of columns; the last column of a row and the first are 2 apart
            row, first = np.divmod(code[new], stride)
            end = code[np.append(new[1:], True)[: len(code)]] % stride + 1
            lists = listed(
                np.arange(len(begin) - 1), len(begin) - 1, row, np.stack([first, end], axis=1) * wide, frame.Lk
            )
        else:
            lists = runs(self._wide_enough(grid[0], frame.Lk), frame.Lk, wide)
        rows = self._rows(frame, lists.number.shape[-1])
        if lists.number.size == 0:
            return single(0, np.zeros((1, 1), np.int64), frame.Lk)
        of_head = lists.number[..., :1]  # the lists of a head are consecutive
        return Intervals(of_head + rows, lists.begin, lists.ends, frame.Lk)

    def _wide_enough(self, grid: Array, Lk: int) -> Array:
        wide = self._parts[-1]
        if grid.shape[-1] * wide < Lk:
            raise ValueError(f"Blocks has {grid.shape[-1]} columns of {wide} keys, there are {Lk} keys: wanted more")
        return grid
