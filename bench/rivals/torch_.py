"""PyTorch's scaled_dot_product_attention on tensors of its own, without the bookkeeping of gradients."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
from problems import Array, Problem, element

from rivals import Call

name = "torch"
dtypes = ("float32", "bfloat16", "float16", "float64")


def load(threads: int) -> str:
    # ATEN_CPU_CAPABILITY holds PyTorch's own kernels and leaves the matrix products, which are MKL's and oneDNN's, on
    # AVX-512 (float32 bert512: 220 GFLOP/s, 154 with them held as well; bfloat16 raises "only supported when avx512").
    if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":
        os.environ.setdefault("MKL_ENABLE_INSTRUCTIONS", "AVX2")
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    import torch

    torch.set_num_threads(threads)
    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


def prepare(problem: Problem, dtype: str, q: Array, k: Array, v: Array, threads: int) -> Call:
    import torch

    attend = torch.nn.functional.scaled_dot_product_attention
    # (B, H, L, D), contiguous: 4 to 70 % faster than (B, L, H, D) on every problem.
    with torch.inference_mode():
        tensors = [to_torch(x) for x in (q, k, v)]
        options: dict[str, Any] = {}
        if problem.causal and problem.Lq == problem.Lk:  # is_causal is top-left: the same thing only where Lq == Lk
            options["is_causal"] = True
        if problem.group > 1:
            options["enable_gqa"] = True
        return partial(attend, *tensors, **options)


def to_torch(x: Array) -> Any:
    import torch

    if x.dtype == element("bfloat16"):
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16).clone()
    return torch.from_numpy(x).clone()


def to_numpy(result: Any) -> Array:
    import torch

    if result.dtype is torch.bfloat16:
        return np.asarray(result.float().numpy())
    return np.asarray(result.numpy())
