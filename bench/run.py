"""Attention on the CPU, harken and its rivals: checked against float64, then timed in turns, in one process.

    python bench/run.py                                           all problems, all installed rivals, float32
    python bench/run.py --problems bert128,decode4k --rivals torch,onnxruntime --dtypes float32,bfloat16
    python bench/run.py --threads 1 --seconds 20 --json out.json --chart out.png
    ATEN_CPU_CAPABILITY=avx2 HARKEN_BACKEND=avx2 python bench/run.py --rivals torch,numpy       both held to AVX2
    python bench/run.py --suite goals                             every goal of goals.py: reached, or missed by how much
    python bench/run.py --calibrate [--quick]                     which form of harken's kernels is fastest where

What makes it a comparison:

- A rival is timed on a problem only if its result is right there: `wrong` gets no time.
- Everybody gets the same numbers, in the layout that suits it best, put there before the clock starts; everybody makes
  its result inside the timed call, and has it complete when the call returns.
- Everybody is held to the same number of threads, by its own means, and waits between calls as it does by default.
- The clock of a machine drifts, so rivals take turns, in bursts of samples of 2 ms or one call. Before each burst the
  process is left alone until no thread of it spins any more, then one untimed sample wakes up the one whose turn it is.
- Time: the median of the samples, ± half the distance between their quartiles. Ratio: the median over the rounds of
  the rival's time by harken's in the same round. Error: relative Frobenius distance to the float64 result.
- The peak of a problem is what bounds it, on as many threads, and takes its turn with the rivals: multiply-adds of
  harken's instruction set in the type that it computes in, tile products for 16-bit types where it uses AMX, for
  decoding a plain read of the same keys and values. It is named; who uses other instructions may be above it.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import calibrate
import goals
import machine
import peaks
import problems
import rivals
import suite
import timing
from contest import Progress, compare, load
from report import figure, lines, summarize, summary_lines
from rivals import Rival

SECONDS = {"problems": 5.0, "goals": 1.0, "calibrate": 0.012}


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if options.backend:
        os.environ["HARKEN_BACKEND"] = options.backend
    quiet = machine.Quiet()
    loaded, report = begin(options)

    def save() -> None:
        report["others"] = quiet.others()
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")

    modes = {"problems": measure_problems, "goals": measure_goals, "calibrate": measure_forms}
    modes[options.mode](options, loaded, report, save)
    save()
    print(f"{100 * report['others']:.0f} % of the machine's CPU time went to others during this run")
    if report["others"] > machine.QUIET:
        print("NOT A QUIET MACHINE: do not believe these figures")
    if options.chart and report["summary"]:
        importlib.import_module("chart").draw(options.chart, report)
    return 0


def begin(options: argparse.Namespace) -> tuple[list[Rival], dict[str, Any]]:
    """Everybody who takes part, and where: the head of the report."""
    loaded, versions, missing = load([] if options.mode == "calibrate" else options.rivals, options.threads)
    report: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "environment": machine.environment(),
        "threads": options.threads,
        "seconds": options.seconds,
        "versions": versions,
        "missing": missing,
        "peaks": survey(options.threads),
    }
    print(f"{report['machine']['cpu']}, {options.threads} of {machine.cpus()} CPUs")
    print("\n".join(f"  {name:<12}{version}" for name, version in versions.items()))
    print("".join(f"  {name:<12}not there: {reason}\n" for name, reason in missing.items()), end="")
    for name, peak in report["peaks"].items():
        print(f"  {'peak':<12}{name}  {figure(peak)}")
    print(flush=True)
    return loaded, report


def survey(threads: int) -> dict[str, dict[str, Any]]:
    """The peaks of this machine, beside each other."""
    import harken

    try:
        found = peaks.survey(threads, harken.get_backend())
    except peaks.Unknown as reason:
        return {"is not known": {"reason": str(reason)}}
    rounds = timing.interleave({name: peak.call for name, peak in found.items()}, 0.5, lambda text: None)
    return {name: {"rate": found[name].rate(timing.middle(x)), "unit": found[name].unit} for name, x in rounds.items()}


def measure_problems(options: argparse.Namespace, loaded: Sequence[Rival], report: dict[str, Any], save: Any) -> None:
    report |= {"results": [], "summary": {}}
    known = problems.PROBLEMS | problems.ROWS
    tasks = [(known[name], dtype) for dtype in options.dtypes for name in options.problems]
    for i, (problem, dtype) in enumerate(tasks):
        progress = teller(f"[{i + 1}/{len(tasks)}] {problem.name} {dtype}")
        meanwhile = machine.Quiet()
        entry = compare(problem, dtype, loaded, options.threads, options.seconds, progress)
        report["results"].append(entry | {"others": meanwhile.others()})
        progress("")
        print("\n".join(lines(report["results"][-1])), end="\n\n", flush=True)
        report["summary"] = summarize(report["results"])
        save()
    print("\n".join(summary_lines(report["summary"])))


def measure_goals(options: argparse.Namespace, loaded: Sequence[Rival], report: dict[str, Any], save: Any) -> None:
    measured = suite.Suite(goals.GOALS, loaded, options.threads, options.seconds, tell)
    report |= {"goals": [], "results": []}
    for row in measured.rows():
        report["goals"].append(row)
        report["results"] = list(measured.entries.values())
        print(goals.line(row), flush=True)
        save()
    verdicts = [row["verdict"] for row in report["goals"]]
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts))))


def measure_forms(options: argparse.Namespace, loaded: Sequence[Rival], report: dict[str, Any], save: Any) -> None:
    sizes = calibrate.QUICK if options.quick else calibrate.SIZES
    report |= {"points": [], "cliffs": []}
    calibrate.run(sizes, options.dtypes, options.seconds, report, tell)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    def names(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            if unknown := [x for x in text.split(",") if x not in known]:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
            return text.split(",")

        return parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everyone = list(rivals.everyone())
    known = [*problems.PROBLEMS, *problems.ROWS]
    dtypes = f"{', '.join(problems.DTYPES)}; default: float32, with --calibrate all"
    seconds = ", ".join(f"{mode} {value}" for mode, value in SECONDS.items())
    parser.add_argument("--suite", dest="mode", choices=["goals"], default="problems", help="is each goal reached?")
    parser.add_argument(
        "--calibrate", dest="mode", action="store_const", const="calibrate", help="harken's own choices"
    )
    parser.add_argument("--quick", action="store_true", help="with --calibrate: a few points, to see that it works")
    parser.add_argument(
        "--problems", type=names(known), default=list(problems.PROBLEMS), metavar="A,B", help=", ".join(known)
    )
    parser.add_argument("--rivals", type=names(everyone), default=everyone, metavar="A,B", help=", ".join(everyone))
    parser.add_argument("--dtypes", type=names(problems.DTYPES), metavar="A,B", help=dtypes)
    parser.add_argument("--threads", type=int, default=machine.cpus(), metavar="N", help="default: all (%(default)s)")
    parser.add_argument("--seconds", type=float, metavar="S", help=f"a comparison, about; default: {seconds}")
    parser.add_argument("--backend", metavar="NAME", help="force harken's backend, as HARKEN_BACKEND does")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and all about the machine")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the ratios (.png, .svg, .pdf)")
    options = parser.parse_args(argv)
    if options.chart and options.mode != "problems":
        parser.error("a chart is drawn of problems, not of --suite and --calibrate")
    options.dtypes = options.dtypes or list(problems.DTYPES if options.mode == "calibrate" else problems.DTYPES[:1])
    options.seconds = options.seconds or SECONDS[options.mode]
    options.threads = 1 if options.mode == "calibrate" else options.threads
    return options


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def teller(prefix: str) -> Progress:
    """Progress on stderr: one line that changes on a terminal, else one line for each problem."""
    if sys.stderr.isatty():
        return lambda text: print("\r\033[K" + (text and f"{prefix}: {text}"), end="", file=sys.stderr, flush=True)
    print(prefix, file=sys.stderr, flush=True)
    return lambda text: None


if __name__ == "__main__":
    sys.exit(main())
