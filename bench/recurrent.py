"""LSTM and GRU: harken against ONNX Runtime, PyTorch and a loop in NumPy, in one process.

    python bench/recurrent.py [--threads N] [--seconds S] [--backend avx2] [--json bench/results/recurrent.json]

float32, input_size = hidden_size = H, PyTorch's convention of the GRU. Everybody is checked against the equations in
float64 before it is timed, and takes turns. ONNX Runtime and PyTorch keep the weights in the form that they like best;
harken makes its own in each call. The time is the median, the quick one the tenth of the samples that took the least:
on a machine that has other work that is the one to compare. `step` is one step of a stream, from Python and back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import numpy as np
import timing
import truth

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]

SHAPES = ((1, 100, 128), (32, 100, 256), (1, 1000, 512), (1, 1, 256))  # (B, L, H)
SLOWEST = 4.0  # seconds of one call that are worth its time


def logistic(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def loop(kind: str, x: Array, state: dict[str, Array]) -> Array:
    """The equations as one writes them: x for all steps in one product, h step by step."""
    B, L, H = x.shape
    a = x.reshape(B * L, H) @ state["weight_ih_l0"].T + state["bias_ih_l0"]
    a = a.reshape(B, L, -1)
    U, d = state["weight_hh_l0"].T, state["bias_hh_l0"]
    h, c, y = np.zeros((B, H), x.dtype), np.zeros((B, H), x.dtype), np.empty((B, L, H), x.dtype)
    for t in range(L):
        u = h @ U + d
        if kind == "LSTM":
            i, f, g, o = np.split(a[:, t] + u, 4, axis=-1)
            c = logistic(f) * c + logistic(i) * np.tanh(g)
            h = logistic(o) * np.tanh(c)
        else:
            r, z = np.split(logistic(a[:, t, : 2 * H] + u[:, : 2 * H]), 2, axis=-1)
            n = np.tanh(a[:, t, 2 * H :] + r * u[:, 2 * H :])
            h = (1 - z) * n + z * h
        y[:, t] = h
    return y


def runtime(kind: str, x: Array, state: dict[str, Array], threads: int) -> Call:
    """ONNX Runtime: gates as i o f c and z r h, x as (L, B, C)."""
    import onnx
    import onnxruntime

    order = (0, 3, 1, 2) if kind == "LSTM" else (1, 0, 2)

    def sort(array: Array) -> Array:
        parts = np.split(array, len(order))
        return np.concatenate([parts[n] for n in order])[None]

    weights = {
        "W": sort(state["weight_ih_l0"]),
        "R": sort(state["weight_hh_l0"]),
        "B": np.concatenate([sort(state["bias_ih_l0"]), sort(state["bias_hh_l0"])], 1),
    }
    B, L, H = x.shape
    options = {"linear_before_reset": 1} if kind == "GRU" else {}
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node(kind, ["X", *weights], ["Y"], hidden_size=H, **options)],
        "recurrent",
        [make.make_tensor_value_info("X", 1, [L, B, H])],
        [make.make_tensor_value_info("Y", 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 22)])
    model.ir_version = 10
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options, ["CPUExecutionProvider"])
    given = np.ascontiguousarray(x.transpose(1, 0, 2))
    return lambda: session.run(None, {"X": given})[0][:, 0].transpose(1, 0, 2)


def contenders(kind: str, x: Array, threads: int) -> Iterator[tuple[str, Call]]:
    """harken first; the others have its weights."""
    import harken
    from harken import layers

    harken.set_num_threads(threads)
    H = x.shape[-1]
    layer = getattr(layers, kind)(H, H, rng=0)
    state = layer.state()
    yield "float64", lambda: loop(kind, x.astype(np.float64), {k: v.astype(np.float64) for k, v in state.items()})
    if x.shape[1] == 1:
        yield "harken", lambda: layer.step(x[:, 0])[0][:, None]
    else:
        yield "harken", lambda: layer(x)[0]
    yield "numpy", lambda: loop(kind, x, state)
    try:
        yield "onnxruntime", runtime(kind, x, state, threads)
    except ImportError:
        print("onnxruntime or onnx is not installed")
    try:
        import torch
    except ImportError:
        print("torch is not installed")
        return
    torch.set_num_threads(threads)
    theirs = getattr(torch.nn, kind)(H, H, batch_first=True).eval()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    given = torch.from_numpy(x)

    def call() -> Any:
        with torch.inference_mode():
            return theirs(given)[0]

    yield "torch", call


def quick(rounds: timing.Rounds) -> float:
    return statistics.quantiles([x for part in rounds for x in part], n=10, method="inclusive")[0]


def measure(kind: str, shape: tuple[int, int, int], threads: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    x = np.random.default_rng(2026).standard_normal(shape, np.float32)
    calls, errors = {}, {}
    right = np.empty(0)
    for name, call in contenders(kind, x, threads):
        result = np.asarray(call())
        if name == "float64":
            right = result
            continue
        errors[name] = truth.error(result, right)
        if reason := truth.wrong(result, right, "float32"):
            print(f"{kind} {shape} {name}: {reason}: no time")
        elif timing.measure(call, 1) < SLOWEST:
            calls[name] = call
    quiet = machine.Quiet()
    rounds = timing.interleave(calls, seconds, lambda text: None)
    return {
        "kind": kind,
        "shape": shape,
        "seconds": {name: timing.middle(rounds[name]) for name in calls},
        "quick": {name: quick(rounds[name]) for name in calls},
        "spread": {name: timing.spread(rounds[name]) for name in calls},
        "ratio": {name: timing.ratio(rounds[name], rounds["harken"]) for name in calls},
        "error": errors,
        "others": quiet.others(),
    }


def line(row: dict[str, Any]) -> str:
    parts = [f"{row['kind']:<5}{row['shape']!s:<16}"]
    for name, time in row["quick"].items():
        over = f"{time / row['quick']['harken']:6.2f} x " if name != "harken" else ""
        parts.append(f"{name} {1e3 * time:8.3f} ({1e3 * row['seconds'][name]:8.3f}) ms {over}{row['error'][name]:.0e}")
    return "  ".join([*parts, f"(others: {100 * row['others']:.0f} %)"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=machine.cpus())
    parser.add_argument("--backend", help="of harken")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each row (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.backend:
        os.environ["HARKEN_BACKEND"] = options.backend
    import harken

    report: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "environment": machine.environment(),
        "threads": options.threads,
        "dtype": "float32",
        "backend": harken.get_backend(),
        "rows": [],
    }
    print(f"float32, {harken.get_backend()}, {options.threads} threads; (B, L, H); quick (median), over harken, error")
    for shape in SHAPES:
        for kind in ("LSTM", "GRU"):
            report["rows"].append(measure(kind, shape, options.threads, options.seconds))
            print(line(report["rows"][-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
