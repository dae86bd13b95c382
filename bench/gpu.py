"""Checks and times the kernels of a card: python bench/gpu.py, in stages, at most eight minutes.

    python bench/gpu.py [--record] [--stages probe,check,sanitize,times] [--kernels simple] [--small] [--minutes 8]

It needs a built python/harken/cuda/libharken_cuda.so (or HARKEN_CUDA_LIBRARY), NumPy, and for times a PyTorch with the
card; not harken's compiled module: the library may come from another machine and meet another Python (3.10 or newer).
Every stage is a process of its own with a time limit. After each, what is known stands in bench/results/gpu-CARD.json.
--record enters the kernels that passed every case and the sanitizer into python/harken/cuda/checked.json.
Exit status: 0; 1 if a kernel is wrong; 2 without a card.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from card import goals
from card.device import Card, interface
from card.times import GROUPS

HERE = Path(__file__).resolve()
STAGES = ("probe", "check", "sanitize", "times")
TOOLS = ("memcheck", "racecheck", "synccheck")
SECONDS = {"probe": 60, "check": 150, "sanitize": 60, "times": 60}  # of one process


def child(wanted: dict[str, Any], answer: Path) -> None:
    """One stage; what it knows goes to a file that is complete whenever it is looked at."""
    card = Card()

    def tell(found: Any) -> None:
        partial = answer.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.replace(answer)

    if wanted["stage"] == "probe":
        from card.probe import probe

        tell(probe(card))
    elif wanted["stage"] in ("check", "sanitize"):
        from card.check import check_all

        check_all(card, wanted["kernel"], wanted["small"], tell)
    else:
        from card.times import times

        times(card, wanted["group"], wanted["kernels"], wanted["facts"], tell)


class Run:
    """The report as it grows."""

    def __init__(self, options: argparse.Namespace, card: Card) -> None:
        self.options, self.begun = options, time.monotonic()
        facts = card.interface.kernels()
        self.report: dict[str, Any] = {
            "card": card.facts.name.decode(),
            "capability": card.capability,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "kernels": {
                kernel.name.decode(): {"source": kernel.source.decode(), "newer": bool(kernel.newer)}
                for kernel in facts
            },
        }
        slug = re.sub(r"[^a-z0-9]+", "-", self.report["card"].lower()).strip("-")
        self.path: Path = options.results / f"gpu-{slug}.json"
        self.kernels = [name for name in self.report["kernels"] if not options.kernels or name in options.kernels]

    def write(self) -> None:
        self.report["goals"] = [goals.judge(goal, self.report) for goal in goals.GOALS]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.report, indent=1) + "\n")

    def stage(self, wanted: dict[str, Any], before: tuple[str, ...] = ()) -> dict[str, Any]:
        """What a process of its own answers. `before` is what its command begins with."""
        left = self.options.minutes * 60 - (time.monotonic() - self.begun)
        limit = min(SECONDS[wanted["stage"]], left)
        if limit < 5:
            return {"status": "not begun: the time is over"}
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.json"
            command = [*before, sys.executable, str(HERE), "--child", json.dumps(wanted), "--answer", str(answer)]
            words = ""
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
                if done.returncode != 0:
                    words = f"ended with {done.returncode}: {(done.stderr + done.stdout)[-600:]}"
            except subprocess.TimeoutExpired:
                words = f"did not end in {limit:.0f} s"
            found: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
        return found | {"status": "failed", "words": words} if words else found

    def check(self) -> None:
        for kernel in self.kernels:
            found = self.stage({"stage": "check", "kernel": kernel, "small": self.options.small})
            self.report["kernels"][kernel]["check"] = found
            self.tell(f"check {kernel}", f"{found['status']}, {found.get('taken', 0)} of {found.get('cases', 0)} cases")
            for failed in found.get("failed", [])[:5]:
                print(f"    {failed['case']}: {failed['words']}")
            if "words" in found:
                print(f"    {found['words']}")

    def sanitize(self) -> None:
        tool = shutil.which("compute-sanitizer")
        for kernel in self.kernels:
            verdicts = self.report["kernels"][kernel]["sanitizer"] = {}
            for name in TOOLS:
                if tool is None:
                    verdicts[name] = {"status": "compute-sanitizer is not found"}
                else:
                    before = (tool, "--tool", name, "--error-exitcode", "9")
                    verdicts[name] = self.stage({"stage": "sanitize", "kernel": kernel, "small": True}, before)
                self.tell(f"{name} {kernel}", verdicts[name]["status"] + ": " * ("words" in verdicts[name])
                          + verdicts[name].get("words", ""))  # fmt: skip

    def probe(self) -> None:
        self.report["probe"] = self.stage({"stage": "probe"})
        facts = self.report["probe"]
        self.tell("probe", json.dumps({n: x for n, x in facts.items() if n in ("torch", "GB/s", "words")}))

    def times(self) -> None:
        facts = self.report.get("probe", {})
        right = [n for n in self.kernels if self.report["kernels"][n].get("check", {}).get("status") == "passed"]
        self.report["times"] = {}
        for group in GROUPS:
            if "GB/s" not in facts:
                found: dict[str, Any] = {"status": str(facts.get("torch", facts.get("words", "there was no probe")))}
            else:
                wanted = {"stage": "times", "group": group, "kernels": right, "facts": facts}
                found = self.stage(wanted)
            self.report["times"][group] = found
            self.tell(f"times {group}", found["status"])
            for entry in found.get("entries", []):
                print("\n".join(table(entry, facts["GB/s"]["read"])))

    def tell(self, what: str, words: str) -> None:
        """One line, and the file as it is now."""
        print(f"{time.monotonic() - self.begun:5.0f} s  {what}: {words}", flush=True)
        self.write()

    def record(self, path: Path) -> None:
        """Kernels that passed everything replace what was known of them on such a card."""
        records = json.loads(path.read_text("utf-8"))
        capability, system = self.report["capability"], self.report.get("probe", {}).get("system", {})
        for name in self.kernels:
            kernel = self.report["kernels"][name]
            why = unproven(kernel, self.options.small)
            if why is not None:
                print(f"{name} is not recorded: {why}")
                continue
            records = [r for r in records if (r["kernel"], r["capability"]) != (name, capability)]
            records.append({
                "kernel": name, "source": kernel["source"], "card": self.report["card"], "capability": capability,
                "driver": system.get("driver_version", "unknown"), "date": self.report["date"],
            })  # fmt: skip
            print(f"{name} is recorded")
        path.write_text(json.dumps(records, indent=1) + "\n", "utf-8")


def unproven(kernel: dict[str, Any], small: bool) -> str | None:
    """Why a kernel cannot be recorded; None: it can."""
    if small:
        return "the small grid proves nothing"
    if kernel.get("check", {}).get("status") != "passed":
        return f"its check {kernel.get('check', {}).get('status', 'was not run')}"
    for tool in TOOLS:
        status = kernel.get("sanitizer", {}).get(tool, {}).get("status", "was not run")
        if status != "passed":
            return f"{tool} {status}"
    return None


def table(entry: dict[str, Any], read: float) -> list[str]:
    """Times of one problem: milliseconds, TFLOP/s, the ratio to the best, and the relative error. Where queries are few
    GB/s of keys and values, and of what the card reads (`read` GB/s) the share, count instead of TFLOP/s."""
    p = entry["problem"]
    head = (
        f"    {p['type']} B={p['B']} H={p['Hq']}:{p['Hkv']} L={p['Lq']}:{p['Lk']} D={p['D']}"
        + " causal" * p["causal"]
        + f" {p['precision']}" * (p["precision"] != "highest")
    )
    timed = {name: row for name, row in entry["contenders"].items() if "ms" in row}
    best = min((row["ms"] for row in timed.values()), default=1.0)

    def rate(row: dict[str, Any]) -> str:
        if p["Lq"] * p["Hq"] > 64 * p["Hkv"]:
            return f"{row['TFLOP/s']:7.1f} TFLOP/s"
        return f"{row['GB/s of keys']:7.0f} GB/s, {row['GB/s of keys'] / read:.0%} of reading"

    rows = [
        f"{name:>24} {row['ms']:9.3f} ms {rate(row)}  {best / row['ms']:.3f}  error {row['error']:.1e}"
        for name, row in sorted(timed.items(), key=lambda item: item[1]["ms"])
    ]
    rest = [f"{name:>24} {row['status']}" for name, row in entry["contenders"].items() if "ms" not in row]
    return [head, *rows, *rest]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--stages", type=names, default=list(STAGES), help="of " + ",".join(STAGES))
    parser.add_argument("--kernels", type=names, help="these only")
    parser.add_argument("--small", action="store_true", help="few and little cases, which are not recorded")
    parser.add_argument("--minutes", type=float, default=8.0, help="at most, 8 unless given")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results", help="the folder of the JSON")
    checked = HERE.parents[1] / "python" / "harken" / "cuda" / "checked.json"
    parser.add_argument("--record", type=Path, nargs="?", const=checked, help="enter what passed into checked.json")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"--stages names {', '.join(sorted(unknown))}: wanted some of {', '.join(STAGES)}")
    try:
        if options.child is not None:
            child(options.child, options.answer)
            return 0
        card = Card()
    except (RuntimeError, interface.Absent) as error:
        print(f"there is no card to measure on: {error}", file=sys.stderr)
        return 2
    run = Run(options, card)
    print(f"{run.report['card']}, compute capability {run.report['capability']}: {', '.join(run.kernels)}")
    stages: dict[str, Callable[[], None]] = {name: getattr(run, name) for name in STAGES}
    for name in STAGES:
        if name in options.stages:
            stages[name]()
    run.write()
    print("\n".join(goals.lines(run.report)))
    print(f"all of it: {os.path.relpath(run.path)}")
    if options.record is not None:
        run.record(options.record)
    wrong = any(row.get("check", {}).get("status") == "failed" for row in run.report["kernels"].values())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
