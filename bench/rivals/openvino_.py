"""OpenVINO: a model of one ScaledDotProductAttention, compiled for latency in the precision of its inputs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from problems import Array, Problem, element

from rivals import Call

name = "openvino"
dtypes = ("float32", "bfloat16", "float16")  # float64 is computed in float32


def load(threads: int) -> str:
    import openvino

    return str(openvino.__version__.split("-")[0])


def prepare(problem: Problem, dtype: str, q: Array, k: Array, v: Array, threads: int) -> Call:
    import openvino as ov
    import openvino.opset13 as op

    p = problem
    kind = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16, "float16": ov.Type.f16}[dtype]
    # It has no grouped heads. Where every row sees every key, the heads of a group are rows of one head, for free: 2 to
    # 17 times as fast as repeating the keys. A causal problem repeats them, inside its graph as exported models do.
    if p.group > 1 and not p.causal:
        q = q.reshape(p.B, p.Hkv, p.group * p.Lq, p.D)
    arrays = q, k, v
    parameters = [op.parameter(x.shape, kind) for x in arrays]
    Q, K, V = parameters
    if q.shape[1] > p.Hkv:
        K, V = (repeat(x, p) for x in (K, V))
    output = op.reshape(op.scaled_dot_product_attention(Q, K, V, causal=p.causal), [p.B, p.Hq, p.Lq, p.D], False)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": kind,  # without it float32 is computed in bfloat16 on machines with AMX
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = ov.Core().compile_model(ov.Model([output], parameters), "CPU", settings).create_infer_request()
    for i, x in enumerate(arrays):
        request.set_input_tensor(i, tensor(x))
    # The result stays in the request's buffer, overwritten by the next call: no allocation, which favours it.
    return partial(run, request)


def run(request: Any) -> Any:
    request.infer()
    return request


def repeat(x: Any, p: Problem) -> Any:
    """(B, Hkv, L, D) to (B, Hq, L, D)."""
    import openvino.opset13 as op

    groups = op.broadcast(op.unsqueeze(x, 2), [p.B, p.Hkv, p.group, p.Lk, p.D])
    return op.reshape(groups, [p.B, p.Hq, p.Lk, p.D], False)


def tensor(x: Array) -> Any:
    import openvino as ov

    if x.dtype != element("bfloat16"):
        return ov.Tensor(np.ascontiguousarray(x), shared_memory=False)
    made = ov.Tensor(ov.Type.bf16, list(x.shape))
    made.data.view(np.uint16)[...] = x.view(np.uint16)
    return made


def to_numpy(result: Any) -> Array:
    made = result.get_output_tensor(0)
    if "bfloat16" in made.element_type.get_type_name() or made.element_type.get_type_name() == "bf16":
        return np.asarray(made.data.view(element("bfloat16"))).astype(np.float32)
    return np.array(made.data)
