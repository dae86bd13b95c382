"""The rule of accuracy: harken may err twice as much as plain NumPy does in the same dtype, plus one rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import harken
from harken._load import core

Array = NDArray[Any]

DTYPES = {x.name: x for x in map(np.dtype, ("float64", "float32", "float16", ml_dtypes.bfloat16))}
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@contextmanager
def forced(backend: str) -> Iterator[str]:
    """Inside, every call runs on this backend; after it, harken chooses again."""
    harken.set_backend(backend)
    try:
        yield backend
    finally:
        harken.set_backend(None)


@contextmanager
def in_form(name: str, then: str | None = None) -> Iterator[None]:
    """Inside, every call that is able takes this form of kernel; after it, `then`, or harken chooses again."""
    core._set_form(name)
    try:
        yield
    finally:
        core._set_form(then)


def qkv(
    dtype: Any,
    Lq: int,
    Lk: int,
    D: int = 16,
    Dv: int | None = None,
    Hq: int = 2,
    Hkv: int | None = None,
    batch: tuple[int, ...] = (),
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """Normal q, k and v of shape (*batch, H, L, D), rounded to the dtype."""
    rng = np.random.default_rng((seed, Lq, Lk, D))
    Hkv, Dv = Hq if Hkv is None else Hkv, D if Dv is None else Dv
    shapes = (Hq, Lq, D), (Hkv, Lk, D), (Hkv, Lk, Dv)
    q, k, v = (rng.standard_normal((*batch, *shape)).astype(dtype) for shape in shapes)
    return q, k, v


def poisoned(array: Array, step: int = 1) -> Array:
    """The array as a view into a larger buffer of NaN (True, the least integer); `step`: stride of its last axis."""
    poison: Any = {"b": True, "i": np.iinfo(np.int64).min}.get(array.dtype.kind, np.nan)
    steps = [2] * (array.ndim - 1) + [step] * (array.ndim > 0)
    buffer = np.full([2 + n * s for n, s in zip(array.shape, steps, strict=True)], poison, array.dtype)
    view = buffer[tuple(slice(1, 1 + n * s, s) for n, s in zip(array.shape, steps, strict=True))]
    view[...] = array
    return view


def bits(array: Array) -> Array:
    """The array as bare integers: equal bits are equal, NaN and the sign of zero included."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def same_bits(actual: Array, expected: Array, where: Array | None = None) -> None:
    """Not one bit differs, or none of those that are asked for."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    different = (bits(actual) != bits(expected)) & (True if where is None else where)
    if different.any():
        at = tuple(int(n) for n in np.argwhere(different)[0])
        raise AssertionError(f"{different.sum()} of {different.size} differ, at {at} {actual[at]} and {expected[at]}")


def check(q: Array, k: Array, v: Array, *, weights: bool = True, **options: Any) -> Array:
    """`harken.attention` obeys the rule on these arguments in out, lse and weights; gives out."""
    call = ", ".join([f"{n}={x.dtype}{x.shape}" for n, x in zip("qkv", (q, k, v), strict=True)])
    call += "".join(f", {n}={f'{x.dtype}{x.shape}' if isinstance(x, np.ndarray) else x}" for n, x in options.items())
    asked: dict[str, Any] = {"return_lse": True, "return_weights": True}
    exact = np.longdouble if q.dtype == np.float64 else np.float64  # one step above the input
    truth = harken.reference(q, k, v, **options, **asked, dtype=exact)
    naive = harken.reference(q, k, v, **options, **asked)

    out, lse = harken.attention(q, k, v, **options, return_lse=True)
    # The logits that count are near lse. One rounding of one moves a row by that share of a value; lse and weights take
    # four, of s, m, log l and their sum. This matters where NumPy happens to err by less, as in a row of one key.
    rounding = ulp(lse.dtype, max(1.0, _largest(truth[1])))
    slack = rounding * _largest(v)
    # A matrix engine takes float16 as two bfloat16 terms, and leaves out the product of the second: 2^-17 of a logit.
    lse_slack = 4 * rounding + (2.0**-16 * max(1.0, _largest(truth[1])) if q.dtype == np.float16 else 0)
    close(f"out of {call}", out, naive[0], truth[0], slack)
    close(f"lse of {call}", lse, naive[1], truth[1], lse_slack)
    alone: Array = harken.attention(q, k, v, **options)
    same_bits(alone, out)
    if weights:
        out, lse, weight = harken.attention(q, k, v, **options, **asked)
        close(f"out, asked with weights, of {call}", out, naive[0], truth[0], slack)
        close(f"lse, asked with weights, of {call}", lse, naive[1], truth[1], 4 * rounding)
        close(f"weights of {call}", weight, naive[2], truth[2], 4 * rounding)
        assert not weight[truth[2] == 0].any(), f"weights that are 0 are not in {call}"
    return alone


def close(name: str, actual: Array, naive: Array, truth: Array, slack: float = 0.0) -> None:
    """max|actual - truth| <= 2 max|naive - truth| + 1 ulp of max|truth| + slack, and NaN and Inf in their places."""
    assert isinstance(actual, np.ndarray), f"{name} is a {type(actual).__name__}"
    assert actual.shape == naive.shape, f"{name} has shape {actual.shape}, not {naive.shape}"
    assert actual.dtype == naive.dtype, f"{name} is {actual.dtype}, not {naive.dtype}"
    if truth.size == 0:
        return
    with np.errstate(over="ignore"):
        special = np.where(np.isfinite(truth.astype(actual.dtype)), 0, truth.astype(np.float64))
    wrong = (np.where(np.isfinite(actual), 0, actual).astype(np.float64) != special) & ~(
        np.isnan(actual) & np.isnan(special)
    )
    if wrong.any():
        at = tuple(int(n) for n in np.argwhere(wrong)[0])
        raise AssertionError(f"{name}: at {at} {actual[at]} instead of {truth[at]} ({wrong.sum()} of {wrong.size})")
    usual = np.isfinite(special) & (special == 0)
    exact = np.where(usual, truth, 0)
    error = np.abs(np.where(usual, actual, 0).astype(truth.dtype) - exact)
    usual_error = np.abs(np.where(usual, naive, 0).astype(truth.dtype) - exact).max()
    allowed = 2 * usual_error + ulp(actual.dtype, float(np.abs(exact).max())) + slack
    if error.max() > allowed:
        at = tuple(int(n) for n in np.unravel_index(error.argmax(), error.shape))
        raise AssertionError(
            f"{name}: worst at {at} of {error.shape}: {actual[at]} instead of {truth[at]} (NumPy: {naive[at]}); "
            f"off by {error.max():.3g}, {error.max() / allowed:.3g} times the allowed {allowed:.3g}; "
            f"{(error > allowed).sum()} of {error.size} are off"
        )


def ulp(dtype: Any, x: float) -> float:
    """The distance from x to the next number of the dtype."""
    smallest = {"float16": 2.0**-24}.get(np.dtype(dtype).name, 0.0)
    return max(smallest, EPSILON[np.dtype(dtype).name] * 2.0 ** np.floor(np.log2(x))) if x > 0 else smallest


def _largest(x: Array) -> float:
    """max|x| over what is finite."""
    return float(np.abs(np.where(np.isfinite(x), x, 0)).astype(np.float64).max(initial=0))
