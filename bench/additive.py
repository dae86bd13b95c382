"""Additive attention: harken against NumPy, PyTorch and Keras, which make the array of (B, Lq, Lk, D).

    python bench/additive.py [--dtype float64] [--threads 1] [--backend avx2] [--seconds 20] [--busy] [--json out.json]

Everybody is checked against float64 before it is timed, and takes turns. Keras is timed where it is installed; its
sum over channels comes without w. The bound is that of multiply-adds in registers alone, as fast as the machine has
just made them: two for the fraction that tanh(q + k) becomes, three to add two fractions, and one for a division that
would be free. On a machine that has other work, --busy takes one thread and counts its CPU time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import numpy as np
import peaks
import threadpoolctl
import timing
import truth
from problems import Array

SHAPES = ((32, 1, 50, 256), (16, 20, 50, 256), (4, 128, 128, 128), (1, 512, 512, 64))  # (B, Lq, Lk, D)
TOGETHER = {"float32": 2, "float64": 4}  # fractions that share a division


def arrays(shape: tuple[int, ...], dtype: str) -> tuple[Array, Array, Array, Array]:
    """q, k, v and w; scores have a deviation of about 1."""
    B, Lq, Lk, D = shape
    rng = np.random.default_rng(2026)
    q, k, v = (rng.standard_normal((B, L, D)).astype(dtype) for L in (Lq, Lk, Lk))
    return q, k, v, (rng.standard_normal(D) / np.sqrt(D)).astype(dtype)


def dense(q: Array, k: Array, v: Array, w: Array) -> Array:
    """The equations as one writes them."""
    s = np.tanh(q[:, :, None] + k[:, None]) @ w
    p = np.exp(s - s.max(-1, keepdims=True))
    return p @ v / p.sum(-1, keepdims=True)


def exact(q: Array, k: Array, v: Array, w: Array) -> Array:
    """In float64, a batch row at a time."""
    rows = (x.astype(np.float64)[:, None] for x in (q, k, v))
    return np.concatenate([dense(*row, w.astype(np.float64)) for row in zip(*rows, strict=True)])


def contenders(q: Array, k: Array, v: Array, w: Array, threads: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    import harken

    Q, K, V = (x[:, None] for x in (q, k, v))
    yield "harken", lambda: harken.additive_attention(Q, K, V, w, threads=threads)[:, 0]
    yield "numpy", lambda: dense(q, k, v, w)
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(threads)
        tq, tk, tv, tw = (torch.from_numpy(x) for x in (q, k, v, w))

        def attend() -> Any:
            with torch.inference_mode():
                return torch.softmax(torch.tanh(tq[:, :, None] + tk[:, None]) @ tw, -1) @ tv

        yield "torch", attend
    if importlib.util.find_spec("keras"):
        import keras

        layer = keras.layers.AdditiveAttention(use_scale=True, dtype=q.dtype.name)
        layer.build([q.shape, v.shape, k.shape])
        layer.scale.assign(w)
        yield "keras", lambda: layer([q, v, k])


def processor_time(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, timing.Rounds]:
    """As timing.interleave, in seconds of the process: a thread that waits for a processor takes none."""
    rounds: dict[str, timing.Rounds] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds[next(iter(calls))]) < timing.ROUNDS:
        for name, call in calls.items():
            samples = []
            for _ in range(timing.BURST):
                start = time.process_time()
                call()
                samples.append(time.process_time() - start)
            rounds[name].append(samples)
    return rounds


def measure(shape: tuple[int, ...], dtype: str, threads: int, seconds: float, busy: bool) -> dict[str, Any]:
    """One row of the table."""
    import harken

    inputs = arrays(shape, dtype)
    right = exact(*inputs)
    calls, errors = {}, {}
    for name, call in contenders(*inputs, threads):
        result = np.asarray(call())
        errors[name] = truth.error(result, right)
        if reason := truth.wrong(result, right, dtype):
            print(f"{shape} {name}: {reason}: no time")
            continue
        calls[name] = call
    peak = peaks.multiply_add(dtype, threads, harken.get_backend())
    quiet = machine.Quiet()
    every = calls | {"peak": peak.call}
    rounds = processor_time(every, seconds) if busy else timing.interleave(every, seconds, lambda text: None)
    others = quiet.others()
    times = {name: timing.middle(rounds[name]) for name in rounds}
    together = TOGETHER[dtype]
    operations = 2 * (2 + 3 * (together - 1) / together + 1 / together)
    each = 1e9 * times["harken"] / np.prod(shape)
    bound = operations / peak.rate(times["peak"])
    return {
        "shape": shape,
        "seconds": {name: times[name] for name in calls},
        "spread": {name: timing.spread(rounds[name]) for name in calls},
        "ratio": {name: timing.ratio(rounds[name], rounds["harken"]) for name in calls},
        "error": errors,
        "ns_a_tanh": each,
        "bound_ns": bound,
        "of_bound": bound / each,
        "others": others,
    }


def line(row: dict[str, Any]) -> str:
    rivals = "".join(
        f"  {name} {1e3 * row['seconds'][name]:9.3f} ms {row['ratio'][name]:6.1f} x  error {row['error'][name]:.1e}"
        for name in row["seconds"]
    )
    each = f"{row['ns_a_tanh']:.4f} ns a tanh, {100 * row['of_bound']:.0f} % of the bound"
    return f"{row['shape']!s:<20}{rivals}  {each}  (others: {100 * row['others']:.0f} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=TOGETHER, default="float32")
    parser.add_argument("--threads", type=int, default=machine.cpus())
    parser.add_argument("--backend", help="of harken; PyTorch is held by ATEN_CPU_CAPABILITY")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each shape (default: %(default)s)")
    parser.add_argument("--busy", action="store_true", help="one thread, and its CPU time")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.backend:
        os.environ["HARKEN_BACKEND"] = options.backend
    if options.busy:
        options.threads = 1
        threadpoolctl.threadpool_limits(1)
    import harken

    report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "environment": machine.environment(),
        "threads": options.threads,
        "clock": "CPU time" if options.busy else "wall",
        "dtype": options.dtype,
        "backend": harken.get_backend(),
        "rows": [],
    }
    print(f"{options.dtype}, {harken.get_backend()}, {options.threads} threads; (B, Lq, Lk, D); rivals over harken")
    for shape in SHAPES:
        report["rows"].append(measure(shape, options.dtype, options.threads, options.seconds, options.busy))
        print(line(report["rows"][-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
