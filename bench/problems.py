"""The named problems: the shapes that attention is used at, with what each must compute and must read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """B batches of Hq query heads over Hkv key heads; Lq queries and Lk keys of D channels a head."""

    name: str
    kind: str  # compute: bound by arithmetic; stream: by reading the keys and values once; latency: by the call itself
    B: int
    Hq: int
    Hkv: int
    Lq: int
    Lk: int
    D: int
    causal: bool = False
    precision: str = "highest"  # what harken may round the products to; its peers compute as they do

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.Hq // self.Hkv

    @property
    def flops(self) -> float:
        """Q Kᵀ and P V, 2 operations a multiply-add; a causal problem is counted as half, its diagonal included."""
        return 4.0 * self.B * self.Hq * self.Lq * self.Lk * self.D * (0.5 if self.causal else 1.0)

    def bytes(self, dtype: str) -> int:
        """Q and O, K and V: each element read or written once."""
        rows = 2 * self.B * self.Hq * self.Lq + 2 * self.B * self.Hkv * self.Lk
        return rows * self.D * element(dtype).itemsize

    def inputs(self, dtype: str) -> tuple[Array, Array, Array]:
        """Normally distributed q, k, v in (B, H, L, D), the same on every run; logits have a deviation of 1."""
        rng = np.random.default_rng(2026)
        heads = ((self.Hq, self.Lq), (self.Hkv, self.Lk), (self.Hkv, self.Lk))
        q, k, v = (rng.standard_normal((self.B, H, L, self.D), np.float32).astype(element(dtype)) for H, L in heads)
        return q, k, v


def element(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; bfloat16 comes from ml_dtypes."""
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    return np.dtype(dtype)


DTYPES = ("float32", "bfloat16", "float16", "float64")

PROBLEMS = {
    problem.name: problem
    for problem in (
        #                             B  Hq Hkv   Lq    Lk    D
        Problem("seed", "latency",    1,  1,  1,   10,   10, 512),
        Problem("tiny", "latency",    1, 12, 12,   16,   16,  64),
        Problem("bert128", "compute", 8, 12, 12,  128,  128,  64),
        Problem("minilm", "compute", 32, 12, 12,  128,  128,  32),
        Problem("vit", "compute",     8, 12, 12,  197,  197,  64),
        Problem("bert512", "compute", 1, 12, 12,  512,  512,  64),
        Problem("whisper", "compute", 1,  8,  8, 1500, 1500,  64),
        Problem("llama2k", "compute", 1, 32,  8, 2048, 2048, 128, causal=True),
        Problem("long8k", "compute",  1,  8,  8, 8192, 8192,  64, causal=True),
        Problem("decode4k", "stream", 1, 32,  8,    1, 4096, 128),
        Problem("decode8x1k", "stream", 8, 32, 8,   1, 1024, 128),
        Problem("decode512", "stream", 1, 12, 12,   1,  512,  64),
    )
}  # fmt: skip

# Decoding with 1 to 8 rows, queries x heads of a group, that share the keys: 34 MB of them in float32.
ROWS = {
    problem.name: problem
    for problem in (Problem(f"rows{rows}", "stream", 1, 8 * rows, 8, 1, 4096, 128) for rows in (1, 2, 4, 8))
}
