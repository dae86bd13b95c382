"""What the kernels of a card are to reach, and whether the figures reach it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

FLASH, CUDNN, EFFICIENT, FA3 = "torch flash", "torch cudnn", "torch efficient", "FlashAttention-3"


@dataclass(frozen=True)
class Goal:
    """The worst figure of a group is at least that number."""

    what: str
    number: float
    group: str
    over: tuple[str, ...] = ()  # rivals, the best of them counts; none: the card's own limits
    causal: bool | None = None
    hopper: bool = False  # of any kernel on a Hopper card; else of kernels that newer cards run, too


GOALS = (
    Goal("portable bfloat16 D=128 over PyTorch's FlashAttention-2", 0.95, "bfloat16 D=128", (FLASH,)),
    Goal("Hopper bfloat16 D=128 over FlashAttention-3 and cuDNN", 0.85, "bfloat16 D=128", (FA3, CUDNN), False, True),
    Goal("Hopper bfloat16 D=128 causal", 0.82, "bfloat16 D=128", (FA3, CUDNN), True, True),
    Goal("Hopper bfloat16 D=64", 0.85, "bfloat16 D=64", (FA3, CUDNN), None, True),
    Goal("Hopper bfloat16 D=256", 0.80, "bfloat16 D=256", (FA3, CUDNN), None, True),
    Goal("decode, of the bandwidth that reading has", 0.85, "decode"),
    Goal("float32 over PyTorch's, at no larger error", 1.5, "float32 D=128", (EFFICIENT,)),
    Goal("NumPy in, NumPy out: of max(copy, compute)", 0.90, "NumPy"),
)  # fmt: skip


class NotMeasurable(Exception):
    """Why a figure cannot be had."""


def ours(entry: dict[str, Any], portable: set[str] | None) -> dict[str, Any]:
    """Harken's best in one entry."""
    rows = {
        name.removeprefix("harken "): row
        for name, row in entry["contenders"].items()
        if name.startswith("harken ") and "ms" in row
    }
    rows = {name: row for name, row in rows.items() if portable is None or name in portable}
    if not rows:
        raise NotMeasurable("no kernel of harken's computes it")
    name = min(rows, key=lambda name: rows[name]["ms"])
    return rows[name] | {"kernel": name}


def figure(goal: Goal, entry: dict[str, Any], facts: dict[str, Any], portable: set[str] | None) -> tuple[float, str]:
    """The number of one entry, and who it is against."""
    row = ours(entry, portable)
    if goal.group == "decode":
        return row["GB/s of keys"] / facts["GB/s"]["read"], row["kernel"]
    if goal.group == "NumPy":
        return row["pageable"]["floor over time"], row["kernel"]
    there = {name: entry["contenders"][name] for name in goal.over if "ms" in entry["contenders"].get(name, {})}
    if not there:
        raise NotMeasurable(f"none of {', '.join(goal.over)} computes it here")
    best = min(there, key=lambda name: there[name]["ms"])
    if goal.group == "float32 D=128" and row["error"] > there[best]["error"]:
        return math.nan, f"{row['kernel']}, whose error is larger than that of {best}"
    return there[best]["ms"] / row["ms"], f"{row['kernel']} over {best}"


def judge(goal: Goal, report: dict[str, Any]) -> dict[str, Any]:
    """The row of a goal: reached, missed or not measurable. NaN reaches nothing."""
    row: dict[str, Any] = {"goal": goal.what, "number": goal.number}
    facts = report.get("probe", {})
    try:
        if goal.hopper and facts.get("capability") != "9.0":
            raise NotMeasurable("the card is no Hopper")
        group = report.get("times", {}).get(goal.group, {"status": "was not asked for"})
        if "entries" not in group:
            raise NotMeasurable(group["status"])
        portable = None if goal.hopper or not goal.over else {
            name for name, kernel in report["kernels"].items() if kernel["newer"]
        }  # fmt: skip
        by = {}
        for entry in group["entries"]:
            problem = entry["problem"]
            if goal.causal in (None, problem["causal"]):
                name = f"B={problem['B']} L={problem['Lk']}" + " causal" * problem["causal"]
                by[name] = figure(goal, entry, facts, portable)
        if not by:
            raise NotMeasurable("nothing of it was measured")
    except NotMeasurable as error:
        return row | {"verdict": "not measurable", "reason": str(error)}
    values = [value for value, _ in by.values()]
    worst = math.nan if any(map(math.isnan, values)) else min(values)
    verdict = "reached" if worst >= goal.number else "missed"
    return row | {"verdict": verdict, "value": worst, "by": {name: f"{x:.3g} {who}" for name, (x, who) in by.items()}}


def lines(report: dict[str, Any]) -> list[str]:
    """The table."""
    found = []
    for row in report["goals"]:
        value = f"{row['value']:.3g}" if "value" in row else "-"
        found.append(f"{row['verdict']:<15}{value:>7}  >= {row['number']:<5} {row['goal']}")
        rest = ", ".join(f"{name}: {text}" for name, text in row["by"].items()) if "by" in row else row["reason"]
        found.append(f"{'':32}{rest}")
    return found
