"""Statistics under masks of harken.masks, of additive scores, and of keys in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import qkv
from test_stats import agree

import harken
from harken import attention_stats

MASKS = [
    harken.masks.Window(9, 3) | harken.masks.Prefix(2),
    ~harken.masks.Window(4, 4) & harken.masks.Causal(),
    harken.masks.Blocks(np.eye(12, dtype=bool), 16) & np.tri(70, 90, dtype=bool),
    harken.masks.Documents(np.repeat([0, 1, 2], 50)),
]


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_masks_by_what_they_mean(mask: Any) -> None:
    q, k, _ = qkv(np.float32, 70, 90, D=16, Hq=4, Hkv=2, batch=(2,))
    agree(q, k, 5, [0, 3, 69], mask=mask)
    agree(q, k, 5, None, mask=mask, window=(30, None), q_start=np.array([0, 20]))


def test_additive_scores_and_integers() -> None:
    q, k, _ = qkv(np.float32, 40, 50, D=16, Hq=4, Hkv=2, batch=(2,))
    w = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    agree(q, k, 3, [7], score="additive", w=w)
    n, scale = harken.quantize(k)
    found = attention_stats(q, n, k_scale=scale, top_k=3, entropy=True, per_key_mass=True, rows=[5])
    same = attention_stats(q, n * scale, top_k=3, entropy=True, per_key_mass=True, rows=[5])
    for name in ("lse", "top_indices", "top_weights", "entropy", "per_key_mass", "row_weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(same, name))
    turned = attention_stats(
        q.swapaxes(-3, -2), n.swapaxes(-3, -2), k_scale=scale.swapaxes(-3, -2), head_axis=-2, entropy=True
    )
    np.testing.assert_array_equal(turned.entropy, same.entropy)
