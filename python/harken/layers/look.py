"""Who may look where in a call of a layer: its options without what is not said, and as packed sequences take them."""

from __future__ import annotations

from typing import Any

import numpy as np

from harken.attention import Window
from harken.layers.rows import Rows
from harken.masks import Mask

Look = dict[str, Any]


def looking(mask: Any, bias: Any, causal: bool, window: Window | None) -> Look:
    """Who may look where, without what is not said."""
    given = {"mask": mask, "bias": bias, "causal": causal or None, "window": window}
    return {name: value for name, value in given.items() if value is not None}


def packable(rows: Rows, source: Rows, look: Look) -> bool:
    """Whether sequences can meet without padding: a mask or bias that is an array has one batch axis to be cut from."""
    plain = "mask" not in look and "bias" not in look
    return rows.lead == source.lead and (plain or (len(rows.lead) <= 1 and not isinstance(look.get("mask"), Mask)))


def cornered(rows: Rows, source: Rows, heads: int, look: Look) -> Look:
    """Arrays over (..., H, L, Lk) as packed sequences take them, over the longest sequences."""
    cut: Look = {}
    full = (*rows.lead, heads, rows.L, source.L)
    for name in ("mask", "bias"):
        if name in look:
            array = np.asarray(look[name])
            try:
                fitting = np.broadcast_shapes(array.shape, full) == full
            except ValueError:
                fitting = False
            if not fitting:
                raise ValueError(
                    f"{name} has shape {array.shape}: wanted one that broadcasts to {full}, (..., H, L, Lk)"
                )
            cut[name] = np.atleast_2d(array)[..., : rows.longest, : source.longest]
    return cut
