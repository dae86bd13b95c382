"""harken itself, called as its users call it: NumPy arrays in (B, H, L, D) go in, a new NumPy array comes out."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from problems import Array, Problem

from rivals import Call

name = "harken"
dtypes = ("float32", "bfloat16", "float16", "float64")


def load(threads: int) -> str:
    import harken

    harken.set_num_threads(threads)
    return f"{harken.__version__} {harken.info()['cpu']['backend']}"


def prepare(problem: Problem, dtype: str, q: Array, k: Array, v: Array, threads: int) -> Call:
    import harken

    options: dict[str, Any] = {"causal": True} if problem.causal else {}
    if problem.precision != "highest":
        options["precision"] = problem.precision
    return partial(harken.attention, q, k, v, **options)


def to_numpy(result: Array) -> Array:
    return np.asarray(result)
