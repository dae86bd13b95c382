"""One problem, everybody who can compute it, and the peak that bounds it: checked against float64, timed in turns."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import peaks
import rivals
import timing
import truth
from problems import Array, Problem
from report import Entry
from rivals import Call, Rival

Progress = Callable[[str], None]

PEAK = "the peak"  # its name among the calls
LONG, FAR = 10e-3, 4.0  # who takes so many seconds, and so many times as long as another peer, is not the best of them


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
    problem: Problem,
    dtype: str,
    contenders: Sequence[Rival],
    threads: int,
    seconds: float,
    progress: Progress,
    best_only: bool = False,
) -> Entry:
    """Check everybody on one problem, then time those who are right; or only those who may be the best of the peers."""
    progress("computing in float64")
    (q, k, v), right = exact(replace(problem, precision="highest"), dtype)
    results: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    first: dict[str, float] = {}
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
            start = time.perf_counter()
            result = call()
            first[rival.name] = time.perf_counter() - start
            result = rival.to_numpy(result)
        except Exception as reason:  # whatever a library throws: it has no time, the others have
            results[rival.name] = {"status": "failed", "reason": f"{type(reason).__name__}: {reason}".splitlines()[0]}
            continue
        if why := truth.wrong(result, right, dtype, problem.precision):
            results[rival.name] = {"status": "wrong", "reason": why}
            continue
        results[rival.name] = {"status": "ok", "error": truth.error(result, right)}
        calls[rival.name] = call

    if best_only:
        for name in hopeless(calls, first):
            results[name] = {"status": "slow", "reason": f"{FAR:.0f} times as long as another, or more"}
            del calls[name]
    limit, bound = peak(problem, dtype, k, v, threads)
    if limit:
        calls[PEAK] = limit.call
    rounds = timing.interleave(calls, seconds, progress)
    if limit:
        bound |= {"rate": limit.rate(timing.middle(rounds[PEAK])), "samples": rounds[PEAK]}
    work = k.nbytes + v.nbytes if problem.kind == "stream" else problem.flops
    for name, samples in rounds.items():
        if name == PEAK:
            continue
        t = timing.middle(samples)
        rates = {"gflops": problem.flops / t / 1e9, "gbytes": problem.bytes(dtype) / t / 1e9}
        results[name] |= {"seconds": t, "spread": timing.spread(samples), **rates, "samples": samples}
        if limit:
            results[name]["of_peak"] = timing.ratio(rounds[PEAK], samples) * work / limit.amount
        if name != "harken" and "harken" in rounds:
            results[name]["ratio"] = timing.ratio(samples, rounds["harken"])
    ordered = {name: results[name] for name in sorted(results, key=lambda name: name != "harken")}
    return {"problem": asdict(problem), "dtype": dtype, "kind": problem.kind, "peak": bound, "rivals": ordered}


def peak(problem: Problem, dtype: str, k: Array, v: Array, threads: int) -> tuple[peaks.Peak | None, dict[str, Any]]:
    """What bounds the problem on harken's backend, and what the report says about it."""
    import harken  # here, when all who must be loaded before it are there: see rivals.everyone

    try:
        limit = peaks.of(problem, dtype, k, v, threads, harken.get_backend())
    except peaks.Unknown as reason:
        return None, {"reason": str(reason)}
    return limit, {"name": limit.name, "unit": limit.unit}


@functools.lru_cache(maxsize=1)
def exact(problem: Problem, dtype: str) -> tuple[tuple[Array, Array, Array], Array]:
    """The inputs and the float64 result; the last ones are kept for who compares the same again."""
    inputs = problem.inputs(dtype)
    return inputs, truth.attend64(problem, *inputs)


def hopeless(calls: dict[str, Call], first: dict[str, float]) -> list[str]:
    """The peers that take long, and far longer than the fastest of them: the second call says it, or a first of 1 s."""
    peers = {name: call for name, call in calls.items() if name != "harken"}
    best = min((first[name] for name in peers), default=0.0)
    times = {
        name: first[name] if first[name] > max(1.0, FAR * best) else min(first[name], timing.measure(call, 1))
        for name, call in peers.items()
    }
    return [name for name, seconds in times.items() if seconds > max(LONG, FAR * min(times.values()))]
