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

NEEDS = {
    "default": (),
    "linear": ("factor",),
    "ntk": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None, "truncate": True}  # what it takes beyond that


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
        yarn      (1 - r) f + r f / F,  r = clip((n - a) / (b - a), 0, 1),  and cos and sin times 0.1 log F + 1

    where C is `original_max_position_embeddings`, C f / (2 pi) the turns of a pair over the original context, and a and
    b the pairs that would turn 32 times and once, a rounded down and b up.

    Parameters
    ----------
    length : int
        How many positions, from 0.
    dim : int
        How many channels turn: the width of a head, or less for a partial rotation. Even.
    base : float
        `rope_theta` of a model's config.json.
    scaling : mapping, optional
        `rope_scaling` of a model's config.json. "rope_type" is "linear", "ntk", "llama3", "yarn" or "default", and
        "factor" is F. "llama3" also needs "low_freq_factor", "high_freq_factor" and "original_max_position_embeddings";
        "yarn" needs the last, and takes "beta_fast" and "beta_slow" for 32 and 1, "attention_factor" for the factor of
        cos and sin, and "truncate": false for a and b as they are.
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
    .. [3] B. Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023, arXiv:2309.00071:
       ntk in section 3.1, yarn in 3.4; a and b as in huggingface/transformers, `modeling_rope_utils.py`.
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
    frequencies, size = _scaled(dim, float(base), scaling or {})
    angles = np.arange(length)[:, None] * frequencies
    return (size * np.cos(angles)).astype(dtype), (size * np.sin(angles)).astype(dtype)


def _scaled(dim: int, base: float, scaling: Mapping[str, Any]) -> tuple[NDArray[np.float64], float]:
    """By how much each pair turns from one position to the next, and the factor of cos and sin."""
    scaling = {name: value for name, value in scaling.items() if value is not None}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in NEEDS:
        raise ValueError(f"scaling has the rope_type {kind!r}: wanted {', '.join(map(repr, NEEDS))}")
    takes = {*NEEDS[kind], *(YARN if kind == "yarn" else ())}
    if unknown := set(scaling) - {"rope_type", "type", *takes}:
        raise ValueError(f"scaling has {', '.join(map(repr, sorted(unknown)))}, which {kind!r} does not know")
    for name in NEEDS[kind]:
        if name not in scaling:
            raise ValueError(f"scaling is {kind!r} without {name!r}")
    for name in takes.intersection(scaling) - {"truncate"}:
        if not 0 < scaling[name] < math.inf:
            raise ValueError(f"scaling has {name!r} = {scaling[name]!r}: wanted a finite number above 0")
    n = np.arange(dim // 2)
    f: NDArray[np.float64] = base ** (-2 * n / max(dim, 1))
    F, C = float(scaling.get("factor", 1.0)), float(scaling.get("original_max_position_embeddings", 1.0))
    if kind == "linear":
        f = f / F
    if kind == "ntk":
        if dim == 2:
            raise ValueError("scaling is 'ntk' and dim is 2: its exponent, dim / (dim - 2), needs dim > 2")
        f = f * F ** (-2 * n / (dim - 2))
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        if not low < high:
            raise ValueError(f"scaling has low_freq_factor {low:g} and high_freq_factor {high:g}: wanted low < high")
        g = np.clip((C * f / (2 * math.pi) - low) / (high - low), 0, 1)
        f = (1 - g) * f / F + g * f
    if kind == "yarn":
        if base <= 1:
            raise ValueError(f"scaling is 'yarn' and base is {base:g}: wanted more than 1")
        given = YARN | scaling
        a, b = (
            dim * math.log(C / (2 * math.pi * given[turns])) / (2 * math.log(base))
            for turns in ("beta_fast", "beta_slow")
        )
        if given["truncate"]:
            a, b = math.floor(a), math.ceil(b)
        a, b = max(a, 0), min(b, dim - 1)
        r = np.clip((n - a) / (b - a if a != b else 0.001), 0, 1)
        f = (1 - r) * f + r * f / F
        return f, given["attention_factor"] or 0.1 * math.log(max(F, 1.0)) + 1
    return f, 1.0
