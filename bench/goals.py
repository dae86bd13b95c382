"""The goals: what harken is to reach beside its peers and beside the limits of the machine, one row each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from machine import QUIET
from problems import PROBLEMS, Problem


@dataclass(frozen=True)
class Figure:
    """What is measured: a number for each problem, of which the worst counts, or the geometric mean."""

    text: str
    unit: str
    at_most: bool = False
    mean: bool = False

    def of(self, values: list[float]) -> float:
        if self.mean:
            return math.exp(sum(map(math.log, values)) / len(values))
        return max(values) if self.at_most else min(values)

    def limit(self, goal: float) -> str:
        return f"{'<=' if self.at_most else '>='} {goal:g} {self.unit}"


PEER = Figure("over the best peer", "x")  # the fastest of those that are installed and right, at the same dtype
MEAN = Figure("over the best peer, geometric mean", "x", mean=True)
TORCH = Figure("over torch", "x")
HELD = Figure("over torch, both held to AVX2", "x")
PEAK = Figure("of the peak of the multiply-adds", "%")
READ = Figure("of a plain read of K and V", "%")
CALL = Figure("a call of (1, 1, 1, 8)", "us", at_most=True)
CALL_OUT = Figure("a call of (1, 1, 1, 8) with out=", "us", at_most=True)
COLD = Figure("a call after 50 ms of idleness, more than a hot one", "ms", at_most=True)
THREADS = Figure("two threads over one, what takes two 1 ms or more", "x")
CAUSAL = Figure("causal over full", "x")
INT8 = Figure("int8 over bfloat16", "x")


@dataclass(frozen=True)
class Goal:
    """The figure, of these problems, is at least or at most that number. Without a backend it is harken's choice."""

    what: str
    figure: Figure
    number: float
    problems: tuple[str, ...] = ()
    dtype: str = "float32"
    backend: str = ""
    precision: str = "highest"

    def __str__(self) -> str:
        return f"{self.what}: {self.figure.text}"


LONG = ("bert512", "whisper", "llama2k", "long8k")
SHORT = ("bert128", "minilm", "vit")
FEW = ("rows1", "rows2", "rows4")

GOALS = (
    #    what                               figure   number problems        dtype       backend   precision
    Goal("float32, L >= 512",               PEER,     1.35, LONG,           "float32",  "avx512"),
    Goal("float32, L >= 512",               PEAK,       80, LONG,           "float32",  "avx512"),
    Goal("float32, L >= 512, AMX",          PEER,      2.3, LONG,           "float32",  "amx"),
    Goal("float32, L >= 512, AMX, high",    TORCH,     4.0, LONG,           "float32",  "amx",    "high"),
    Goal("float32, short",                  PEER,      1.4, SHORT,          "float32",  "avx512"),
    Goal("float32, short, AMX",             PEER,      1.7, SHORT,          "float32",  "amx"),
    Goal("float32, AVX2",                   HELD,      1.2, SHORT + LONG,   "float32",  "avx2"),
    Goal("bfloat16",                        MEAN,      3.0, SHORT + LONG,   "bfloat16"),
    Goal("bfloat16",                        PEER,      2.0, SHORT + LONG,   "bfloat16"),
    Goal("float16, L >= 512",               PEER,      3.0, LONG,           "float16"),
    Goal("float64, L >= 512",               PEAK,       72, LONG,           "float64"),
    Goal("decode float32, rows <= 4",       READ,       85, FEW,            "float32"),
    Goal("decode float32, rows <= 4",       PEER,      2.0, FEW,            "float32"),
    Goal("decode float32, 8 rows",          READ,       70, ("rows8",),     "float32"),
    Goal("decode bfloat16, rows <= 4",      READ,       85, FEW,            "bfloat16"),
    Goal("decode bfloat16, rows <= 4",      PEER,      2.0, FEW,            "bfloat16"),
    Goal("decode bfloat16, 8 rows",         READ,       70, ("rows8",),     "bfloat16"),
    Goal("decode float16, rows <= 4",       READ,       85, FEW,            "float16"),
    Goal("decode float16, rows <= 4",       PEER,      2.0, FEW,            "float16"),
    Goal("decode float16, 8 rows",          READ,       70, ("rows8",),     "float16"),
    Goal("decode int8, rows <= 4",          READ,       80, FEW,            "int8"),
    Goal("decode int8, rows <= 4",          INT8,      1.6, FEW,            "int8"),
    Goal("seed and tiny",                   PEER,      2.0, ("seed", "tiny")),
    Goal("overhead",                        CALL,      0.6),
    Goal("overhead",                        CALL_OUT, 0.35),
    Goal("cold",                            COLD,      0.2, ("seed", "tiny", "bert512", "decode512")),
    Goal("threads",                         THREADS,   1.9, tuple(PROBLEMS)),
    Goal("L = 4096",                        CAUSAL,   1.85, ("causal4096",)),
    Goal("L = 128",                         CAUSAL,    1.5, ("causal128",)),
)  # fmt: skip

HALVED = {
    "causal4096": Problem("causal4096", "compute", 1, 8, 8, 4096, 4096, 64, causal=True),
    "causal128": Problem("causal128", "compute", 8, 12, 12, 128, 128, 64, causal=True),
}


class NotMeasurable(Exception):
    """Why a figure cannot be had on this machine, with this build, with what is installed."""

    verdict = "not measurable here"


class Wrong(NotMeasurable):
    """harken's result is wrong, or there is none: that has no figure, and misses every goal."""

    verdict = "missed"


@dataclass
class Values:
    """The figure of each problem, and what else one should know."""

    by: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)  # of a problem; that of "" is of all


def judge(goal: Goal, values: Values | NotMeasurable, others: float = 0.0) -> dict[str, Any]:
    """The row of a goal in the JSON: reached, missed or not measurable here. NaN reaches nothing."""
    row: dict[str, Any] = {"goal": str(goal), "limit": goal.figure.limit(goal.number), "others": others}
    if isinstance(values, NotMeasurable):
        return row | {"verdict": values.verdict, "reason": str(values)}
    value = goal.figure.of(list(values.by.values()))
    reached = value <= goal.number if goal.figure.at_most else value >= goal.number
    verdict = "reached" if reached else "missed"
    return row | {"verdict": verdict, "value": value, "unit": goal.figure.unit, "by": values.by, "notes": values.notes}


def line(row: dict[str, Any]) -> str:
    """One goal in words: verdict, figure, goal, and the problems it was measured on."""
    indent = " " * 34
    if "value" not in row:
        mark = row["verdict"] if row["verdict"] == "missed" else "-"
        return f"{mark:<8}{'':>9}   {row['limit']:<10}  {row['goal']}\n{indent}{row['verdict']}: {row['reason']}"
    figure = f"{row['value']:.3g} {row['unit']}"
    by = [f"{name} {value:.3g} {row['notes'].get(name, '')}".rstrip() for name, value in row["by"].items()]
    rest = [", ".join(by)] if row["by"] else []
    rest += [row["notes"][""]] if "" in row["notes"] else []
    rest += [f"not quiet: {100 * row['others']:.0f} % of the CPU time went to others"] if row["others"] > QUIET else []
    head = f"{row['verdict']:<8}{figure:>9}   {row['limit']:<10}  {row['goal']}"
    return "\n".join([head, *(f"{indent}{text}" for text in rest)])
