"""Attention for NumPy arrays: softmax(Q Kᵀ) V, exact, fused, at the speed of the processor.

>>> import numpy as np
>>> import harken
>>> x = np.random.default_rng(0).normal(size=(10, 512))
>>> harken.attention(x, x, x).shape
(10, 512)
"""

from harken import masks
from harken._load import core as _core
from harken.attention import attention
from harken.backends import backends, get_backend, set_backend
from harken.explain import Plan, explain
from harken.info import info
from harken.merge import merge
from harken.reference import reference
from harken.threads import get_num_threads, set_num_threads

__version__ = _core.__version__

__all__ = [
    "Plan",
    "attention",
    "backends",
    "explain",
    "get_backend",
    "get_num_threads",
    "info",
    "masks",
    "merge",
    "reference",
    "set_backend",
    "set_num_threads",
]
