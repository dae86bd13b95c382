"""Attention on the CPU, harken and its rivals: checked against float64, then timed in turns, in one process.

    python bench/run.py                                           all problems, all installed rivals, float32
    python bench/run.py --problems bert128,decode4k --rivals torch,onnxruntime --dtypes float32,bfloat16
    python bench/run.py --threads 1 --seconds 20 --json out.json --chart out.png
    ATEN_CPU_CAPABILITY=avx2 HARKEN_BACKEND=avx2 python bench/run.py --rivals torch,numpy       both held to AVX2

What makes it a comparison:

- A rival is timed on a problem only if its result is right there: `wrong` gets no time.
- Everybody gets the same numbers, in the layout that suits it best, put there before the clock starts; everybody makes
  its result inside the timed call, and has it complete when the call returns.
- Everybody is held to the same number of threads, by its own means, and waits between calls as it does by default.
- The clock of a machine drifts, so rivals take turns, in bursts of samples of 2 ms or one call. Before each burst the
  process is left alone until no thread of it spins any more, then one untimed sample wakes up the one whose turn it is.
- Time: the median of the samples, ± half the distance between their quartiles. Ratio: the median over the rounds of
  the rival's time by harken's in the same round. Error: relative Frobenius distance to the float64 result.
- GFLOP/s are 4 B Hq Lq Lk D / t, half for causal problems; GB/s, for decoding, count q, k, v and the result once.
- Hot inputs: each call reads the arrays of the call before it. Those of decode4k and decode8x1k exceed the L2 cache.
- A machine that has other things to do measures these: it is said how much of its time went elsewhere.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import rivals
import timing
import truth
from problems import DTYPES, PROBLEMS, Problem
from report import Entry, lines, summarize, summary_lines
from rivals import Call, Rival

Progress = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if options.backend:
        os.environ["HARKEN_BACKEND"] = options.backend
    quiet = machine.Quiet()
    loaded, versions, missing = load(options.rivals, options.threads)
    report: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "environment": machine.environment(),
        "threads": options.threads,
        "seconds": options.seconds,
        "versions": versions,
        "missing": missing,
        "results": [],
        "summary": {},
    }
    print(f"{report['machine']['cpu']}, {options.threads} of {machine.cpus()} CPUs")
    print("\n".join(f"  {name:<12}{version}" for name, version in versions.items()))
    print("".join(f"  {name:<12}not there: {reason}\n" for name, reason in missing.items()))

    tasks = [(PROBLEMS[name], dtype) for dtype in options.dtypes for name in options.problems]
    for i, (problem, dtype) in enumerate(tasks):
        progress = teller(f"[{i + 1}/{len(tasks)}] {problem.name} {dtype}")
        meanwhile = machine.Quiet()
        entry = compare(problem, dtype, loaded, options.threads, options.seconds, progress)
        report["results"].append(entry | {"others": meanwhile.others()})
        progress("")
        print("\n".join(lines(report["results"][-1])), end="\n\n", flush=True)
        report["summary"] = summarize(report["results"])
        report["others"] = quiet.others()
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(summary_lines(report["summary"])))
    print(f"{100 * report['others']:.0f} % of the machine's CPU time went to others during this run")
    if report["others"] > machine.QUIET:
        print("NOT A QUIET MACHINE: do not believe these figures")
    if options.chart and report["summary"]:
        importlib.import_module("chart").draw(options.chart, report)
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    def names(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            if unknown := [x for x in text.split(",") if x not in known]:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
            return text.split(",")

        return parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everyone = list(rivals.everyone())
    parser.add_argument("--problems", type=names(list(PROBLEMS)), default=list(PROBLEMS), metavar="A,B")
    parser.add_argument("--rivals", type=names(everyone), default=everyone, metavar="A,B", help=", ".join(everyone))
    parser.add_argument("--dtypes", type=names(DTYPES), default=["float32"], metavar="A,B", help=", ".join(DTYPES))
    parser.add_argument("--threads", type=int, default=machine.cpus(), metavar="N", help="default: all (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="a problem, about (%(default)s)")
    parser.add_argument("--backend", metavar="NAME", help="force harken's backend, as HARKEN_BACKEND does")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and all about the machine")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the ratios (.png, .svg, .pdf)")
    return parser.parse_args(argv)


def load(names: Sequence[str], threads: int) -> tuple[list[Rival], dict[str, str], dict[str, str]]:
    """Those of the named rivals, and harken, that are installed; their versions; why the others are not there."""
    loaded, versions, missing = [], {}, {}
    for name, rival in rivals.everyone().items():
        if name in names or name == "harken":
            try:
                versions[name] = rival.load(threads)
                loaded.append(rival)
            except ImportError as reason:
                missing[name] = str(reason)
    return loaded, versions, missing


def compare(
    problem: Problem, dtype: str, contenders: Sequence[Rival], threads: int, seconds: float, progress: Progress
) -> Entry:
    """Check everybody on one problem, then time those who are right."""
    progress("computing in float64")
    q, k, v = problem.inputs(dtype)
    right = truth.attend64(problem, q, k, v)
    results: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    for rival in contenders:
        progress(f"checking {rival.name}")
        if dtype not in rival.dtypes:
            results[rival.name] = {"status": "absent", "reason": f"no {dtype}"}
            continue
        try:
            call = rival.prepare(problem, dtype, q, k, v, threads)
            if call is None:
                results[rival.name] = {"status": "absent", "reason": "no such attention"}
                continue
            result = rival.to_numpy(call())
        except Exception as reason:  # whatever a library throws: it has no time, the others have
            results[rival.name] = {"status": "failed", "reason": f"{type(reason).__name__}: {reason}".splitlines()[0]}
            continue
        if why := truth.wrong(result, right, dtype):
            results[rival.name] = {"status": "wrong", "reason": why}
            continue
        results[rival.name] = {"status": "ok", "error": truth.error(result, right)}
        calls[rival.name] = call

    del right
    rounds = timing.interleave(calls, seconds, progress)
    for name, samples in rounds.items():
        t = timing.middle(samples)
        rates = {"gflops": problem.flops / t / 1e9, "gbytes": problem.bytes(dtype) / t / 1e9}
        results[name] |= {"seconds": t, "spread": timing.spread(samples), **rates, "samples": samples}
        if name != "harken" and "harken" in rounds:
            results[name]["ratio"] = timing.ratio(samples, rounds["harken"])
    ordered = {name: results[name] for name in sorted(results, key=lambda name: name != "harken")}
    return {"problem": asdict(problem), "dtype": dtype, "kind": problem.kind, "rivals": ordered}


def teller(prefix: str) -> Progress:
    """Progress on stderr: one line that changes on a terminal, else one line for each problem."""
    if sys.stderr.isatty():
        return lambda text: print("\r\033[K" + (text and f"{prefix}: {text}"), end="", file=sys.stderr, flush=True)
    print(prefix, file=sys.stderr, flush=True)
    return lambda text: None


if __name__ == "__main__":
    sys.exit(main())
