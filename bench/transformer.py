"""One layer of a transformer's encoder, and its attention alone: harken.layers against PyTorch and ONNX Runtime.

    python bench/transformer.py [--threads 1] [--seconds 20] [--busy] [--json bench/results/transformer.json]

Post-norm with GELU, 384 channels, 12 heads and 1536 wide, as MiniLM's, float32; "short" is a batch whose sequences have
the lengths 128, 16, 25, 90, 40, 64, 31 and 52 of 128. Everybody has the same numbers and is checked against float64
before it is timed, where padding does not count. ONNX Runtime runs the fused operators that its own optimizer makes of
such a layer: Attention, SkipLayerNormalization and BiasGelu. On a machine that has other work, --busy takes one thread
and counts its CPU time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import numpy as np
import threadpoolctl
import timing
from problems import Array

E, H, F, EPS = 384, 12, 1536, 1e-12
LENGTHS = np.array([128, 16, 25, 90, 40, 64, 31, 52])
PROBLEMS: dict[str, tuple[int, int, Array | None]] = {
    "8 x 128": (8, 128, None),
    "8 x 128, short": (8, 128, LENGTHS),
    "1 x 16": (1, 16, None),
}
Call = Callable[[], Any]
State = dict[str, Array]


def numbers() -> State:
    """Parameters by PyTorch's names, of sizes that keep the channels near 1."""
    rng = np.random.default_rng(2026)
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.in_proj_weight": (3 * E, E), "self_attn.in_proj_bias": (3 * E,),
        "self_attn.out_proj.weight": (E, E), "self_attn.out_proj.bias": (E,),
        "linear1.weight": (F, E), "linear1.bias": (F,), "linear2.weight": (E, F), "linear2.bias": (E,),
    }  # fmt: skip
    state = {name: rng.standard_normal(shape) / math.sqrt(shape[-1]) for name, shape in shapes.items()}
    for name in ("norm1", "norm2"):
        state |= {f"{name}.weight": 1 + rng.standard_normal(E) / 10, f"{name}.bias": rng.standard_normal(E) / 10}
    return {name: x.astype(np.float32) for name, x in state.items()}


def attended(x: Array, s: State, lengths: Array) -> Array:
    """The attention in the dtype of its numbers."""
    q, k, v = np.moveaxis((x @ s["self_attn.in_proj_weight"].T + s["self_attn.in_proj_bias"]).reshape(
        *x.shape[:2], 3, H, E // H), 2, 0).swapaxes(2, 3)  # fmt: skip
    score = q @ k.swapaxes(2, 3) / math.sqrt(E // H)
    score = np.where(np.arange(x.shape[1]) < lengths[:, None, None, None], score, -np.inf)
    p = np.exp(score - score.max(-1, keepdims=True))
    found = (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
    return found @ s["self_attn.out_proj.weight"].T + s["self_attn.out_proj.bias"]


def layer(x: Array, s: State, lengths: Array) -> Array:
    """The whole of it."""

    def norm(y: Array, name: str) -> Array:
        y = y - y.mean(-1, keepdims=True)
        y = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + EPS)
        return y * s[f"{name}.weight"] + s[f"{name}.bias"]

    y = norm(x + attended(x, s, lengths), "norm1")
    h = y @ s["linear1.weight"].T + s["linear1.bias"]
    h = h / 2 * (1 + np.vectorize(math.erf, otypes=[float])(h / math.sqrt(2)))
    return norm(y + h @ s["linear2.weight"].T + s["linear2.bias"], "norm2")


def ours(x: Array, state: State, lengths: Array | None, whole: bool) -> Call:
    from harken.layers import TransformerEncoderLayer

    made = TransformerEncoderLayer(E, H, F, "gelu", EPS).load(state)
    return (lambda: made(x, lengths=lengths)) if whole else (lambda: made.self_attn(x, lengths=lengths))


def pytorch(x: Array, state: State, lengths: Array | None, whole: bool, threads: int) -> Call:
    import torch

    torch.set_num_threads(threads)
    made = torch.nn.TransformerEncoderLayer(E, H, F, 0.0, "gelu", EPS, batch_first=True).eval()
    made.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    given = torch.from_numpy(x)
    past = None if lengths is None else torch.from_numpy(np.arange(x.shape[1]) >= lengths[:, None])

    def call() -> Any:
        with torch.inference_mode():
            if whole:
                return made(given, src_key_padding_mask=past).numpy()
            return made.self_attn(given, given, given, key_padding_mask=past, need_weights=False)[0].numpy()

    return call


def onnxruntime(x: Array, state: State, lengths: Array | None, whole: bool, threads: int) -> Call:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    s = {name.removeprefix("self_attn."): value for name, value in state.items()}
    s = {name: np.ascontiguousarray(value.T) if value.ndim == 2 else value for name, value in s.items()}
    domain = {"domain": "com.microsoft"}
    node = helper.make_node
    masked = [] if lengths is None else ["lengths"]
    nodes = [node("Attention", ["x", "in_proj_weight", "in_proj_bias", *masked], ["a"], num_heads=H, **domain),
             node("MatMul", ["a", "out_proj.weight"], ["o"])]  # fmt: skip
    if whole:
        nodes += [
            node("SkipLayerNormalization", ["o", "x", "norm1.weight", "norm1.bias", "out_proj.bias"], ["y"],
                 epsilon=EPS, **domain),
            node("MatMul", ["y", "linear1.weight"], ["h"]), node("BiasGelu", ["h", "linear1.bias"], ["g"], **domain),
            node("MatMul", ["g", "linear2.weight"], ["z"]),
            node("SkipLayerNormalization", ["z", "y", "norm2.weight", "norm2.bias", "linear2.bias"], ["out"],
                 epsilon=EPS, **domain),
        ]  # fmt: skip
    else:
        nodes += [node("Add", ["o", "out_proj.bias"], ["out"])]
    feeds = {"x": x} | ({} if lengths is None else {"lengths": lengths.astype(np.int32)})
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    used = {name for one in nodes for name in one.input}
    weights = [numpy_helper.from_array(value, name) for name, value in s.items() if name in used]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, x.shape)
    graph = helper.make_graph(nodes, "layer", inputs, [output], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)[0]


def contenders(x: Array, state: State, lengths: Array | None, whole: bool, threads: int) -> Iterator[tuple[str, Call]]:
    yield "harken", ours(x, state, lengths, whole)
    for name, make in (("PyTorch", pytorch), ("ONNX Runtime", onnxruntime)):
        try:
            yield name, make(x, state, lengths, whole, threads)
        except ImportError as error:
            print(f"{name}: {error.name} is not installed: no times of it")


def measure(title: str, whole: bool, threads: int, seconds: float, busy: bool) -> dict[str, Any]:
    B, L, lengths = PROBLEMS[title]
    state, x = numbers(), np.random.default_rng(1).standard_normal((B, L, E)).astype(np.float32)
    each = np.full(B, L) if lengths is None else lengths
    valid = np.arange(L) < each[:, None]
    wide = {name: value.astype(np.float64) for name, value in state.items()}
    right = (layer if whole else attended)(x.astype(np.float64), wide, each)[valid]
    calls, errors = {}, {}
    for name, call in contenders(x, state, lengths, whole, threads):
        errors[name] = float(np.linalg.norm(call()[valid] - right) / np.linalg.norm(right))
        if not errors[name] < 1e-5:
            print(f"{title} {name}: error {errors[name]:.1e}: no time")
            continue
        calls[name] = call
    quiet = machine.Quiet()
    rounds = processor_time(calls, seconds) if busy else timing.interleave(calls, seconds, lambda text: None)
    return {
        "problem": f"{'layer' if whole else 'attention'}, {title}",
        "seconds": {name: timing.middle(rounds[name]) for name in calls},
        "shortest": {name: min(one for samples in rounds[name] for one in samples) for name in calls},
        "ratio": {name: timing.ratio(rounds[name], rounds["harken"]) for name in calls},
        "error": errors,
        "others": quiet.others(),
    }


def processor_time(calls: dict[str, Call], seconds: float) -> dict[str, list[list[float]]]:
    """In turns, the CPU seconds of single calls."""
    rounds: dict[str, list[list[float]]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds["harken"]) < 5:
        for name, call in calls.items():
            samples = []
            for _ in range(4):
                start = time.process_time()
                call()
                samples.append(time.process_time() - start)
            rounds[name].append([statistics.median(samples[1:])])
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=machine.cpus(), metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each problem (default: %(default)s)")
    parser.add_argument("--busy", action="store_true", help="one thread, and its CPU time")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    threads = 1 if options.busy else options.threads
    threadpoolctl.threadpool_limits(threads)
    import harken

    harken.set_num_threads(threads)
    report: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine.describe(),
        "environment": machine.environment(), "threads": threads, "clock": "CPU time" if options.busy else "wall",
        "backend": harken.get_backend(), "rows": [],
    }  # fmt: skip
    print(f"float32, {harken.get_backend()}, {threads} threads; medians, shortest, rivals over harken")
    for whole in (True, False):
        for title in PROBLEMS:
            row = measure(title, whole, threads, options.seconds, options.busy)
            report["rows"].append(row)
            print(f"{row['problem']:<26}" + "".join(
                f"  {name} {1e3 * row['seconds'][name]:8.3f} {1e3 * row['shortest'][name]:8.3f} ms "
                f"{row['ratio'][name]:5.2f} x  error {row['error'][name]:.0e}" for name in row["seconds"]
            ) + f"  (others: {row['others']:.0%})", flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
