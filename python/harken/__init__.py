"""Attention for NumPy arrays: softmax(Q Kᵀ) V, exact, fused, at the speed of the processor.

>>> import numpy as np
>>> import harken
>>> x = np.random.default_rng(0).normal(size=(10, 512))
>>> harken.attention(x, x, x).shape
(10, 512)
"""

from typing import Any as _Any

from harken import masks, plot
from harken._load import core as _core
from harken.additive import additive_attention
from harken.attention import attention
from harken.backends import backends, get_backend, set_backend
from harken.cache import KVCache
from harken.explain import Plan, explain
from harken.info import info
from harken.merge import merge
from harken.positions.relative import alibi_slopes, relative_bias, t5_buckets
from harken.positions.rope import rope
from harken.positions.rope_table import rope_table
from harken.quantize import quantize, smooth, smooth_shift
from harken.reference import reference
from harken.stats import AttentionStats, attention_stats
from harken.threads import get_num_threads, set_num_threads
from harken.varlen import attention_varlen

__version__ = _core.__version__


def __getattr__(name: str) -> _Any:
    if name not in ("cuda", "keras", "layers"):  # which few programs need
        raise AttributeError(f"module 'harken' has no attribute {name!r}")
    from importlib import import_module

    return import_module(f"harken.{name}")


__all__ = [
    "AttentionStats",
    "KVCache",
    "Plan",
    "additive_attention",
    "alibi_slopes",
    "attention",
    "attention_stats",
    "attention_varlen",
    "backends",
    "explain",
    "get_backend",
    "get_num_threads",
    "info",
    "masks",
    "merge",
    "plot",
    "quantize",
    "reference",
    "relative_bias",
    "rope",
    "rope_table",
    "set_backend",
    "set_num_threads",
    "smooth",
    "smooth_shift",
    "t5_buckets",
]
