"""The rivals: every module of this folder is one, and all look the same to the runner."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Protocol, cast

from problems import Array, Problem

Call = Callable[[], Any]


class Rival(Protocol):
    """What a module of this folder holds."""

    name: str
    dtypes: tuple[str, ...]

    def load(self, threads: int) -> str:
        """Import the library, held to that many threads; return its version. ImportError says that it is missing."""

    def prepare(self, problem: Problem, dtype: str, q: Array, k: Array, v: Array, threads: int) -> Call | None:
        """Put the inputs into the layout that the library likes best; return what is timed: one call that computes
        the whole problem and ends when the result is there. None when the library has no such attention."""

    def to_numpy(self, result: Any) -> Array:
        """What the call returned, as a NumPy array (B, Hq, Lq, D)."""


def everyone() -> dict[str, Rival]:
    """Every rival by name, in the order in which they must be loaded: harken last.

    A process has one libgomp, and it reads its spin count when it is loaded. PyTorch's wheel brings one; harken bounds
    the spin count when it is the one that loads it. Loaded first, harken would change how PyTorch waits; loaded last,
    it finds the libgomp that a user of both has.
    """
    rivals = [cast(Rival, importlib.import_module(f"{__name__}.{m.name}")) for m in pkgutil.iter_modules(__path__)]
    return {rival.name: rival for rival in sorted(rivals, key=lambda rival: (rival.name == "harken", rival.name))}
