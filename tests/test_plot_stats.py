"""Pictures of statistics: the panels hold the numbers that `attention_stats` gave."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import clashes, pixels

import harken
from harken import plot

pytest.importorskip("matplotlib")

RNG = np.random.default_rng(4)
WORDS = [f"word{n}" for n in range(30)]


def test_panels_are_what_stats_hold() -> None:
    q, k = RNG.standard_normal((2, 30, 8))
    found = harken.attention_stats(q, k, top_k=3, entropy=True, per_key_mass=True, rows=[4, 9])
    top, entropy, mass, rows = plot.stats(found, WORDS, title="one head")
    dots = top.collections[0]
    order = np.argsort(found.top_weights, axis=None, kind="stable")
    np.testing.assert_array_equal(dots.get_offsets()[:, 0], found.top_indices.ravel()[order])
    np.testing.assert_array_equal(dots.get_offsets()[:, 1], np.repeat(np.arange(30), 3)[order])
    np.testing.assert_allclose(dots.get_array(), np.sort(found.top_weights, axis=None))
    np.testing.assert_allclose(entropy.patches[0].get_data().values, found.entropy)
    np.testing.assert_allclose(mass.patches[0].get_data().values, found.per_key_mass)
    np.testing.assert_allclose(rows.images[0].get_array(), found.row_weights)
    pixels(top)
    assert not clashes(top)


def test_stats_of_heads() -> None:
    q, k = RNG.standard_normal((2, 2, 3, 20, 8))
    found = harken.attention_stats(q, k, entropy=True, per_key_mass=True)
    entropy, mass = plot.stats(found)
    np.testing.assert_allclose(entropy.images[0].get_array(), found.entropy.reshape(6, 20))
    np.testing.assert_allclose(mass.images[0].get_array(), found.per_key_mass.reshape(6, 20))
    (lse,) = plot.stats(harken.attention_stats(q, k))
    np.testing.assert_allclose(lse.images[0].get_array(), found.lse.reshape(6, 20))
    (chosen,) = plot.stats(found, show=["per_key_mass"], ax=lse)
    assert chosen is lse


def test_stats_of_queries_that_see_nothing() -> None:
    q, k = RNG.standard_normal((2, 6, 8))
    pixels(plot.stats(harken.attention_stats(q, k, mask=np.zeros((6, 6), bool), top_k=2, entropy=True)))
    pixels(plot.stats(harken.attention_stats(q, k, mask=np.eye(6, k=1, dtype=bool))))
