"""What attention_stats costs, in time and in memory, against the same statistics of dense weights in NumPy.

    python bench/stats.py [--lengths 512,2048,8192] [--seconds 10] [--json FILE]

8 heads of 64 channels in float32; the 8 largest weights of each query with their keys, its entropy, the sum of each
key. NumPy takes the weights from the bench's NumPy rival, one head after the other as that does, the largest by
argpartition. Results are compared before anybody is timed. Memory is the most that a call holds in arrays at once, its
results included.
"""

from __future__ import annotations

import argparse
import json
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import timing
from problems import Array, Problem
from report import duration
from rivals import numpy_

import harken

TOP = 8
TOLERANCE = 1e-4  # of a weight of float32, relative, and of what is made of weights

Found = tuple[Array, Array, Array, Array]  # the keys and weights of the largest, entropies, sums


def problem_of(L: int) -> Problem:
    return Problem(f"stats{L}", "compute", 1, 8, 8, L, L, 64)


def streamed(problem: Problem, q: Array, k: Array, threads: int) -> Found:
    found = harken.attention_stats(q, k, top_k=TOP, entropy=True, per_key_mass=True, threads=threads)
    results = found.top_indices, found.top_weights, found.entropy, found.per_key_mass
    return results  # type: ignore[return-value]


def dense(problem: Problem, q: Array, k: Array, threads: int) -> Found:
    heads = [statistics_of(numpy_.softmax(problem, q[0, h], k[0, h], None)) for h in range(problem.Hq)]
    largest, weights, entropy, mass = (np.stack(x)[None] for x in zip(*heads, strict=True))
    return largest, weights, entropy, mass


def statistics_of(P: Array) -> Found:
    """As one writes it in NumPy."""
    largest = np.argpartition(P, -TOP, axis=-1)[..., -TOP:]
    order = np.argsort(-np.take_along_axis(P, largest, axis=-1), axis=-1)
    largest = np.take_along_axis(largest, order, axis=-1)
    entropy = -(P * np.log(np.maximum(P, np.finfo(P.dtype).tiny))).sum(axis=-1)
    return largest, np.take_along_axis(P, largest, axis=-1), entropy, P.sum(axis=-2, dtype=np.float64)


RIVALS: dict[str, Callable[[Problem, Array, Array, int], Found]] = {"harken": streamed, "numpy": dense}


def wrong(problem: Problem, q: Array, k: Array, ours: Found, theirs: Found) -> str | None:
    """Where the two differ, or None. Of nearly equal weights either may come first: what counts is what they are."""
    names = "top_weights", "entropy", "per_key_mass"
    for name, x, y in zip(names, ours[1:], theirs[1:], strict=True):
        if not np.allclose(x, y, rtol=TOLERANCE, atol=0):
            return f"{name} differ by up to {np.abs(x / y - 1).max():.1e}"
    lse = harken.attention(q, k, k, return_lse=True)[1]
    for largest, weights in (ours[:2], theirs[:2]):
        keys = np.take_along_axis(k[..., None, :, :], largest[..., None], axis=-2)
        scores = np.einsum("...d,...nd->...n", q, keys) / np.sqrt(problem.D)
        if not np.allclose(np.exp(scores - lse[..., None]), weights, rtol=TOLERANCE, atol=0):
            return "top_indices are not where top_weights are"
    return None


def memory(call: Callable[[], Any]) -> int:
    """The most bytes that a call holds at once, its results included."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure(L: int, threads: int, seconds: float) -> dict[str, Any]:
    """One length: who is right, how long each takes, how much memory."""
    problem, meanwhile = problem_of(L), machine.Quiet()
    q, k, _ = problem.inputs("float32")
    calls = {name: partial(rival, problem, q, k, threads) for name, rival in RIVALS.items()}
    entry: dict[str, Any] = {"L": L, "H": problem.Hq, "D": problem.D, "top_k": TOP}
    if reason := wrong(problem, q, k, calls["harken"](), calls["numpy"]()):
        return entry | {"status": "wrong", "reason": reason}
    rounds = timing.interleave(calls, seconds, lambda text: None)
    entry |= {"status": "ok", "ratio": timing.ratio(rounds["numpy"], rounds["harken"]), "rivals": {}}
    for name in RIVALS:
        timed = {"seconds": timing.middle(rounds[name]), "spread": timing.spread(rounds[name])}
        entry["rivals"][name] = {**timed, "memory": memory(calls[name]), "samples": rounds[name]}
    return entry | {"others": meanwhile.others()}


def lines(entry: dict[str, Any]) -> list[str]:
    head = f"L {entry['L']}, {entry['H']} heads"
    if entry["status"] != "ok":
        return [head, f"  {entry['status']}: {entry['reason']}"]
    busy = f", not quiet: {100 * entry['others']:.0f} % of the CPU time went to others"
    rows = [head + (busy if entry["others"] > machine.QUIET else "")]
    for name, x in entry["rivals"].items():
        row = f"  {name:<8}{duration(x['seconds'])} ± {100 * x['spread']:2.0f} %   {x['memory'] / 2**20:8.1f} MiB"
        rows.append(row + ("" if name == "harken" else f"   harken is {entry['ratio']:.2f} x as fast"))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="512,2048,8192", metavar="A,B", help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="a length, about; default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=machine.cpus(), metavar="N", help="default: all (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and all about the machine")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "environment": machine.environment(),
        "threads": options.threads,
        "versions": {"numpy": numpy_.load(options.threads), "harken": f"{harken.__version__} {harken.get_backend()}"},
        "results": [],
    }
    for L in map(int, options.lengths.split(",")):
        report["results"].append(measure(L, options.threads, options.seconds))
        print("\n".join(lines(report["results"][-1])), flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(entry["status"] == "ok" for entry in report["results"]) else 1


if __name__ == "__main__":
    sys.exit(main())
