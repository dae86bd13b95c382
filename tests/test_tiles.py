"""Weights come in tiles of bounded size, which leave out what no query of theirs sees, and memory is that of a tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from child import in_child
from compare import DTYPES, Array, qkv
from test_memory import MIB, resident

import harken
from harken import attention_stats, tiles

ALL: dict[str, Any] = {"top_k": 3, "per_key_mass": True, "entropy": True}


def test_a_cut_covers_everything_once() -> None:
    for shape in [(), (1,), (5,), (3, 4), (2, 3, 4), (2, 0, 4), (0,)]:
        for most in (0, 1, 2, 5, 9, 100):
            count = np.zeros(shape, int)
            for part in tiles.cut(shape, most):
                count[part] += 1
                assert count[part].size <= max(most, 1)
            assert (count == 1).all()


def visited(
    monkeypatch: pytest.MonkeyPatch, *shapes: tuple[int, ...], dtype: Any = np.float32, **options: Any
) -> Array:
    """How many weights there are in each tile of a call."""
    sizes = []

    def attention(*arguments: Any, **given: Any) -> Any:
        results = harken.attention(*arguments, **given)
        assert given["return_weights"]
        sizes.append(results[2].size)
        return results

    with monkeypatch.context() as patch:
        patch.setattr(tiles, "attention", attention)
        q, k = (np.zeros(shape, dtype) for shape in shapes)
        attention_stats(q, k, per_key_mass=True, **options)
    return np.array(sizes)


def test_tiles_are_small_and_cover_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    most = tiles.TILE // 4
    for q, k in [((2, 8, 700, 8), (2, 2, 900, 8)), ((40, 12, 16, 8), (40, 12, 16, 8)), ((3, 1, 64), (3, 300000, 64))]:
        sizes = visited(monkeypatch, q, k)
        assert sizes.max() <= most
        assert sizes.sum() == q[0] * (q[1] * q[2] if len(q) == 4 else q[1]) * k[-2]
        assert len(sizes) <= 1 + 2 * sizes.sum() // most
    assert visited(monkeypatch, (1, 5, 8), (1, tiles.TILE, 8)).tolist() == [tiles.TILE] * 5  # one query is more
    L = 3000
    whole = 2 * L * L
    assert visited(monkeypatch, (2, L, 8), (2, L, 8), causal=True).sum() < 0.6 * whole
    assert visited(monkeypatch, (2, L, 8), (2, L, 8), window=(100, 0)).sum() < 0.3 * whole
    assert visited(monkeypatch, (2, L, 8), (2, L, 8), kv_lengths=L // 4).sum() == whole // 4
    assert visited(monkeypatch, (2, L, 8), (2, L, 8), q_lengths=L // 4).sum() == whole // 4


def test_one_row_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows alone cost their own weights only."""
    sizes = []
    original = tiles.Whole._tile
    monkeypatch.setattr(tiles.Whole, "_tile", lambda *given: sizes.append(given[-1]) or original(*given))
    q = np.zeros((1, 2000, 8))
    attention_stats(q, q, rows=[1500, 3, 4, 1500])
    assert sizes == [slice(3, 5), slice(1500, 1501)]


def growth(kind: str) -> int:
    """By how much the highest ever memory of the process grows in one call, its results included."""
    L = 8000
    q, k, _ = qkv(DTYPES["bfloat16"] if kind == "bfloat16" else np.float32, L, L, D=8, Hq=1)
    if kind == "all alike":
        q[...] = 0
    attention_stats(q[:, :300], k[:, :300], **ALL)
    before = resident("VmHWM")
    attention_stats(q, k, **ALL, rows=[0, L // 2], causal=kind == "causal")
    return resident("VmHWM") - before


@pytest.mark.parametrize("kind", ["plain", "causal", "bfloat16", "all alike"])
def test_memory(kind: str) -> None:
    assert in_child(growth, kind) < 24 * MIB  # the weights would be 244
