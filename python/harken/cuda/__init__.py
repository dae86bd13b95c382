"""Attention on NVIDIA cards: whether this machine can, why not, and by which kernels.

The kernels are in a library of their own, which needs no CUDA to be installed besides the driver, and which is loaded
when something here is first asked for. `harken.attention(..., device="cuda")` computes there.
"""

from harken.cuda.arrays import Array, attention
from harken.cuda.cache import KVCache
from harken.cuda.cards import devices, is_available, kernels, why_not
from harken.cuda.pinned import pinned_empty
from harken.cuda.plan import Plan

__all__ = ["Array", "KVCache", "Plan", "attention", "devices", "is_available", "kernels", "pinned_empty", "why_not"]
