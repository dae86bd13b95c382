"""Keras on harken: its attention layers and `keras.ops.dot_product_attention`, with Keras' backend numpy.

>>> import os
>>> os.environ["KERAS_BACKEND"] = "numpy"  # Keras reads it once, when it is imported
>>> import keras
>>> import numpy as np
>>> import harken.keras
>>> layer = keras.layers.MultiHeadAttention(num_heads=4, key_dim=16)
>>> x = np.random.default_rng(0).standard_normal((2, 100, 64), np.float32)
>>> by_keras = layer(x, x, use_causal_mask=True)
>>> with harken.keras.enable():
...     by_harken = layer(x, x, use_causal_mask=True)
>>> bool(np.abs(by_harken - by_keras).max() < 1e-5), harken.keras.calls()
(True, Calls(harken=1, keras={}))

Two places of Keras are exchanged, and what leads to them stays Keras' own: layers, projections, masks and their order.
`dot_product_attention` of the backend is what MultiHeadAttention and GroupQueryAttention call without dropout and
scores; `_compute_attention` of both is where they compute scores, on any `attention_axes`, and where dropout would be.

What Keras gives is what harken gives, to the rounding of the dtype, also where harken alone would say something else:
causality is counted from the first query and the first key; a query whose mask hides every key gets the mean of all
values from the first place, where Keras' weights are then all the same, and 0 from the second, where they are 0. Only
where Keras' answer is an accident of its arithmetic is harken's another: scores of float16 and bfloat16 are kept in
float32, where Keras rounds them and they may overflow; and a NaN that a mask hides stays hidden.

Milliseconds of processor time, all threads together; float32, Keras 3.15, two busy cores with AVX-512, medians in turn:

                                                        Keras   with harken
    MultiHeadAttention(8, 64) on (8, 128, 512)            169           120
    ... on (8, 512, 512)                                 1710           460
    dot_product_attention on (8, 128, 8, 64)               52             3
    ... on (8, 512, 8, 64)                                888            18

What remains of the layers are the projections, which Keras computes with `np.einsum`.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from harken.keras import layer, op
from harken.keras.calls import Calls, begin, calls

__all__ = ["Calls", "Enabled", "calls", "disable", "enable"]


@dataclass(frozen=True)
class Place:
    """Where a function of Keras stood, and what stands there now."""

    owner: Any
    name: str
    original: Callable[..., Any]
    ours: Callable[..., Any]


_lock = threading.Lock()
_places: list[Place] = []


class Enabled:
    """What `enable` returns: `with enable():` ends as it began, with or without harken."""

    def __init__(self, began: bool) -> None:
        self._began = began

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *_: object) -> None:
        if self._began:
            disable()


def enable() -> Enabled:
    """Let harken compute the attention of Keras, in this process, from now on.

    For each head of `keras.layers.MultiHeadAttention`, `keras.layers.GroupQueryAttention` and
    `keras.ops.dot_product_attention`, models and layers that already exist included::

        o_i = sum_j p_ij v_j        p_ij = softmax_j(scale * (q_i . k_j) + bias_ij)

    A second call changes nothing.

    Returns
    -------
    Enabled
        A context manager: at the end of `with enable():` things are as they were before. It need not be used.

    Raises
    ------
    ImportError
        Keras, or what it needs, is not installed.
    RuntimeError
        Keras runs on another backend than numpy, or is of a version whose layers are built differently.

    See Also
    --------
    disable : puts Keras' own code back.
    calls : who computed how many calls, and why Keras did.

    Notes
    -----
    Arrays are (B, T, N, H), (B, S, K, H) and (B, S, K, V) of float32, float16 or bfloat16, or float64, which Keras
    itself takes as float32; in MultiHeadAttention with any number of axes and any `attention_axes`. Key heads may be as
    many as query heads, one, or, as Keras documents it and its backend numpy does not do it, a number that divides
    them. Keras computes itself, as `calls` then says: training with dropout; other dtypes, and float64 where scores are
    computed; arrays that only broadcasting makes fit, and empty ones; `scale` as an array; rows in which a bias hides
    every key; attention over heads; `flash_attention=True`, which it refuses on this backend; subclasses that change
    how scores become weights.

    Examples
    --------
    >>> import keras
    >>> import harken.keras
    >>> q = keras.random.normal((2, 50, 8, 32))
    >>> k = v = keras.random.normal((2, 70, 8, 32))
    >>> with harken.keras.enable():
    ...     keras.ops.dot_product_attention(q, k, v, is_causal=True).shape
    (2, 50, 8, 32)
    """
    with _lock:
        if _places:
            return Enabled(began=False)
        _places.extend(_found())
        for place in _places:
            setattr(place.owner, place.name, place.ours)
        begin()
        return Enabled(began=True)


def disable() -> None:
    """Put back into Keras exactly what `enable` found there; nothing happens where it is there already.

    Raises
    ------
    RuntimeError
        Somebody else has exchanged the same place since; nothing is put back.

    Examples
    --------
    >>> import harken.keras
    >>> began = harken.keras.enable()
    >>> harken.keras.disable()
    """
    with _lock:
        for place in _places:
            if vars(place.owner)[place.name] is not place.ours:
                raise RuntimeError(
                    f"{place.owner.__name__}.{place.name} was harken's and now is {vars(place.owner)[place.name]!r}: "
                    "whoever put that there has to take it away before harken.keras.disable()"
                )
        for place in _places:
            setattr(place.owner, place.name, place.original)
        _places.clear()


def _found() -> list[Place]:
    """The places of this Keras, unchanged so far, if it is one that harken knows."""
    try:
        keras = importlib.import_module("keras")
    except ModuleNotFoundError as error:
        if error.name == "keras":
            raise ImportError("harken.keras needs Keras: pip install 'harken[keras]'", name="keras") from None
        missing = (error.name or "a module").partition(".")[0]
        raise ImportError(
            f"Keras could not be imported, for want of {missing}: set KERAS_BACKEND=numpy before Keras is imported, "
            "and pip install 'harken[keras]'",
            name=missing,
        ) from error
    if keras.config.backend() != "numpy":
        raise RuntimeError(
            f"Keras runs on its backend {keras.config.backend()}, and harken.keras is for numpy: "
            "set KERAS_BACKEND=numpy in the environment before Keras is imported"
        )
    multi_head, grouped = keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention
    places = []
    for owner, name, arguments, exchanged in (
        (importlib.import_module("keras.src.backend").nn, "dot_product_attention", op.ARGUMENTS, op.exchanged),
        (multi_head, "_compute_attention", layer.MULTI_HEAD, partial(layer.exchanged, cls=multi_head)),
        (grouped, "_compute_attention", layer.GROUPED, partial(layer.exchanged, cls=grouped)),
    ):
        original = vars(owner).get(name)
        if original is None or " ".join(inspect.signature(original).parameters) != arguments:
            raise RuntimeError(
                f"{owner.__name__}.{name} of Keras {keras.__version__} is not the one of Keras 3.15, which takes "
                f"{', '.join(arguments.split())}: pip install 'harken[keras]'"
            )
        places.append(Place(owner, name, original, exchanged(original, keras)))
    return places
