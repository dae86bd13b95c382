"""Decoding from keys and values of each storage type: times, bytes read a second, and a plain read of the same bytes.

    python bench/storage.py [--seconds S] [--threads N] [--json FILE]

32 query heads on 8 key heads of 128 channels and 4096 keys, one new query, so that 4 rows share each key; the same with
one row a key; and with 4 queries, 16 rows. Every result is checked against float64 before it is timed, and all take
turns. int8 comes from `harken.quantize`, a factor a token.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import peaks
import timing
from problems import Array, Problem, element
from truth import attend64, error

import harken

PROBLEMS = (
    Problem("1 row", "stream", 1, 8, 8, 1, 4096, 128),
    Problem("4 rows", "stream", 1, 32, 8, 1, 4096, 128),
    Problem("16 rows", "stream", 1, 32, 8, 4, 4096, 128),
)
QUERIES = ("float32", "bfloat16")
STORAGE = ("float32", "float16", "bfloat16", "int8")
MOST = {"float32": 1e-5, "bfloat16": 2e-2}  # relative error to float64 over the very numbers that are stored


def stored(x: Array, name: str) -> tuple[Array, Array | None]:
    return harken.quantize(x) if name == "int8" else (x.astype(element(name)), None)


def measure(problem: Problem, seconds: float, threads: int) -> list[dict[str, Any]]:
    """A row for each type of q and each of k and v."""
    q, k, v = problem.inputs("float32")
    calls: dict[str, timing.Call] = {}
    plain: dict[str, peaks.Peak] = {}
    rows: list[dict[str, Any]] = []
    for name in STORAGE:
        (K, k_scale), (V, v_scale) = stored(k, name), stored(v, name)
        exact = [x.astype(np.float64) * (1 if s is None else s) for x, s in ((K, k_scale), (V, v_scale))]
        plain[name] = peaks.stream(K, V, threads, harken.get_backend(), f"a plain read of {name}")
        calls[f"read {name}"] = plain[name].call
        for of_q in QUERIES:
            Q = q.astype(element(of_q))
            call = partial(harken.attention, Q, K, V, k_scale=k_scale, v_scale=v_scale, threads=threads)
            far = error(call(), attend64(problem, Q.astype(np.float64), *exact))
            if not far <= MOST[of_q]:
                raise SystemExit(
                    f"{problem.name}, {of_q} over {name}: error {far:.1e}, at most {MOST[of_q]:.0e} is right"
                )
            calls[f"{of_q} {name}"] = call
            scales = sum(0 if s is None else s.nbytes for s in (k_scale, v_scale))
            rows.append({"problem": problem.name, "q": of_q, "storage": name, "bytes": K.nbytes + V.nbytes + scales,
                         "error": far, "form": harken.explain(*call.args, **call.keywords).form})  # fmt: skip
    rounds = timing.interleave(calls, seconds, lambda _: None)
    for row in rows:
        own = rounds[f"{row['q']} {row['storage']}"]
        row["seconds"] = timing.middle(own)
        row["samples"] = own
        row["GB/s"] = row["bytes"] / row["seconds"] / 1e9
        row["read GB/s"] = plain[row["storage"]].rate(timing.middle(rounds[f"read {row['storage']}"]))
        row["over bfloat16"] = timing.ratio(rounds[f"{row['q']} bfloat16"], own)
        row["over float32"] = timing.ratio(rounds[f"{row['q']} float32"], own)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=15.0, metavar="S", help="for each problem (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=harken.get_num_threads(), metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured")
    asked = parser.parse_args()

    started = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    print(f"harken {harken.__version__} {harken.get_backend()}, {asked.threads} threads")
    print("| rows a key | q | k, v | time | GB/s | of a plain read | over bfloat16 | over float32 | error |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    results = []
    for problem in PROBLEMS:
        for row in measure(problem, asked.seconds, asked.threads):
            results.append(row)
            share = row["GB/s"] / row["read GB/s"]
            cells = [row["problem"], row["q"], row["storage"], f"{1e6 * row['seconds']:.0f} us", f"{row['GB/s']:.1f}"]
            cells += [f"{100 * share:.0f} %", f"{row['over bfloat16']:.2f} x", f"{row['over float32']:.2f} x"]
            print(f"| {' | '.join(cells)} | {row['error']:.0e} |")
    means = {n: math.prod(r["over bfloat16"] for r in results if r["storage"] == n) ** (1 / 6) for n in STORAGE}
    print("geometric means over bfloat16: " + ", ".join(f"{name} {mean:.2f} x" for name, mean in means.items()))
    if asked.json:
        facts = {"started": started, "machine": machine.describe(), "threads": asked.threads, "seconds": asked.seconds,
                 "backend": harken.get_backend(), "results": results}  # fmt: skip
        asked.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
