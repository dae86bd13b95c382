"""Attention over a set of keys from attention over its parts: (m, l, O) is a monoid, and this is its operation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken.foreign import give, is_foreign, view

Array = NDArray[Any]


def merge(parts: Iterable[tuple[ArrayLike, ArrayLike]], *, head_axis: int = -3) -> tuple[Array, Array]:
    """Join attention over disjoint sets of keys into attention over all of them.

    Each part carries the output of the same queries over its own keys, and their log-sum-exp. One part after another is
    added to a state (m, l, O) that starts empty at (-inf, 0, 0)::

        M       = max(m, lse)
        m, l, O = M,  exp(m - M) l + exp(lse - M),  exp(m - M) O + exp(lse - M) out

    and at the end out = O / l and lse = m + log l. The operation is associative and commutative up to rounding, and its
    identity is exact: a part of no keys, (0, -inf), changes no bit. So keys may be cut anywhere: into chunks that fit
    in memory, over threads, devices or machines.

    Parameters
    ----------
    parts : iterable of (out, lse)
        Of equal shapes, out (..., H, L, Dv) and lse (..., H, L), as `attention(..., return_lse=True)` returns them. One
        part at a time is held, so a generator over more keys than fit in memory is fine. Arrays of any library that
        exports DLPack.
    head_axis : int, -3 or -2
        -2 where the outs are (..., L, H, Dv); lse is (..., H, L) in both layouts.

    Returns
    -------
    out : ndarray, or an array of the library that the first out is of
        In the dtype of the outs. Sums are kept in float32, in float64 if out or lse is float64, and rounded once.
    lse : ndarray, or an array of that library
        In the dtype of the lses. A row without keys is (0, -inf).

    Raises
    ------
    ValueError
        No parts at all, or shapes that do not agree.
    TypeError
        A part that is no pair of floating arrays, or outs of different dtypes.

    Notes
    -----
    A sink belongs to the row, not to a key: give `sinks` to exactly one of the parts. A NaN goes through.

    Examples
    --------
    >>> import numpy as np
    >>> from harken import merge, reference
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(5, 8)), rng.normal(size=(100, 8)), rng.normal(size=(100, 3))
    >>> halves = [reference(q, k[j : j + 50], v[j : j + 50], return_lse=True) for j in (0, 50)]
    >>> out, lse = merge(halves)
    >>> np.allclose(out, reference(q, k, v))
    True
    """
    if head_axis not in (-3, -2):
        raise ValueError(f"head_axis is {head_axis!r}: give -3 for outs of (..., H, L, D) or -2 for (..., L, H, D)")
    rows, like = None, None
    with np.errstate(all="ignore"):
        for n, part in enumerate(parts):
            out, lse = _pair(n, part)
            given = out.shape
            if head_axis == -2 and out.ndim > 2:
                out = out.swapaxes(-3, -2)
            if out.ndim < 2 or out.shape[:-1] != lse.shape:
                raise ValueError(
                    f"parts[{n}] has out {given} and lse {lse.shape}: lse must be (..., H, L) where out is "
                    + ("(..., H, L, D)" if head_axis == -3 else "(..., L, H, D)")
                )
            if rows is None:
                like = part[0]
                rows, result, precise = out.shape, out.dtype, lse.dtype
                state = np.float64 if "float64" in (result.name, precise.name) else np.float32
                m = np.full(lse.shape, -np.inf, state)
                l = np.zeros(lse.shape, state)
                O = np.zeros(out.shape, state)
            if out.shape != rows:
                raise ValueError(
                    f"parts[{n}] has out {out.shape}, parts[0] has {rows} (heads first): every part must hold the same "
                    "queries"
                )
            if out.dtype != result or lse.dtype != precise:
                raise TypeError(
                    f"parts[{n}] is {out.dtype} with lse {lse.dtype}, parts[0] is {result} with lse {precise}: convert "
                    "the parts to one dtype"
                )
            lse = lse.astype(state)
            M = np.maximum(m, lse)
            reach = np.where(np.isneginf(M), state(0), M)  # -inf - -inf is NaN, but no keys and no keys are no keys
            a, b = np.exp(m - reach), np.exp(lse - reach)
            m, l, O = M, a * l + b, a[..., None] * O + b[..., None] * out.astype(state)
        if rows is None:
            raise ValueError("parts is empty: give at least one (out, lse) of attention(..., return_lse=True)")
        O = (O / np.where(l == 0, state(1), l)[..., None]).astype(result)
        lse = np.where(l == 0, -np.inf, m + np.log(l)).astype(precise)
    return give(like, O.swapaxes(-3, -2) if head_axis == -2 and O.ndim > 2 else O), give(like, lse)


def _pair(n: int, part: Any) -> tuple[Array, Array]:
    """The two arrays of a part, floating and in native byte order."""
    if isinstance(part, np.ndarray) or is_foreign(part) or not hasattr(part, "__len__") or len(part) != 2:
        raise TypeError(f"parts[{n}] is {type(part).__name__}: give (out, lse) of attention(..., return_lse=True)")
    out, lse = (np.asarray(view(f"{name} of parts[{n}]", x)) for name, x in zip(("out", "lse"), part, strict=True))
    for name, x in (("out", out), ("lse", lse)):
        if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
            raise TypeError(f"{name} of parts[{n}] is {x.dtype}: give floating arrays")
    return out.astype(out.dtype.newbyteorder("="), copy=False), lse.astype(lse.dtype.newbyteorder("="), copy=False)
