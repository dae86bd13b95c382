"""Rotary position embedding: pairs of channels turn by angles that grow with the position."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken._load import core
from harken.foreign import any_foreign, in_numpy
from harken.reference import _floating

Array = NDArray[Any]


def rope(
    x: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    interleaved: bool = False,
    head_axis: int = -3,
    out: Array | None = None,
) -> Array:
    """Turn the channels of queries or keys by their positions, so that q . k depends on how far apart they stand.

    Pair n of the channels of a row at position p is one complex number, and it turns::

        x_a + i x_b  ->  (x_a + i x_b) (cos[p, n] + i sin[p, n])

        a, b = n, n + R/2            the two halves, as in Llama and GPT-NeoX
        a, b = 2 n, 2 n + 1          interleaved=True: neighbours, as in GPT-J

    where R/2 is the width of the tables. Channels from R on stay as they are.

    Parameters
    ----------
    x : array_like, (..., H, L, D)
        float64, float32, float16 or `ml_dtypes.bfloat16`; lists and integers become float64. 2-D arrays are one head.
    cos, sin : array_like of floats, (P, R/2) or (..., L, R/2)
        A row for each position, as `rope_table` gives them, or a row for each row of x, where the leading axes
        broadcast to those of x. R <= D.
    positions : array_like of int, broadcastable to (..., L), optional
        Which row of the tables each row of x takes: from 0 to P - 1. By default row i takes row i.
    interleaved : bool
        Whether the channels of a pair are neighbours, or R/2 apart.
    head_axis : {-3, -2}
        -2 where x is (..., L, H, D).
    out : ndarray, optional
        Where the result goes: a writeable array of the shape and dtype of x, of any strides. It may overlap x; `out=x`
        turns in place.

    Returns
    -------
    ndarray
        Of the shape and dtype of x. 16-bit types are computed in float32 and rounded once.

    Raises
    ------
    TypeError
        A dtype that is not computed with; positions that are no integers.
    ValueError
        Shapes that do not fit, positions that the tables do not have. `out` has not been written to.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864.

    Examples
    --------
    A token whose key was cached turned at position 7 and a query at position 9 meet as they would at 0 and 2.

    >>> import numpy as np
    >>> from harken import rope, rope_table
    >>> cos, sin = rope_table(10, 4)
    >>> q, k = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[4.0, 3.0, 2.0, 1.0]])
    >>> for p in (0, 7):
    ...     print((rope(q, cos, sin, [p + 2]) @ rope(k, cos, sin, [p]).T).round(4))
    [[-3.4564]]
    [[-3.4564]]
    """
    given = dict(locals())
    if any_foreign(given.values()):
        return cast(Array, in_numpy(rope, given))
    x, cos, sin = _floating("x", x), _floating("cos", cos), _floating("sin", sin)
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}: wanted (..., H, L, D), or (L, D) for one head")
    if head_axis not in (-3, -2):
        raise ValueError(f"head_axis is {head_axis!r}: wanted -3 for (..., H, L, D) or -2 for (..., L, H, D)")
    if cos.shape != sin.shape:
        raise ValueError(f"cos has shape {cos.shape}, sin {sin.shape}: both must be (P, R/2) or (..., L, R/2)")
    if cos.ndim < 2:
        raise ValueError(f"cos and sin have shape {cos.shape}: wanted (P, R/2) or (..., L, R/2)")
    half, D = cos.shape[-1], x.shape[-1]
    if 2 * half > D:
        raise ValueError(f"cos and sin have {half} columns and turn {2 * half} channels: x has {D}")
    compute = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    head, row = (-3, -2) if head_axis == -3 else (-2, -3)
    L, batch = x.shape[row if x.ndim > 2 else -2], x.shape[:-3]
    which = _rows(cos.shape, positions, L, batch)
    c, s = (_readable(table[which].astype(compute, copy=False)) for table in (cos, sin))
    if x.ndim > 2:  # against x: an axis for the heads
        c, s = (c[..., None, :, :], s[..., None, :, :]) if head == -3 else (c[..., None, :], s[..., None, :])

    made = place = np.empty(x.shape, x.dtype) if out is None else _checked(out, x)
    if out is not None:
        read = (cos, sin) if _same(made, x) else (x, cos, sin)
        shared = any(np.may_share_memory(made, y, 1) for y in read)  # type: ignore[arg-type]
        if shared or not (out.dtype.isnative and out.flags.aligned):
            place = np.empty(x.shape, x.dtype)  # moved when nothing is read any more
    core._rotate(_readable(x), c, s, place, interleaved)
    if place is not made:
        made[...] = place
    return made


def _readable(x: Array) -> Array:
    return x if x.flags.aligned else x.copy()


def _rows(table: tuple[int, ...], positions: ArrayLike | None, L: int, batch: tuple[int, ...]) -> Any:
    """The index that takes a row of the table for each row of x."""
    if positions is None:
        if len(table) == 2 and table[0] >= L:
            return slice(L)
        if table[-2] != L or not _spreads(table[:-2], batch):
            raise ValueError(
                f"cos and sin have shape {table}: wanted a row for each of the {L} rows of x, {(*batch, L)}"
            )
        return ...
    if len(table) != 2:
        raise ValueError(
            f"positions are given, and cos and sin have shape {table}: wanted (P, R/2), a row for a position"
        )
    p = np.asarray(positions)
    if p.dtype.kind not in "iu" and p.size:
        raise TypeError(f"positions is {p.dtype}: wanted integers")
    if p.ndim < 1 or p.shape[-1] != L or not _spreads(p.shape[:-1], batch):
        raise ValueError(f"positions has shape {p.shape}: wanted one that broadcasts to {(*batch, L)}, (..., L)")
    if p.size and (p.min() < 0 or p.max() >= table[0]):
        wrong = p.min() if p.min() < 0 else p.max()
        raise ValueError(f"positions holds {wrong}: cos and sin have {table[0]} rows, for positions from 0")
    return p.astype(np.intp)


def _spreads(axes: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    """Whether leading axes broadcast to those of x."""
    fits = zip(reversed(axes), reversed(batch), strict=False)
    return len(axes) <= len(batch) and all(n in (1, m) for n, m in fits)


def _checked(out: Array, x: Array) -> Array:
    """The array that the result goes to, if it can."""
    if not isinstance(out, np.ndarray) or isinstance(out, (np.matrix, np.ma.MaskedArray)):
        raise TypeError(f"out is {type(out).__name__}: wanted a NumPy array that the result is written to")
    if out.dtype.newbyteorder("=") != x.dtype:
        raise TypeError(f"out is {out.dtype}, wanted {x.dtype}, the dtype of x")
    if out.shape != x.shape:
        raise ValueError(f"out has shape {out.shape}, wanted {x.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only: wanted an array that can be written to")
    reach = out.itemsize  # from the shortest stride to the longest, an axis must step over all that is before it
    for stride, n in sorted((abs(stride), n) for stride, n in zip(out.strides, out.shape, strict=True) if n > 1):
        if stride < reach and out.size:
            raise ValueError(f"out has strides {out.strides} for shape {out.shape}, so that elements share memory")
        reach += stride * (n - 1)
    return out


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays of one shape and dtype are the same elements in the same places."""
    if one is other:
        return True
    return one.ctypes.data == other.ctypes.data and one.strides == other.strides and one.dtype == other.dtype
