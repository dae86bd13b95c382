"""What every mask does, whatever it shows: combine, compare, become an array, tiles, a picture, what a kernel reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import reduce
from operator import and_, invert, or_
from os import PathLike
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.masks.frame import Frame
from harken.masks.intervals import Intervals, runs

Array = NDArray[Any]
Sides = tuple[int | None, int | None]
Compiled = tuple[int | None, int | None, Array | None, tuple[Array, Array, Array] | None]


class Mask(ABC):
    """Which keys each query sees: what all masks have in common.

    `a & b` shows what both show, `a | b` what one of them does, `~a` what `a` hides; a boolean array beside a mask
    counts as `Dense` of it. Masks do not change, and are equal when they are written alike.
    """

    __array_ufunc__ = None  # array & mask is for the mask to answer
    _parts: tuple[Any, ...] = ()
    _compiled: tuple[Any, Compiled] | None = None

    def dense(self, Lq: int, Lk: int, *, q_start: ArrayLike | None = None) -> Array:
        """The mask as a boolean array.

        Parameters
        ----------
        Lq, Lk : int
            How many queries and keys.
        q_start : int or array_like of int, optional
            The position of the first query, by default Lk - Lq; an array has one for each of the leading axes.

        Returns
        -------
        ndarray of bool, (Lq, Lk)
            True where a query sees a key; (..., Hq, Lq, Lk) with axes of 1 where the mask or q_start has leading axes.

        Raises
        ------
        ValueError
            The mask is for fewer positions than that.
        """
        seen = np.asarray(self._dense(Frame.of_call(Lq, Lk, q_start)))
        lead = seen.shape[:-2] if max(seen.shape[:-2], default=1) > 1 else ()
        return np.array(np.broadcast_to(seen.reshape(lead + seen.shape[-2:]), (*lead, Lq, Lk)))

    def tiles(self, Lq: int, Lk: int, size: int | tuple[int, int] = 128, *, q_start: ArrayLike | None = None) -> Array:
        """Which tiles of queries x keys are empty (0), edges (1) or full (2), without making an array of their scores.

        `size` is that of a tile, (queries, keys) or one number for both; the rest as in `dense`. int8, (..., tiles of
        queries, tiles of keys).
        """
        seen, area = self._visible(Lq, Lk, size, q_start)
        kinds: Array = (seen > 0).astype(np.int8) + (seen == area)
        return kinds

    def density(self, Lq: int, Lk: int, *, q_start: ArrayLike | None = None) -> float:
        """The share of all pairs of a query and a key that is seen; arguments as in `dense`."""
        seen, area = self._visible(Lq, Lk, (max(Lq, 1), max(Lk, 1)), q_start)
        return float(seen.mean() / area.item()) if seen.size else 0.0

    def plot(self, path: str | PathLike[str], Lq: int, Lk: int, *, q_start: ArrayLike | None = None) -> None:
        """Draw the mask into a picture file, as `harken.plot.mask` does: queries downwards, keys to the right.

        `path` ends in .png, .svg, .pdf or whatever else matplotlib writes (`pip install 'harken[plot]'`). The rest as
        in `dense`.
        """
        from harken.plot.mask import mask as draw
        from harken.plot.sheet import save

        panels = np.asarray(draw(self, Lq, Lk, q_start=q_start), object)
        save(panels.flat[0].figure, path)

    # --- what a kind of mask says ---

    @abstractmethod
    def _dense(self, frame: Frame) -> Array:
        """Boolean, broadcastable to (..., Hq, Lq, Lk)."""

    @abstractmethod
    def _intervals(self, frame: Frame) -> Intervals:
        """The same as lists."""

    def _sides(self) -> Sides | None:
        """(left, right), if it is no more than a window that is the same for all."""
        return None

    def _all_of(self) -> Iterator[Mask]:
        """What it is the intersection of."""
        yield self

    # --- what becomes of it ---

    def _visible(self, Lq: int, Lk: int, size: int | tuple[int, int], q_start: ArrayLike | None) -> tuple[Array, Array]:
        """How many pairs are seen in each tile, and how many there are."""
        tall, wide = (size, size) if isinstance(size, int) else size
        if tall < 1 or wide < 1:
            raise ValueError(f"size is {size!r}: wanted the queries and the keys of a tile, 1 or more")
        seen = self._intervals(Frame.of_call(Lq, Lk, q_start)).visible(Lq, tall, wide)
        rows, columns = (np.minimum(n, L - np.arange(0, L, n)) for n, L in ((tall, Lq), (wide, Lk)))
        lead = seen.shape[:-2] if max(seen.shape[:-2], default=1) > 1 else ()
        return seen.reshape(lead + seen.shape[-2:]), rows[:, None] * columns

    def _over(self, lead: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """Do the leading axes of the mask fit those of the call, (..., Hq)?"""
        try:
            fits = np.broadcast_shapes(lead, shape) == lead
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"mask is {self!r}, with leading axes {shape}: wanted ones that broadcast to {lead}, (..., Hq)"
            )

    def _array(self, lead: tuple[int, ...], Lq: int, Lk: int, *where: ArrayLike | None) -> Array:
        """The mask of a call as an array that broadcasts to (..., Hq, Lq, Lk); `where` as in `_compile`."""
        seen = np.asarray(self._dense(Frame.of_call(Lq, Lk, *where)))
        self._over(lead, seen.shape[:-2])
        return seen

    def _compile(self, lead: tuple[int, ...], Lq: int, Lk: int, *where: ArrayLike | None) -> Compiled:
        """What the kernels read: the sides of a window, an array, and lists of intervals, which are ANDed.

        `where` is q_start, q_lengths and kv_lengths of the call.
        """
        frame = Frame.of_call(Lq, Lk, *where)
        key = (lead, frame.key)
        last = self._compiled
        if last is not None and last[0] == key:
            return last[1]
        sides: list[Sides] = []
        arrays: list[Array] = []
        lists: list[Intervals] = []
        for part in self._all_of():
            of_part = part._sides()
            if of_part is not None:
                sides.append(of_part)
            elif isinstance(part, Dense):
                arrays.append(part._dense(frame))
            else:
                lists.append(part._intervals(frame))
        left = min((x for x, _ in sides if x is not None), default=None)
        right = min((x for _, x in sides if x is not None), default=None)
        for shape in [*(x.shape[:-2] for x in arrays), *(x.number.shape[:-1] for x in lists)]:
            self._over(lead, shape)
        array = reduce(and_, arrays) if arrays else None
        compiled: Compiled = left, right, array, reduce(and_, lists).as_arrays() if lists else None
        self._compiled = (key, compiled)
        return compiled

    def _for_lengths(self, q_lengths: ArrayLike | None, kv_lengths: ArrayLike) -> Mask:
        """The same for a call whose rows have lengths that it is not told as arguments."""
        placed = OfLengths()
        placed._parts = (self, q_lengths, kv_lengths)
        return placed

    # --- combined, compared, printed ---

    def __and__(self, other: Mask | ArrayLike) -> Mask:
        return Both(self, mask_of(other))

    def __rand__(self, other: ArrayLike) -> Mask:
        return Both(mask_of(other), self)

    def __or__(self, other: Mask | ArrayLike) -> Mask:
        return Either(self, mask_of(other))

    def __ror__(self, other: ArrayLike) -> Mask:
        return Either(mask_of(other), self)

    def __invert__(self) -> Mask:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a mask is neither true nor false: masks are combined by &, | and ~, not by and, or and not")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Mask) or len(self._parts) != len(other._parts):
            return False
        return all(map(_same, self._parts, other._parts))

    def __hash__(self) -> int:
        return hash((type(self), *(x.shape if isinstance(x, np.ndarray) else x for x in self._parts)))

    def __repr__(self) -> str:
        parts = (f"<{x.dtype} {x.shape}>" if np.ndim(x) else str(x) for x in self._parts)
        return f"{type(self).__name__}({', '.join(parts)})"


class Dense(Mask):
    """Any boolean array, True where a query may look: by index, not by position.

    Parameters
    ----------
    array : array_like of bool, broadcastable to (..., Hq, Lq, Lk)
        It is read where it lies, not copied: it may not change as long as the mask is in use.

    Raises
    ------
    TypeError
        It does not hold booleans.

    Notes
    -----
    Alone, or joined to others by `&`, it is read as an array; under `|` and `~` the runs of True in its rows become
    intervals.

    Examples
    --------
    >>> from harken.masks import Dense
    >>> (~Dense([[True, False], [False, False]])).dense(2, 2)
    array([[False,  True],
           [ True,  True]])
    """

    def __init__(self, array: ArrayLike) -> None:
        seen = np.asarray(array)
        if seen.dtype != bool:
            raise TypeError(
                f"array is {seen.dtype}: wanted bool, True where a query may look; give array != 0, or bias= for "
                "numbers that are added to the scores"
            )
        self._parts = (seen,)

    def _dense(self, frame: Frame) -> Array:
        seen: Array = self._parts[0]
        rows, columns = (1, 1, *seen.shape)[-2:]
        if rows not in (1, frame.Lq) or columns not in (1, frame.Lk):
            raise ValueError(
                f"mask has shape {seen.shape}: wanted one that broadcasts to {(frame.Lq, frame.Lk)}, (..., Hq, Lq, Lk)"
            )
        return seen.reshape((1, 1, *seen.shape)[-max(seen.ndim, 2) :])

    def _intervals(self, frame: Frame) -> Intervals:
        seen = self._dense(frame)
        return runs(np.broadcast_to(seen, (*seen.shape[:-1], frame.Lk)), frame.Lk)


class Joined(Mask):
    """Several masks under one operator, & or |, of arrays and of lists alike."""

    _join: ClassVar[staticmethod[[Any, Any], Any]]

    def __init__(self, *parts: Mask) -> None:
        self._parts = tuple(one for part in parts for one in (part._parts if type(part) is type(self) else (part,)))

    def _dense(self, frame: Frame) -> Array:
        seen: Array = reduce(type(self)._join, (part._dense(frame) for part in self._parts))
        return seen

    def _intervals(self, frame: Frame) -> Intervals:
        seen: Intervals = reduce(type(self)._join, (part._intervals(frame) for part in self._parts))
        return seen


class Both(Joined):
    """a & b & ...: what all of them show."""

    _join = staticmethod(and_)

    def _all_of(self) -> Iterator[Mask]:
        for part in self._parts:
            yield from part._all_of()

    def __repr__(self) -> str:
        return " & ".join(f"({part!r})" if isinstance(part, Either) else repr(part) for part in self._parts)


class Either(Joined):
    """a | b | ...: what one of them shows."""

    _join = staticmethod(or_)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self._parts))


class Not(Mask):
    """~a: what it hides."""

    def __init__(self, part: Mask) -> None:
        self._parts = (part,)

    def _dense(self, frame: Frame) -> Array:
        return invert(self._parts[0]._dense(frame))

    def _intervals(self, frame: Frame) -> Intervals:
        of_part: Intervals = self._parts[0]._intervals(frame)
        return ~of_part

    def __invert__(self) -> Mask:
        part: Mask = self._parts[0]
        return part

    def __repr__(self) -> str:
        inner = repr(self._parts[0])
        return f"~({inner})" if isinstance(self._parts[0], (Both, Either)) else f"~{inner}"


def mask_of(x: Mask | ArrayLike) -> Mask:
    return x if isinstance(x, Mask) else Dense(x)


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return type(x) is type(y) and np.array_equal(x, y)
    return bool(x == y)


class OfLengths(Mask):
    """A mask in sequences of different lengths, packed or in a cache."""

    def _dense(self, frame: Frame) -> Array:
        seen: Array = self._parts[0]._dense(frame)
        return seen

    def _intervals(self, frame: Frame) -> Intervals:
        seen: Intervals = self._parts[0]._intervals(frame)
        return seen

    def _compile(self, lead: tuple[int, ...], Lq: int, Lk: int, *where: ArrayLike | None) -> Compiled:
        mask, of_q, of_k = self._parts
        compiled: Compiled = mask._compile(lead, Lq, Lk, where[0], of_q, of_k)
        return compiled
