"""Few keys, all at once and without a running maximum: rows that cannot do without one are computed once more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from compare import Array, check, in_form, poisoned, qkv, same_bits

import harken
from harken._load import core

Dtype = np.dtype[Any]


@pytest.fixture(autouse=True)
def brief() -> Iterator[None]:
    """Every call takes this form, where the plan would choose another one too."""
    with in_form("brief"):
        yield


def tiled(*arguments: Array, **options: Any) -> Any:
    """The same call in the form that keeps a running maximum."""
    with in_form("tiled", then="brief"):
        return harken.attention(*arguments, **options)


def test_it_is_chosen_where_keys_are_few(backend: str, dtype: Dtype) -> None:
    core._set_form(None)
    if backend == "amx" and dtype != np.float64:
        pytest.skip("a matrix engine takes some of these")
    for Lq, Lk, D, form in (
        (16, 16, 64, "brief"),
        (60, 60, 32, "brief"),
        (10, 10, 512, "brief"),
        (7, 7, 64, "brief"),
        (2, 60, 64, "decode"),
        (128, 1024, 64, "tiled"),
        (128, 60, 16, "tiled"),
    ):
        q, k, v = qkv(dtype, Lq, Lk, D=D)
        assert harken.explain(q, k, v).form == form
        assert harken.explain(q, k, v, return_weights=True).form == "tiled"


def options_of(rng: np.random.Generator, dtype: Dtype, Lq: int, Lk: int) -> dict[str, Any]:
    """Some of all options."""
    every: dict[str, Any] = {
        "causal": True,
        "window": (int(rng.integers(0, 30)), int(rng.integers(0, 30))),
        "q_start": int(rng.integers(-5, Lk + 5)),
        "kv_lengths": int(rng.integers(0, Lk + 1)),
        "q_lengths": int(rng.integers(0, Lq + 1)),
        "mask": rng.random((Lq, Lk)) < 0.7,
        "bias": rng.standard_normal((Lq, Lk)).astype(dtype),
        "softcap": 3.0,
        "alibi": np.array([0.1, 0.02]),
        "sinks": np.array([0.5, -2.0]),
        "score": "cosine",
        "scale": 0.3,
    }
    chance = rng.choice([0.0, 0.15, 0.4])
    return {name: value for name, value in every.items() if rng.random() < chance}


@pytest.mark.parametrize("seed", range(6))
def test_sizes_of_every_kind(backend: str, dtype: Dtype, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(12):
        Lq, Lk, D, Dv = (int(n) for n in rng.integers(1, 141, 4))
        q, k, v = qkv(dtype, Lq, Lk, D=D, Dv=Dv, Hkv=int(rng.integers(1, 3)), seed=seed)
        if rng.random() < 0.3:
            q, k, v = (poisoned(x, step=2) for x in (q, k, v))
        check(q, k, v, **options_of(rng, dtype, Lq, Lk), weights=False)


@pytest.mark.parametrize("sharpness", [40, 1000])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"bias": np.ones(90, np.float32)}], ids=str)
def test_sharp_rows_leave_their_neighbours(backend: str, sharpness: int, options: dict[str, Any]) -> None:
    for dtype in (np.float32, np.float64):
        q, k, v = qkv(dtype, 90, 90, D=40)
        if dtype == np.float64:
            sharpness *= 10
        plain, plain_lse = harken.attention(q, k, v, **options, return_lse=True)
        sharp = np.zeros((2, 90), bool)
        sharp[0, 3], sharp[1, 40:90:7] = True, True
        q[sharp] *= sharpness
        check(q, k, v, **options, weights=False)
        out, lse = harken.attention(q, k, v, **options, return_lse=True)
        same_bits(out, plain, where=~sharp[..., None])
        same_bits(lse, plain_lse, where=~sharp)
        expected, expected_lse = tiled(q, k, v, **options, return_lse=True)
        over = np.abs(expected_lse) > (60 if dtype == np.float32 else 400)
        assert (over & sharp).any()
        if "causal" not in options:  # there the sums are cut where a tile's diagonal is, and tiles lie elsewhere
            same_bits(out, expected, where=over[..., None])
            same_bits(lse, expected_lse, where=over)


@pytest.mark.parametrize("sharpness", [0, 1, 40, 1000])
def test_any_logits(backend: str, dtype: Dtype, sharpness: int) -> None:
    q, k, v = qkv(dtype, 70, 80, D=32)
    check(q * dtype.type(sharpness), k, v, weights=False)
    for shift in (-1000, -70, -30, 30, 70, 1000):  # of all logits, which no softmax shows
        check(q, k, v, bias=np.full(80, shift, np.float32), weights=False)
        check(q, k, v, bias=np.linspace(0, shift, 80, dtype=np.float32), causal=True, weights=False)


@pytest.mark.parametrize("size", [1e-20, 1e20, 1e37])
def test_values_of_any_size(backend: str, size: float) -> None:
    q, k, v = qkv(np.float32, 40, 50, D=32)
    for shift in (-20, 0, 20, 40):
        check(q, k, v * np.float32(size), bias=np.full(50, shift, np.float32), weights=False)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("Dv", [48, 5])
def test_what_is_hidden_changes_no_bit(backend: str, dtype: Dtype, poison: float, Dv: int) -> None:
    q, k, v = qkv(dtype, 75, 90, D=32, Dv=Dv)
    j = np.arange(90)
    for options, hides in (
        ({"causal": True, "q_start": 2}, j > 76),
        ({"window": (3, 4), "q_start": 7}, (j < 4) | (j > 85)),
        ({"kv_lengths": 60}, j >= 60),
        ({"mask": j % 3 > 0}, j % 3 == 0),
        ({"mask": j % 3 > 0, "causal": True, "alibi": np.ones(2)}, j % 3 == 0),
    ):
        clean = harken.attention(q, k, v, **options, return_lse=True)
        K, V = k.copy(), v.copy()
        K[:, hides], V[:, hides] = poison, poison
        for one, other in zip(harken.attention(q, K, V, **options, return_lse=True), clean, strict=True):
            same_bits(one, other)


@pytest.mark.parametrize("how", [{}, {"causal": True}, {"window": (20, 0)}, {"mask": np.tri(80, dtype=bool)}], ids=str)
def test_what_is_seen_reaches_who_sees_it(backend: str, dtype: Dtype, how: dict[str, Any]) -> None:
    q, k, v = qkv(dtype, 80, 80, D=40)
    clean, clean_lse = harken.attention(q, k, v, **how, return_lse=True)
    i = np.arange(80)
    sees = np.full(80, True) if not how else (i >= 33) & (i - 33 <= how.get("window", (80, 0))[0])

    V = v.copy()
    V[1, 33, 3] = np.nan
    out, lse = harken.attention(q, k, V, **how, return_lse=True)
    spoiled = np.zeros(out.shape, bool)
    spoiled[1, sees, 3] = True
    np.testing.assert_array_equal(np.isnan(out), spoiled)
    same_bits(out, clean, where=~spoiled)
    same_bits(lse, clean_lse)

    K = k.copy()
    K[1, 33, 3] = np.nan
    out, lse = harken.attention(q, K, v, **how, return_lse=True)
    spoiled[1, sees] = True
    np.testing.assert_array_equal(np.isnan(out), spoiled)
    same_bits(out, clean, where=~spoiled)
    same_bits(lse, clean_lse, where=~spoiled[..., 0])


def test_rows_that_see_nothing(backend: str, dtype: Dtype) -> None:
    q, k, v = qkv(dtype, 50, 40, D=32)
    mask = np.ones((50, 40), bool)
    mask[7:40:3] = False
    out, lse = harken.attention(q, k, v, mask=mask, return_lse=True)
    assert not out[:, 7:40:3].any()
    assert (lse[:, 7:40:3] == -np.inf).all()
    check(q, k, v, mask=mask, sinks=np.array([0.0, -80.0]), weights=False)
    check(q, k, v, causal=True, q_start=-20, weights=False)
    check(q, k, v, kv_lengths=0, weights=False)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("head_axis", [-3, -2])
def test_more_than_the_cache_holds(backend: str, head_axis: int, threads: int) -> None:
    """Calls of several MiB bring the next head near: as it lies, backwards, broadcast."""
    q, k, v = qkv(np.float32, 100, 100, D=64, Hq=6, batch=(12,))
    alone = [harken.attention(a, b, c) for a, b, c in zip(q, k, v, strict=True)]
    same_bits(harken.attention(q, k, v, threads=threads), np.array(alone))
    if head_axis == -2:
        q, k, v = (np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v))
        same_bits(harken.attention(q, k, v, threads=threads), np.array(alone))
    backwards = [np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1] for x in (q, k, v)]
    same_bits(harken.attention(*backwards, threads=threads), np.array(alone))
    one = np.broadcast_to(k[:1, :1, :1, :1], k.shape)
    assert harken.attention(q, one, one, threads=threads).shape == q.shape
