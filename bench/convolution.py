"""Conv1D: harken against ONNX Runtime and PyTorch, each in the layout that is its own.

    python bench/convolution.py [--dtype float64] [--threads 1] [--backend avx2] [--seconds 20] [--only WORD] [--json F]

harken takes (B, L, C); ONNX Runtime and PyTorch take (B, C, L), which they are given: nobody's time has a transposition
in it. ONNX Runtime has its weights as constants of the model and its input bound beforehand; harken lays out the
weights in every call, because they are plain arrays that may have changed. Each is checked against float64 before it is
timed; all take turns, and the time is the median. The peak is that of multiply-adds in registers alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import numpy as np
import peaks
import timing
import truth
from problems import Array


@dataclass(frozen=True)
class Case:
    """A layer and its input; the padding keeps L / stride positions."""

    name: str
    B: int
    L: int
    C: int
    O: int
    K: int
    stride: int = 1
    groups: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.B * (self.L // self.stride) * self.O * self.C // self.groups * self.K


CASES = (
    Case("goal", 1, 100, 128, 128, 3),
    Case("goal", 1, 100, 128, 128, 5),
    Case("goal", 32, 100, 256, 256, 3),
    Case("goal", 32, 100, 256, 256, 5),
    Case("goal", 1, 1000, 512, 512, 3),
    Case("goal", 1, 1000, 512, 512, 5),
    Case("pointwise", 1, 1000, 512, 512, 1),
    Case("waveform", 1, 16000, 1, 512, 10, 5),
    Case("frames", 4, 4000, 4, 64, 25),
    Case("spectrum", 1, 3000, 80, 384, 3),
    Case("to few", 8, 1000, 512, 4, 3),
    Case("depthwise", 1, 1000, 512, 512, 31, 1, 512),
    Case("depthwise", 8, 500, 256, 256, 3, 1, 256),
    Case("groups", 1, 1000, 512, 512, 3, 1, 8),
    Case("one step", 1, 1, 512, 512, 3),
    Case("one step", 1, 1, 128, 128, 3),
)


def contenders(case: Case, x: Array, weight: Array, bias: Array, threads: int) -> Iterator[tuple[str, Any, Any]]:
    """Their names, calls, and what makes (B, L, C) of their results. A step is what a stream's kernel is called for."""
    import harken
    from harken.layers import Conv1D

    step = case.name == "one step"
    padding = 0 if step else case.K // 2
    harken.set_num_threads(threads)
    layer = Conv1D(case.C, case.O, case.K, case.stride, padding, 1, case.groups, dtype=x.dtype)
    layer.load({"weight": weight, "bias": bias})
    yield "harken", lambda: layer(x), lambda y: y
    swapped = np.ascontiguousarray(x.swapaxes(-1, -2))
    if importlib.util.find_spec("onnxruntime") and x.dtype == np.float32:  # its CPU provider has no other
        session, binding = onnx_session(case, padding, swapped, weight, bias, threads)
        yield (
            "onnxruntime",
            lambda: session.run_with_iobinding(binding),
            lambda _: binding.get_outputs()[0].numpy().swapaxes(-1, -2),
        )
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(threads)
        tensors = [torch.from_numpy(a) for a in (swapped, weight, bias)]

        def convolve() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.conv1d(*tensors, case.stride, padding, 1, case.groups)

        yield "torch", convolve, lambda y: y.numpy().swapaxes(-1, -2)


def onnx_session(case: Case, padding: int, x: Array, weight: Array, bias: Array, threads: int) -> tuple[Any, Any]:
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], group=case.groups, kernel_shape=[case.K], pads=[padding] * 2,
        strides=[case.stride],
    )  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", kind, x.shape)]
    outputs = [helper.make_tensor_value_info("y", kind, None)]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "convolution", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("y", "cpu")
    return session, binding


def exact(case: Case, x: Array, weight: Array, bias: Array) -> Array:
    """In float64, a group at a time."""
    padding = 0 if case.name == "one step" else case.K // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (0, 0)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, case.K, 1)[:, :: case.stride]  # (B, L', C, K)
    inputs, outputs = case.C // case.groups, case.O // case.groups
    parts = []
    for g in range(case.groups):
        w = weight[g * outputs : (g + 1) * outputs].astype(np.float64)
        parts.append(np.tensordot(seen[:, :, g * inputs : (g + 1) * inputs], w, ((2, 3), (1, 2))))
    y: Array = np.concatenate(parts, -1) + bias
    return y


def measure(case: Case, dtype: str, threads: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    import harken

    rng = np.random.default_rng(2026)
    inputs = case.C // case.groups
    L = case.K if case.name == "one step" else case.L
    x, weight, bias = (
        rng.standard_normal(shape).astype(dtype) for shape in ((case.B, L, case.C), (case.O, inputs, case.K), (case.O,))
    )
    weight /= np.sqrt(inputs * case.K).astype(dtype)
    right = exact(case, x, weight, bias)
    calls: dict[str, Callable[[], Any]] = {}
    errors = {}
    for name, call, to_numpy in contenders(case, x, weight, bias, threads):
        result = np.asarray(to_numpy(call()))
        errors[name] = truth.error(result, right)
        if reason := truth.wrong(result, right, dtype):
            print(f"{case} {name}: {reason}: no time")
            continue
        calls[name] = call
    peak = peaks.multiply_add(dtype, threads, harken.get_backend())
    quiet = machine.Quiet()
    rounds = timing.interleave(calls | {"peak": peak.call}, seconds, lambda text: None)
    times = {name: timing.middle(samples) for name, samples in rounds.items()}
    return {
        "case": asdict(case),
        "seconds": {name: times[name] for name in calls},
        "shortest": {name: min(x for samples in rounds[name] for x in samples) for name in calls},
        "spread": {name: timing.spread(rounds[name]) for name in calls},
        "ratio": {name: timing.ratio(rounds[name], rounds["harken"]) for name in calls},
        "error": errors,
        "gflops": case.flops / times["harken"] / 1e9,
        "peak_gflops": peak.rate(times["peak"]),
        "others": quiet.others(),
    }


def line(row: dict[str, Any]) -> str:
    case = row["case"]
    shape = ", ".join(str(case[key]) for key in ("B", "L", "C", "O", "K", "stride", "groups"))
    rivals = "".join(
        f"  {name} {1e3 * row['seconds'][name]:8.3f} ({1e3 * row['shortest'][name]:.3f}) ms {row['ratio'][name]:5.2f} x"
        for name in row["seconds"]
    )
    rate = f"{row['gflops']:.0f} GFLOP/s, {100 * row['gflops'] / row['peak_gflops']:.0f} % of the peak"
    return f"{case['name']:<10}{shape:<32}{rivals}  {rate}  (others: {100 * row['others']:.0f} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, default=machine.cpus())
    parser.add_argument("--backend", help="of harken")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each case (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="WORD", help="cases with this word in their names")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.backend:
        os.environ["HARKEN_BACKEND"] = options.backend
    import harken

    report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "environment": machine.environment(),
        "threads": options.threads,
        "dtype": options.dtype,
        "backend": harken.get_backend(),
        "rows": [],
    }
    print(f"{options.dtype}, {harken.get_backend()}, {options.threads} threads; B, L, C, O, K, stride, groups; medians")
    for case in CASES:
        if options.only in case.name:
            report["rows"].append(measure(case, options.dtype, options.threads, options.seconds))
            print(line(report["rows"][-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
