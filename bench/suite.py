"""What the goals ask for, measured: comparisons with the peers, shares of a peak, and harken beside itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import contest
import goals
import machine
import peaks
import timing
from goals import Figure, Goal, NotMeasurable, Values, Wrong
from problems import DTYPES, PROBLEMS, ROWS, Array, Problem
from report import Entry
from rivals import Rival

Case = tuple[str, str, str, str]  # problem, dtype, backend, precision
Told = Callable[[str], None]

PROBLEM = PROBLEMS | ROWS
COMPARED = (goals.PEER, goals.MEAN, goals.TORCH, goals.PEAK, goals.READ)
STORED = "int8"  # what only keys and values are stored as: no peer has it
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "HARKEN_BACKEND": "avx2",
}


class Suite:
    """Measures each comparison once, with the rivals that any of the goals needs, and the rest when it is asked for."""

    def __init__(self, wanted: Sequence[Goal], loaded: Sequence[Rival], threads: int, seconds: float, told: Told):
        self.wanted, self.loaded, self.threads, self.seconds, self.told = wanted, loaded, threads, seconds, told
        self.entries: dict[Case, Entry] = {}
        self.storages: dict[str, list[dict[str, Any]]] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each goal, after the comparisons that any of them needs."""
        self.compare_all()
        for i, goal in enumerate(self.wanted):
            self.told(f"[{i + 1}/{len(self.wanted)}] {goal}")
            meanwhile = machine.Quiet()
            try:
                values: Values | NotMeasurable = self.measure(goal)
            except NotMeasurable as reason:
                values = reason
            compared = [self.entries[case]["others"] for case in self.cases(goal) if case in self.entries]
            yield goals.judge(goal, values, max(compared, default=meanwhile.others()))

    def compare_all(self) -> None:
        """In an order in which a problem's backends follow each other: the float64 result is computed once for them."""
        needed = {case: goal for goal in self.wanted if self.possible(goal) is None for case in self.cases(goal)}
        for i, case in enumerate(ordered := sorted(needed, key=lambda case: (case[1], case))):
            self.told(f"[{i + 1}/{len(ordered)}] {' '.join(case)}")
            with suppress(Wrong):
                self.compare(needed[case], case[0])

    def possible(self, goal: Goal) -> str | None:
        """Why not, if not."""
        import harken

        if goal.dtype not in (*DTYPES, STORED):
            return f"harken does not store {goal.dtype}"
        if goal.backend not in ("", *harken.backends()):
            return f"harken has no backend {goal.backend} here"
        return None

    def cases(self, goal: Goal) -> list[Case]:
        """The comparisons that the goal is judged by; the other figures are taken by themselves."""
        compared = goal.figure in COMPARED and goal.dtype in DTYPES
        return [self.case(goal, name) for name in goal.problems] if compared else []

    def measure(self, goal: Goal) -> Values:
        if reason := self.possible(goal):
            raise NotMeasurable(reason)
        return self.stored(goal) if goal.dtype == STORED else MEASURES[goal.figure](self, goal)

    def over(self, goal: Goal, peers: Sequence[str] = ()) -> Values:
        """How many times as fast as the best of the peers, or of those that are named."""
        values = Values({})
        for name in goal.problems:
            results = self.compare(goal, name)["rivals"]
            timed = {peer: x["ratio"] for peer, x in results.items() if "ratio" in x and peer in (peers or results)}
            if not timed:
                raise NotMeasurable(f"{name}: there is no {' or '.join(peers) or 'peer'} that computes {goal.dtype}")
            best = min(timed, key=timed.__getitem__)
            values.by[name], values.notes[name] = timed[best], best
        return values

    def share(self, goal: Goal) -> Values:
        """How much of its peak each problem reaches, in percent."""
        values = Values({})
        for name in goal.problems:
            entry = self.compare(goal, name)
            if "rate" not in entry["peak"]:
                raise NotMeasurable(f"the peak is unknown: {entry['peak']['reason']}")
            values.by[name] = 100 * entry["rivals"]["harken"]["of_peak"]
            values.notes[""] = f"the peak: {entry['peak']['name']}"
        return values

    def stored(self, goal: Goal) -> Values:
        """Keys and values of int8 with their factors, beside a plain read of them or beside bfloat16."""
        import storage

        values = Values({}, {"": "q is bfloat16"})
        for name in goal.problems:
            if name not in self.storages:
                try:
                    self.storages[name] = storage.measure(PROBLEM[name], 4 * self.seconds, self.threads)
                except SystemExit as wrong:
                    raise Wrong(str(wrong)) from None
            rows = self.storages[name]
            row = next(row for row in rows if row["q"] == "bfloat16" and row["storage"] == STORED)
            over = goal.figure == goals.INT8
            values.by[name] = row["over bfloat16"] if over else 100 * row["GB/s"] / row["read GB/s"]
        return values

    def compare(self, goal: Goal, name: str) -> Entry:
        """The comparison on one problem; if harken is wrong there, that is the end of the goal."""
        case = self.case(goal, name)
        if case not in self.entries:
            sharing = [other for other in self.wanted if case in self.cases(other)]
            alone = all(other.figure in (goals.PEAK, goals.READ) for other in sharing)
            contenders = [rival for rival in self.loaded if rival.name == "harken" or not alone]
            problem = replace(PROBLEM[name], precision=goal.precision)
            with forced(case[2]):
                arguments = contenders, self.threads, self.seconds, lambda text: None
                meanwhile = machine.Quiet()
                entry = contest.compare(problem, goal.dtype, *arguments, best_only=True)
            self.entries[case] = entry | {"backend": case[2], "others": meanwhile.others()}
        entry = self.entries[case]
        if entry["rivals"]["harken"]["status"] != "ok":
            result = entry["rivals"]["harken"]
            raise Wrong(f"{name}: harken is {result['status']}: {result['reason']}")
        return entry

    def case(self, goal: Goal, name: str) -> Case:
        import harken

        return name, goal.dtype, goal.backend or harken.get_backend(), goal.precision

    def held(self, goal: Goal) -> Values:
        """In a process of its own: libraries choose their instructions when they are loaded."""
        if not any(rival.name == "torch" for rival in self.loaded):
            raise NotMeasurable("torch is not installed")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "held.json")
            given = {"problems": ",".join(goal.problems), "rivals": "torch", "dtypes": goal.dtype, "json": file}
            given |= {"threads": self.threads, "seconds": self.seconds}
            run = Path(__file__).with_name("run.py")
            command = [sys.executable, str(run), *(f"--{name}={value}" for name, value in given.items())]
            done = subprocess.run(command, env=os.environ | AVX2, capture_output=True, text=True)
            if done.returncode:
                raise NotMeasurable(f"held to AVX2 it ends with {(done.stderr.splitlines() or ['nothing said'])[-1]}")
            report = json.loads(file.read_text())
        values = Values({}, {"": f"torch {report['versions']['torch']}, harken {report['versions']['harken']}"})
        for entry in report["results"]:
            name, result = entry["problem"]["name"], entry["rivals"]["torch"]
            if "ratio" not in result:
                raise NotMeasurable(f"{name}: torch or harken is not right when held to AVX2")
            values.by[name] = result["ratio"]
        return values

    def call(self, goal: Goal) -> Values:
        import overhead

        calls = overhead.calls()
        text = next(
            text for text in calls if ("out=" in text) == (goal.figure == goals.CALL_OUT) and "attention" in text
        )
        times = overhead.hot({"nothing": calls["nothing"], text: calls[text]}, repeats=40)
        return Values({text: 1e6 * (times[text] - times["nothing"])})

    def cold(self, goal: Goal) -> Values:
        import overhead

        values = Values({}, {"": f"{self.threads} threads"})
        for name in goal.problems:
            timing.settle()
            early, late = overhead.cold(attend(PROBLEM[name], self.threads), repeats=15)
            values.by[name] = 1e3 * (late - early)
        return values

    def threads_over_one(self, goal: Goal) -> Values:
        if machine.cpus() < 2:
            raise NotMeasurable("there is one CPU")
        import harken

        values = Values({})
        for name in goal.problems:
            q, k, v = PROBLEM[name].inputs("float32")
            one, two = (attend(PROBLEM[name], n, (q, k, v)) for n in (1, 2))
            two()
            if timing.measure(two, 1) > 0.5e-3:
                ratio, seconds = beside(one, two, self.seconds)
                values.by |= {name: ratio} if seconds >= 1e-3 else {}
        if not values.by:
            raise NotMeasurable("everything takes less than 1 ms")
        try:
            alone, both = (peaks.multiply_add("float32", n, harken.get_backend()) for n in (1, 2))
        except peaks.Unknown:
            return values
        ratio = beside(alone.call, both.call, self.seconds)[0] * both.amount / alone.amount
        values.notes[""] = f"the machine's own: {alone} {ratio:.3g} x"
        return values

    def causal(self, goal: Goal) -> Values:
        values = Values({})
        for name in goal.problems:
            half = goals.HALVED[name]
            full = replace(half, causal=False)
            calls = attend(full, self.threads), attend(half, self.threads)
            values.by[name] = beside(*calls, self.seconds)[0]
        return values


MEASURES: dict[Figure, Callable[[Suite, Goal], Values]] = {
    goals.PEER: Suite.over,
    goals.MEAN: Suite.over,
    goals.TORCH: partial(Suite.over, peers=("torch",)),
    goals.HELD: Suite.held,
    goals.PEAK: Suite.share,
    goals.READ: Suite.share,
    goals.CALL: Suite.call,
    goals.CALL_OUT: Suite.call,
    goals.COLD: Suite.cold,
    goals.THREADS: Suite.threads_over_one,
    goals.CAUSAL: Suite.causal,
}


def attend(problem: Problem, threads: int, arrays: tuple[Array, Array, Array] | None = None) -> Callable[[], Any]:
    """harken on that problem in float32."""
    import harken

    q, k, v = arrays or problem.inputs("float32")
    return partial(harken.attention, q, k, v, causal=problem.causal, threads=threads)


def beside(one: Callable[[], Any], other: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """How many times as long the one takes as the other, and how long the other takes."""
    rounds = timing.interleave({"one": one, "other": other}, seconds, lambda text: None)
    return timing.ratio(rounds["one"], rounds["other"]), timing.middle(rounds["other"])


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """With that backend of harken's, then with the one before."""
    import harken

    before = harken.get_backend()
    harken.set_backend(backend)
    try:
        yield
    finally:
        harken.set_backend(before)
