"""A rival of the bench whose result is right, or wrong in the way that a test wants it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

BENCH = Path(__file__).parents[1] / "bench"


class Plain:
    """A rival whose results are right but for what `spoil` does to them."""

    dtypes = ("float32",)

    def __init__(self, spoil: Any = lambda out: out, name: str = "plain") -> None:
        self.spoil, self.name = spoil, name

    def prepare(self, problem: Any, dtype: str, q: Any, k: Any, v: Any, threads: int) -> Any:
        import truth

        return lambda: self.spoil(truth.attend64(problem, q, k, v).astype(np.float32))

    def to_numpy(self, result: Any) -> Any:
        return result
