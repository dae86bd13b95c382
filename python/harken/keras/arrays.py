"""What harken asks of the arrays that Keras hands over; the rest it leaves to Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harken.keras.calls import LeftToKeras

Array = NDArray[Any]

DTYPES = ("float32", "float16", "bfloat16")  # what Keras' backend numpy computes in; it takes float64 as float32


def known(dtype: str) -> str:
    """The dtype, if harken computes with it."""
    if dtype not in DTYPES:
        raise LeftToKeras(f"dtype {dtype}")
    return dtype


def paired(q: Array, k: Array, v: Array, axes: tuple[int, ...]) -> None:
    """q (..., N, H), k (..., K, H) and v (..., K, V) fit without broadcasting where `axes` are attended over."""
    same = [axis for axis in range(q.ndim - 2) if axis not in axes]
    if (
        not q.ndim == k.ndim == v.ndim >= 4
        or [q.shape[axis] for axis in same] != [k.shape[axis] for axis in same]
        or k.shape[:-1] != v.shape[:-1]
        or q.shape[-1] != k.shape[-1]
        or q.shape[-2] % max(1, k.shape[-2])
    ):
        raise LeftToKeras("shapes that only broadcasting makes fit, or nothing does")
    if 0 in (q.size, k.size, v.size):
        raise LeftToKeras("an axis of size 0")


def spread(name: str, x: Array, scores: tuple[int, ...]) -> Array:
    """The array, if it broadcasts to the scores, with two axes at least."""
    if x.ndim > len(scores) or any(n not in (1, m) for n, m in zip(x.shape[::-1], scores[::-1], strict=False)):
        raise LeftToKeras(f"a {name} that does not broadcast to the scores")
    return np.atleast_2d(x)
