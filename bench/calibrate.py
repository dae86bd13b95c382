"""Which form of harken's kernels is the fastest where, and whether harken chooses it: all forced in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from typing import Any

import cliffs
import timing
from problems import Problem

# One point of the JSON: {"dtype", "D", "keys", "rows", "heads", "times": {form: seconds}, "best", "chosen", "loss"}
Point = dict[str, Any]
Told = Callable[[str], None]

KNOWN = ("tiled", "decode", "brief", "matrix")  # asked for where the compiled module has no list of its forms
ROUNDS = 5
SLACK = 0.05  # the share of the fastest form's time that a choice may lose
EQUAL = 1.02  # forms as close as this are equals: a crossover is not between them
WORK = 3e8  # operations of a call at most, as far as fewer heads can do it; 8 heads at most


@dataclass(frozen=True)
class Sizes:
    """Rows are the queries of a head; lengths are those of the search for cliffs."""

    rows: tuple[int, ...]
    keys: tuple[int, ...]
    channels: tuple[int, ...]
    lengths: range


SIZES = Sizes(
    (1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 64, 128, 256),
    (16, 32, 64, 128, 256, 512, 1024, 4096),
    (32, 64, 128),
    range(48, 641, 3),  # every remainder of a register's width
)
QUICK = Sizes((1, 64), (16, 128), (64,), range(48, 112, 8))


def run(sizes: Sizes, dtypes: Sequence[str], seconds: float, report: dict[str, Any], progress: Told) -> None:
    """Measure every point and every sweep, say what was found, and leave it in the report."""
    points: list[Point] = report["points"]
    names = forms()
    print(f"forms: {', '.join(names)}; one thread; times in us; a choice may lose {100 * SLACK:.0f} %\n")
    with timing.no_collection():
        for dtype, D, keys in product(dtypes, sizes.channels, sizes.keys):
            progress(f"{dtype} D {D} keys {keys}")
            for rows in sizes.rows:
                points.append(measure(problem(rows, keys, D), dtype, names, seconds))
                print(line(points[-1]), flush=True)
        print("\nThe fastest form, by rows")
        print("\n".join(crossovers(points)))
        lost = [point for point in points if point["loss"] > SLACK]
        print(
            f"\nharken chooses a form that loses more than {100 * SLACK:.0f} % at {len(lost)} of {len(points)} points"
        )
        print("\n".join(map(line, lost)))
        for dtype, D in product(dtypes, sizes.channels):
            progress(f"cliffs {dtype} D {D}")
            report["cliffs"].append(cliffs.sweep(sizes.lengths, D, dtype, seconds))
            print("\n".join(cliffs.lines(report["cliffs"][-1])), flush=True)


def forms() -> list[str]:
    """The forms that the compiled module can be forced to."""
    from harken._load import core

    if hasattr(core, "_forms"):
        return list(core._forms())
    return [name for name in KNOWN if forcible(name)]


def forcible(name: str) -> bool:
    try:
        with forced(name):
            return True
    except ValueError:
        return False


@contextmanager
def forced(name: str | None) -> Iterator[None]:
    """Calls take that form where it is able; afterwards harken chooses again."""
    from harken._load import core

    core._set_form(name)
    try:
        yield
    finally:
        core._set_form(None)


def problem(rows: int, keys: int, D: int) -> Problem:
    heads = max(1, min(8, int(WORK / (4 * rows * keys * D))))
    return Problem("point", "compute", 1, heads, heads, rows, keys, D)


def measure(problem: Problem, dtype: str, names: Sequence[str], seconds: float) -> Point:
    """The times of every form that computes the problem when it is forced to, and of what harken chooses."""
    import harken

    q, k, v = problem.inputs(dtype)
    explain = partial(harken.explain, q, k, v, threads=1)
    chosen = explain().form
    able = [name for name in names if taken(name, explain) == name]
    if chosen not in able:
        able.append(chosen)
    call = partial(harken.attention, q, k, v, out=q.copy(), threads=1)
    times = in_turns(able, chosen, call, seconds)
    if loss(times, chosen) > SLACK:  # what disturbed the machine once does not do it again
        again = in_turns(able, chosen, call, 2 * seconds)
        times = {name: min(times[name], again[name]) for name in times}
    sizes = {"dtype": dtype, "D": problem.D, "keys": problem.Lk, "rows": problem.Lq, "heads": problem.Hq}
    best = min(times, key=times.__getitem__)
    return {**sizes, "times": times, "best": best, "chosen": chosen, "loss": loss(times, chosen)}


def taken(name: str, explain: Callable[[], Any]) -> str:
    with forced(name):
        return str(explain().form)


def in_turns(able: Sequence[str], chosen: str, call: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Seconds a call in each form: medians of five samples. The chosen form is not forced."""
    times: dict[str, list[float]] = {name: [] for name in able}
    counts: dict[str, int] = {}
    for i in range(ROUNDS):
        for name in [*able[i % len(able) :], *able[: i % len(able)]]:
            with forced(None if name == chosen else name):
                once = timing.measure(call, 1)  # wakes up caches, and says at first how many fill a sample
                if name not in counts:
                    once = min(once, timing.measure(call, 1))
                    counts[name] = max(1, round(seconds / ROUNDS / once))
                times[name].append(timing.measure(call, counts[name]))
    return {name: statistics.median(samples) for name, samples in times.items()}


def loss(times: dict[str, float], chosen: str) -> float:
    return times[chosen] / min(times.values()) - 1


def line(point: Point) -> str:
    """A point in words; what is chosen is in brackets, and the best has a star."""
    text = "{dtype:<9} D {D:>3}  keys {keys:>4}  rows {rows:>3}  x {heads}  ".format(**point)
    for name, seconds in point["times"].items():
        mark = "*" if name == point["best"] else " "
        shown = f"[{name}]" if name == point["chosen"] else f" {name} "
        text += f"{shown:>9} {1e6 * seconds:9.1f}{mark}"
    return text + (f"   loses {100 * point['loss']:.0f} %" if point["loss"] > SLACK else "")


def crossovers(points: Sequence[Point]) -> list[str]:
    """For each type and depth: up to how many rows which form is the fastest, and what harken chooses instead."""
    rows = []
    for (dtype, D), of_depth in groupby(points, lambda point: (point["dtype"], point["D"])):
        said: list[tuple[int, str]] = []
        for keys, line_of in groupby(of_depth, lambda point: point["keys"]):
            row = list(line_of)
            best, chosen = ranges(row, fastest(row)), ranges(row, [point["chosen"] for point in row])
            said.append((keys, f"{best}; harken: {'the same' if best == chosen else chosen}"))
        for text, same in groupby(said, lambda item: item[1]):
            keys = [key for key, _ in same]
            span = f"{keys[0]}" if len(keys) == 1 else f"{keys[0]} to {keys[-1]}"
            rows.append(f"{dtype:<9} D {D:>3}  keys {span:<12}  {text}")
    return rows


def fastest(row: Sequence[Point]) -> list[str]:
    """The form that wins at each point; the one before it still does where they are equals."""
    names: list[str] = []
    for point in row:
        times = point["times"]
        same = names and times.get(names[-1], float("inf")) <= EQUAL * times[point["best"]]
        names.append(names[-1] if same else point["best"])
    return names


def ranges(row: Sequence[Point], names: Sequence[str]) -> str:
    """decode up to 8 rows, tiled from 12."""
    parts = [[point["rows"] for point, _ in same] for _, same in groupby(zip(row, names, strict=True), lambda x: x[1])]
    order = [name for name, _ in groupby(names)]
    if len(parts) == 1:
        return f"{order[0]} always"
    words = [f"{order[0]} up to {parts[0][-1]}"]
    for name, part in zip(order[1:-1], parts[1:-1], strict=True):
        words.append(f"{name} at {part[0]}" + (f" to {part[-1]}" if len(part) > 1 else ""))
    return ", ".join([*words, f"{order[-1]} from {parts[-1][0]}"])
