"""What a call of attention would do, and why, without doing it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Unpack

from numpy.typing import ArrayLike

from harken._load import core
from harken.attention import Options, attention

P = ParamSpec("P")


@dataclass(frozen=True)
class Plan:
    """How one call of `attention` is cut into work; what `explain` returns. `print` it.

    Tasks are batches x heads x tiles x ranges: a tile of queries meets a range of keys, block by block. The cut depends
    on the shapes and on the backend, never on the number of threads, so results do not either.
    """

    backend: str
    """The instruction set that computes."""
    form: str
    """"tiled": many queries at once meet blocks of keys; "brief": few keys, all of a query at once; "decode": few
    queries, every key is read once; "matrix": many queries and a matrix engine."""
    dtype: str
    """Of q and the result."""
    storage: tuple[str, str]
    """Dtypes of k and v."""
    computed_in: str
    """What scores and sums are kept in."""
    precision: str
    """Of the products, as it is computed."""
    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    batches: int
    """The product of the leading axes."""
    heads: int
    """In decode, the query heads that share a key head count as one."""
    tiles: int
    """Query tiles in a head."""
    tile_rows: int
    """Queries in a tile."""
    ranges: int
    """Parts that the keys of a tile are cut into, merged at the end."""
    range_keys: int
    """Keys in a range."""
    key_block: int
    """Keys that are handled at once."""
    tasks: int
    """What can run at the same time: batches x heads x tiles x ranges."""
    threads: int
    scratch_bytes: int
    """What one thread works in."""
    partial_bytes: int
    """Where ranges wait to be merged."""
    converted: tuple[str, ...]
    """Arguments that are copied first: to float64 or native byte order; out, if it cannot be written in place."""
    why_backend: str
    why_form: str
    why_ranges: str
    why_threads: str
    why_precision: str

    @property
    def workspace_bytes(self) -> int:
        """All memory beside the arrays that go in and come out."""
        return self.threads * self.scratch_bytes + self.partial_bytes

    def __str__(self) -> str:
        def memory(size: int) -> str:
            return f"{size / 1024:.4g} KiB" if size < 1 << 20 else f"{size / (1 << 20):.4g} MiB"

        cut = f"{self.tiles} x {self.tile_rows} queries, {self.ranges} x {self.range_keys} keys"
        tasks = f"{self.batches} batches x {self.heads} heads x {self.tiles} tiles x {self.ranges} ranges"
        space = f"{self.threads} x {memory(self.scratch_bytes)} + {memory(self.partial_bytes)}"
        types = [f"{name} {type}" for name, type in zip("kv", self.storage, strict=True) if type != self.dtype]
        copies = "converted first, or last" if self.converted else "everything is read and written in place"
        rows = [
            ("arrays", f"q {self.q}  k {self.k}  v {self.v}", ", ".join([self.dtype, *types])),
            ("backend", self.backend, self.why_backend),
            ("form", self.form, self.why_form),
            ("a head", cut, f"keys in blocks of {self.key_block}; {self.why_ranges}"),
            ("tasks", str(self.tasks), tasks),
            ("threads", str(self.threads), self.why_threads),
            ("precision", f"{self.precision}, in {self.computed_in}", self.why_precision),
            ("workspace", memory(self.workspace_bytes), space),
            ("copies", ", ".join(self.converted) or "none", copies),
        ]
        width = max(len(what) for _, what, _ in rows[1:])
        return "\n".join(f"{name:<10} {what:<{width}}  {why}" for name, what, why in rows)


def _like_attention(function: Callable[P, Plan]) -> Callable[P, Plan]:
    """Give the function the parameters of `attention`, which stand there alone."""
    vars(function)["__signature__"] = inspect.signature(attention).replace(return_annotation="Plan")
    return function


@core.native
@_like_attention
def explain(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    return_lse: bool = False,
    return_weights: bool = False,
    **options: Unpack[Options],
) -> Plan:
    """Say how `harken.attention` would compute the same arguments, without computing.

    Everything is checked as in the call itself, no result is allocated, nothing is written.

    Parameters
    ----------
    q, k, v : array_like
        As in `harken.attention`, and so are all the others.

    Returns
    -------
    Plan
        Backend, form, tiles, key ranges, tasks, threads, memory, and why. `print` shows it as a table.

    Raises
    ------
    TypeError, ValueError
        What the call would raise.

    Examples
    --------
    >>> import numpy as np
    >>> import harken
    >>> q = np.ones((8, 1000, 64), np.float32)
    >>> plan = harken.explain(q, q, q, causal=True)
    >>> plan.dtype, plan.computed_in
    ('float32', 'float32')
    >>> plan.tasks == plan.batches * plan.heads * plan.tiles * plan.ranges
    True
    >>> print(plan)  # doctest: +ELLIPSIS
    arrays     q (8, 1000, 64)  k (8, 1000, 64)  v (8, 1000, 64)  float32
    backend ...
    """
    raise AssertionError("the body is csrc/python/explain.cpp")
