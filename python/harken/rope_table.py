"""The angles of a rotary position embedding: a frequency for each pair of channels, stretched for longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import index
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from harken.reference import STORAGE

Array = NDArray[Any]


def rope_table(
    length: int,
    dim: int,
    *,
    base: float = 10000.0,
    scaling: Mapping[str, Any] | None = None,
    dtype: DTypeLike = np.float32,
) -> tuple[Array, Array]:
    """Give the cosines and sines by which `rope` turns the pairs of channels.

    Pair n of position p turns by::

        angle[p, n] = p f_n           f_n = base^(-2 n / dim)

    `scaling` changes the frequencies f for contexts that are longer than those of the training, by a factor F::

        linear    f / F
        ntk       f of the base  base F^(dim / (dim - 2)): the fastest pair stays, the slowest turns F times slower
        llama3    (1 - g) f / F + g f,  g = clip((C f / (2 pi) - low) / (high - low), 0, 1)

    where C is `original_max_position_embeddings` and C f / (2 pi) the turns of a pair over the original context.

    Parameters
    ----------
    length : int
        How many positions, from 0.
    dim : int
        How many channels turn: the width of a head, or less for a partial rotation. Even.
    base : float
        `rope_theta` of a model's config.json.
    scaling : mapping, optional
        `rope_scaling` of a model's config.json: "rope_type" is "linear", "ntk", "llama3" or "default", "factor" is F,
        and for "llama3" there are "low_freq_factor", "high_freq_factor" and "original_max_position_embeddings".
    dtype : dtype
        Of the tables. Angles, cosines and sines are computed in float64 and rounded once.

    Returns
    -------
    cos, sin : ndarray, (length, dim / 2)

    Raises
    ------
    ValueError, TypeError
        Numbers out of range, a scaling that is not known or not complete.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864.
    .. [2] S. Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation", 2023,
       arXiv:2306.15595: linear.
    .. [3] B. Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023, arXiv:2309.00071,
       section 3.1: ntk.
    .. [4] `apply_scaling` in meta-llama/llama-models, models/llama3/model.py: llama3.

    Examples
    --------
    >>> import numpy as np
    >>> from harken import rope_table
    >>> cos, sin = rope_table(3, 4, base=100.0)
    >>> np.arctan2(sin, cos).round(6)
    array([[0. , 0. ],
           [1. , 0.1],
           [2. , 0.2]], dtype=float32)
    >>> cos, sin = rope_table(3, 4, base=100.0, scaling={"rope_type": "linear", "factor": 2.0})
    >>> np.arctan2(sin, cos)[:, 0]
    array([0. , 0.5, 1. ], dtype=float32)
    """
    length, dim = index(length), index(dim)
    if length < 0:
        raise ValueError(f"length is {length}: wanted 0 or more")
    if dim < 0 or dim % 2:
        raise ValueError(f"dim is {dim}: channels turn in pairs, wanted an even number, 0 or more")
    if not 0 < base < math.inf:
        raise ValueError(f"base is {base!r}: wanted a finite number above 0")
    if np.dtype(dtype).name not in STORAGE:
        raise TypeError(f"dtype is {np.dtype(dtype)}: wanted one of {', '.join(STORAGE)}")
    angles = np.arange(length)[:, None] * _frequencies(dim, base, scaling or {})
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _frequencies(dim: int, base: float, scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """By how much each pair of channels turns from one position to the next."""
    exponents = np.arange(0, dim, 2) / max(dim, 1)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    names = {
        "default": (),
        "linear": ("factor",),
        "ntk": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if kind not in names:
        raise ValueError(f"scaling has the rope_type {kind!r}: wanted {', '.join(map(repr, names))}")
    if unknown := set(scaling) - {"rope_type", "type", *names[kind]}:
        raise ValueError(f"scaling has {', '.join(map(repr, sorted(unknown)))}, which {kind!r} does not know")
    for name in names[kind]:
        if name not in scaling:
            raise ValueError(f"scaling is {kind!r} without {name!r}")
        if not 0 < scaling[name] < math.inf:
            raise ValueError(f"scaling has {name!r} = {scaling[name]!r}: wanted a finite number above 0")
    f: NDArray[np.float64] = float(base) ** -exponents
    if kind == "linear":
        f = f / float(scaling["factor"])
    if kind == "ntk":
        if dim == 2:
            raise ValueError("scaling is 'ntk' and dim is 2: its exponent, dim / (dim - 2), needs dim > 2")
        f = f * float(scaling["factor"]) ** (-exponents * dim / (dim - 2))
    if kind == "llama3":
        F, low, high, C = (float(scaling[name]) for name in names[kind])
        if not low < high:
            raise ValueError(f"scaling has low_freq_factor {low:g} and high_freq_factor {high:g}: wanted low < high")
        g = np.clip((C * f / (2 * math.pi) - low) / (high - low), 0, 1)
        f = (1 - g) * f / F + g * f
    return f
