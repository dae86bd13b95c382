"""Who computed the attention of Keras, how many times, and why Keras where it did."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HARKEN = "harken"

_lock = threading.Lock()
_counts: Counter[str] = Counter()


@dataclass(frozen=True)
class Calls:
    """How many times attention was computed since `enable` began.

    Attributes
    ----------
    harken : int
        Calls that harken computed.
    keras : dict of str to int
        Calls that Keras computed itself, by the reason.
    """

    harken: int
    keras: dict[str, int]


class LeftToKeras(Exception):
    """harken does not compute this call; the message says why."""


def counted(ours: Callable[[], Any], original: Callable[[], Any]) -> Any:
    """What harken gives, or Keras where harken leaves the call to it; and who it was is counted."""
    try:
        result = ours()
    except LeftToKeras as left:
        why = str(left)
    else:
        _count(HARKEN)
        return result
    _count(why)
    return original()


def begin() -> None:
    """Count from 0."""
    with _lock:
        _counts.clear()


def calls() -> Calls:
    """Who computed the attention of Keras since `enable` began, and why Keras did where it did.

    Returns
    -------
    Calls
        The counts at this moment; they stay after `disable`.

    Examples
    --------
    >>> import keras
    >>> import harken.keras
    >>> layer = keras.layers.MultiHeadAttention(num_heads=2, key_dim=8, dropout=0.1)
    >>> x = keras.random.normal((1, 10, 16))
    >>> with harken.keras.enable():
    ...     y, scores = layer(x, x, return_attention_scores=True)
    ...     y = layer(x, x, training=True)
    >>> harken.keras.calls()
    Calls(harken=1, keras={'training with dropout': 1})
    """
    with _lock:
        return Calls(_counts[HARKEN], {who: n for who, n in _counts.items() if who != HARKEN})


def _count(who: str) -> None:
    with _lock:
        _counts[who] += 1
