"""Labels and marks as they are given, checked."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np


def labels_of(name: str, labels: Any, count: int, what: str) -> list[str] | None:
    """One label, fit to be drawn, for each of `count` queries or keys."""
    from harken.plot.ticks import shown

    if labels is None:
        return None
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise TypeError(f"{name} is {labels!r}: wanted a list with one label for each of the {what}")
    texts = [shown(one) for one in labels]
    if len(texts) != count:
        raise ValueError(f"{name} holds {len(texts)} labels, there are {count} {what}: wanted one for each")
    return texts


def marks_of(mark: Any, most: int) -> list[int]:
    """Numbers of queries or keys."""
    if not isinstance(mark, (Collection, np.ndarray)) or isinstance(mark, (str, bytes)):
        raise TypeError(f"mark is {mark!r}: wanted a list of numbers of queries and keys")
    found = []
    for one in mark:
        if not hasattr(one, "__index__"):
            raise TypeError(f"mark holds {one!r}: wanted integers, the numbers of queries and keys")
        found.append(operator.index(one))
        if not 0 <= found[-1] < most:
            raise ValueError(f"mark holds {one}: wanted 0 to {most - 1}, the numbers of queries and keys")
    return found
