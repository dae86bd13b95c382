"""Cliffs: lengths at which harken is slower, for each score, than at the lengths around them or just before them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import timing
from problems import Problem

HEADS = 4
ROUNDS = 5
REACH = 3  # neighbours on each side
SLACK = 0.10


def sweep(lengths: Sequence[int], D: int, dtype: str, seconds: float) -> dict[str, Any]:
    """GFLOP/s at each length, one thread, and the cliffs; what looks like one is measured twice."""
    problems = [Problem("length", "compute", 1, HEADS, HEADS, L, L, D) for L in lengths]
    calls = [attend(problem, dtype) for problem in problems]
    each = seconds / ROUNDS / 4
    times = in_turns(calls, each)
    if cliffs(scores(times, lengths)):
        times = [min(pair) for pair in zip(times, in_turns(calls, each), strict=True)]
    rates = [problem.flops / t / 1e9 for problem, t in zip(problems, times, strict=True)]
    slower = cliffs(scores(times, lengths))
    found = [{"L": lengths[i], "gflops": rates[i], "slower": slower[i]} for i in slower]
    return {"dtype": dtype, "D": D, "lengths": list(lengths), "seconds": times, "gflops": rates, "found": found}


def attend(problem: Problem, dtype: str) -> Callable[[], Any]:
    import harken

    q, k, v = problem.inputs(dtype)
    return partial(harken.attention, q, k, v, out=q.copy(), threads=1)


def in_turns(calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Seconds of each call: all lengths in each round, so that a drift of the clock is the same for neighbours."""
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, samples, strict=True):
            once = timing.measure(call, 1)
            times.append(timing.measure(call, max(1, round(seconds / once))))
    return [statistics.median(times) for times in samples]


def scores(times: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """Seconds a score."""
    return [t / L**2 for t, L in zip(times, lengths, strict=True)]


def cliffs(each: Sequence[float]) -> dict[int, float]:
    """Where a score takes 10 % more than between its neighbours, or than before: the index, and how much more.

    Between: the median of the means of the neighbours on both sides, one, two and three steps away. Before: the median
    of the last three; scores get cheaper with the length, so that a step upwards is a cliff though it is no peak.
    """
    found = {}
    for i, own in enumerate(each):
        pairs = [(each[i - n] + each[i + n]) / 2 for n in range(1, REACH + 1) if n <= i < len(each) - n]
        trends = [statistics.median(pairs)] if pairs else []
        trends += [statistics.median(each[i - REACH : i])] if i >= REACH else []
        if trends and own > (1 + SLACK) * min(trends):
            found[i] = own / min(trends) - 1
    return found


def lines(made: dict[str, Any]) -> list[str]:
    """The sweep in words: where it begins and ends, and every cliff; neighbours are one."""
    rates, lengths = made["gflops"], made["lengths"]
    head = f"L {lengths[0]} to {lengths[-1]}: {rates[0]:.0f} to {rates[-1]:.0f} GFLOP/s"
    rows = [f"{made['dtype']:<9} D {made['D']:>3}  {head}, {len(made['found']) or 'no'} points below their trend"]
    places = [(lengths.index(cliff["L"]), cliff) for cliff in made["found"]]
    for _, group in groupby(enumerate(places), lambda x: x[1][0] - x[0]):
        side = [cliff for _, (_, cliff) in group]
        worst = max(side, key=lambda cliff: cliff["slower"])
        where = f"{side[0]['L']}" if len(side) == 1 else f"{side[0]['L']} to {side[-1]['L']}"
        rows.append(f"    cliff at L {where}: {worst['gflops']:.0f} GFLOP/s, {100 * worst['slower']:.0f} % slower")
    return rows
