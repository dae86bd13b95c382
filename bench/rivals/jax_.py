"""JAX: jax.nn.dot_product_attention, compiled by XLA for the shapes at hand, in its own (B, L, H, D)."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
from problems import Array, Problem

from rivals import Call

name = "jax"
# float16: "F16_F16_F32 is not supported by dot_general on CPU"; float64: its softmax is in float32, the error 1e-7
dtypes = ("float32", "bfloat16")


def load(threads: int) -> str:
    os.environ["NPROC"] = str(threads)  # the size of XLA's CPU thread pool, read when its client is made
    import jax

    jax.config.update("jax_platforms", "cpu")
    return f"{jax.__version__}"


def prepare(problem: Problem, dtype: str, q: Array, k: Array, v: Array, threads: int) -> Call:
    import jax

    attend = jax.jit(partial(jax.nn.dot_product_attention, is_causal=problem.causal))
    arrays = [jax.block_until_ready(jax.numpy.asarray(x.swapaxes(1, 2))) for x in (q, k, v)]
    return lambda: attend(*arrays).block_until_ready()


def to_numpy(result: Any) -> Array:
    return np.asarray(result).swapaxes(1, 2)
