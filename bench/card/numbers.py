"""Numbers as they are stored on a card: bfloat16, which NumPy has not, is its sixteen bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TYPES = ("float64", "float32", "float16", "bfloat16", "int8", "bool", "int64")  # Type of csrc/dtype.hpp, in its order
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def stored(x: Array, type: str) -> Array:
    """The numbers rounded to a type, as its bytes lie in memory."""
    if type != "bfloat16":
        return x.astype(type)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    near = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), near)


def numbers(x: Array, type: str) -> Array:
    """What is stored, as numbers that NumPy knows, every one exact."""
    return x if type != "bfloat16" else (x.astype(np.uint32) << 16).view(np.float32)


def ulp(type: str, x: float) -> float:
    """The distance from x to the next number of the type."""
    smallest = {"float16": 2.0**-24}.get(type, 0.0)
    return max(smallest, EPSILON[type] * 2.0 ** float(np.floor(np.log2(x)))) if x > 0 else smallest


def largest(x: Array) -> float:
    """max|x| over what is finite."""
    return float(np.abs(np.where(np.isfinite(x), x, 0)).astype(np.float64).max(initial=0))


def off(actual: Array, naive: Array, truth: Array, type: str, slack: float = 0.0) -> str | None:
    """The rule of tests/compare.py: |actual - truth| <= 2 max|naive - truth| + 1 ulp of max|truth| + slack; None: kept.

    All three are plain numbers, actual and naive of the type. NaN and Inf must be in their places.
    """
    if truth.size == 0:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = numbers(stored(truth, type), type).astype(np.float64)
        special = np.where(np.isfinite(rounded), 0, truth.astype(np.float64))
        there = np.where(np.isfinite(actual), 0, actual).astype(np.float64)
    wrong = (there != special) & ~(np.isnan(there) & np.isnan(special))
    if wrong.any():
        at = tuple(int(n) for n in np.argwhere(wrong)[0])
        return f"at {at} of {truth.shape} {actual[at]} instead of {truth[at]}, {wrong.sum()} such"
    usual = special == 0
    exact = np.where(usual, truth, 0)
    error, naive_error = (np.abs(np.where(usual, x, 0).astype(truth.dtype) - exact) for x in (actual, naive))
    allowed = 2 * float(naive_error.max()) + ulp(type, float(np.abs(exact).max())) + slack
    if error.max() <= allowed:
        return None
    at = tuple(int(n) for n in np.unravel_index(error.argmax(), error.shape))
    return (
        f"at {at} of {truth.shape} {actual[at]} instead of {truth[at]}: {error.max() / allowed:.3g} times the allowed "
        f"{allowed:.3g}, {(error > allowed).sum()} of {error.size} are off"
    )
