"""What is right: attention in float64, block by block, and how far from it a result lies."""

from __future__ import annotations

import math

import numpy as np
from problems import Array, Problem

# Relative Frobenius error above which a result is wrong; a single row may be ten times as far. Plain float32 lies at
# 6e-7; 16-bit results, some of which round P as well, at 6e-4 (float16) and 5e-3 (bfloat16).
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
COARSER = {"highest": 1, "high": 30, "medium": 3000}  # products of float32 in two terms of bfloat16, in one


def attend64(problem: Problem, q: Array, k: Array, v: Array) -> Array:
    """softmax(Q Kᵀ / √D) V in float64, 512 queries at a time: 32 MiB of scores at 8192 keys."""
    out = np.empty(q.shape)
    for b in range(problem.B):
        for h in range(problem.Hq):
            K, V = (x[b, h // problem.group].astype(np.float64) for x in (k, v))
            for first in range(0, problem.Lq, 512):
                Q = q[b, h, first : first + 512].astype(np.float64)
                positions = np.arange(first, first + len(Q)) + problem.Lk - problem.Lq
                seen = positions[-1] + 1 if problem.causal else problem.Lk
                S = Q @ K[:seen].T / math.sqrt(problem.D)
                if problem.causal:
                    S[np.arange(seen) > positions[:, None]] = -np.inf
                S -= S.max(-1, keepdims=True)
                P = np.exp(S, out=S)
                out[b, h, first : first + 512] = P @ V[:seen] / P.sum(-1, keepdims=True)
    return out


def error(result: Array, truth: Array) -> float:
    """The relative Frobenius distance, |result - truth| / |truth|."""
    return float(np.linalg.norm(result.astype(np.float64) - truth) / np.linalg.norm(truth))


def wrong(result: Array, truth: Array, dtype: str, precision: str = "highest") -> str | None:
    """Why the result is wrong, or None when it is right."""
    most = TOLERANCE[dtype] * (COARSER[precision] if dtype == "float32" else 1)
    if result.shape != truth.shape:
        return f"shape {result.shape} instead of {truth.shape}"
    # A NaN fails both comparisons. The rows are looked at one by one: one bad row of many hardly moves the whole.
    whole = error(result, truth)
    if not whole <= most:
        return f"error {whole:.1e}, at most {most:.0e} is right"
    rows = np.linalg.norm(result.astype(np.float64) - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
    if not rows.max() <= 10 * most:
        return f"error {rows.max():.1e} in one row, at most {10 * most:.0e} is right"
    return None
