"""`python -m harken bench`: ten seconds of harken against plain NumPy on this machine."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from harken.commands.plain import numpy_attention
from harken.commands.progress import Progress
from harken.commands.timing import medians, spoken


@dataclass(frozen=True)
class Problem:
    """A shape that people run: batch, query heads, key heads, queries, keys, width of a head."""

    name: str
    B: int
    Hq: int
    Hkv: int
    Lq: int
    Lk: int
    D: int
    causal: bool = False

    @property
    def shape(self) -> str:
        heads = str(self.Hq) if self.Hq == self.Hkv else f"{self.Hq}/{self.Hkv}"
        return f"{self.B} x {heads} x {self.Lq} x {self.Lk} x {self.D}{' causal' if self.causal else ''}"

    @property
    def operations(self) -> float:
        """Multiplications and additions of the two products over the visible pairs."""
        pairs = self.Lq * self.Lk - (self.Lq * (self.Lq - 1) / 2 if self.causal else 0)
        return 4.0 * self.B * self.Hq * pairs * self.D

    def arrays(self) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """q, k and v of standard normal numbers, the same in every run."""
        random = np.random.default_rng(0)
        for heads, rows in ((self.Hq, self.Lq), (self.Hkv, self.Lk), (self.Hkv, self.Lk)):
            yield random.standard_normal((self.B, heads, rows, self.D), np.float32)


PROBLEMS = (
    Problem("seed", 1, 1, 1, 10, 10, 512),
    Problem("tiny", 1, 12, 12, 16, 16, 64),
    Problem("bert128", 8, 12, 12, 128, 128, 64),
    Problem("bert512", 1, 12, 12, 512, 512, 64),
    Problem("causal1k", 1, 8, 8, 1024, 1024, 64, causal=True),
    Problem("decode4k", 1, 32, 8, 1, 4096, 128),
)


def add(commands: Any) -> None:
    """Add the sub-command and its arguments."""
    parser = commands.add_parser("bench", help="ten seconds of harken against NumPy", description=__doc__)
    parser.set_defaults(run=run)
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long to measure (default: 10)")
    parser.add_argument("--backend", metavar="NAME", help="the instruction set to use (see info)")


def run(args: argparse.Namespace) -> None:
    """Measure every problem and print the table."""
    import harken

    if not args.seconds > 0:
        raise ValueError(f"--seconds is {args.seconds:g}: give a time above 0")
    if args.backend:
        harken.set_backend(args.backend)
    rows, ratios = [], []
    with Progress("bench", len(PROBLEMS), after=0.0) as progress:
        for problem in PROBLEMS:
            row, ratio = measure(
                problem, args.seconds * 0.8 / len(PROBLEMS)
            )  # the rest goes to checking and warming up
            rows.append(row)
            ratios.append(ratio)
            progress.advance(1)
    machine = f"{harken.get_backend()}, {harken.get_num_threads()} threads, NumPy {np.__version__}"
    print(f"float32, {machine}; shapes are B x H x Lq x Lk x D")
    print_table(("problem", "shape", "harken", "NumPy", "ratio", "GFLOP/s", "error", "NumPy's"), rows)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"NumPy takes {mean:.1f} times harken's time (geometric mean); errors are the largest against float64")


def measure(problem: Problem, seconds: float) -> tuple[tuple[str, ...], float]:
    """The row of a problem, and how many times harken's time NumPy takes."""
    from harken import attention, reference

    q, k, v = problem.arrays()
    calls = (
        partial(attention, q, k, v, causal=problem.causal),
        partial(numpy_attention, q, k, v, 1 / math.sqrt(problem.D), problem.causal),
    )
    exact = reference(q, k, v, causal=problem.causal, dtype=np.float64)
    ours_error, their_error = (float(np.abs(call() - exact).max()) for call in calls)
    ours, theirs = medians(calls, seconds)
    numbers = (
        f"{theirs / ours:.1f}x",
        f"{problem.operations / ours / 1e9:.1f}",
        f"{ours_error:.0e}",
        f"{their_error:.0e}",
    )
    return (problem.name, problem.shape, spoken(ours), spoken(theirs), *numbers), theirs / ours


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            f"{cell:<{w}}" if i < 2 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells))
