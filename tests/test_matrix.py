"""The matrix engine: as exact as its terms, and what they do not hold is computed without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compare import DTYPES, Array, check, forced, in_form, poisoned, qkv, same_bits

import harken
from harken._load import core

Dtype = np.dtype[Any]
HELD = [name for name in DTYPES if name != "float64"]

pytestmark = pytest.mark.skipif("amx" not in harken.backends(), reason="no matrix engine here")


@pytest.fixture(autouse=True)
def matrix() -> Iterator[None]:
    """Every call takes the form, on the backend that has it."""
    with forced("amx"), in_form("matrix"):
        yield


@pytest.fixture(params=HELD)
def dtype(request: pytest.FixtureRequest) -> Dtype:
    return DTYPES[request.param]


def tiled(*arguments: Array, **options: Any) -> Any:
    with in_form("tiled", then="matrix"):
        return harken.attention(*arguments, **options)


def relative(out: Array, truth: Array) -> float:
    return float(np.linalg.norm(out.astype("f8") - truth) / np.linalg.norm(truth))


def test_it_is_chosen_for_many_queries() -> None:
    core._set_form(None)
    for name, Lq, Lk, form in (
        ("float32", 512, 512, "matrix"),
        ("bfloat16", 128, 128, "matrix"),
        ("float16", 128, 128, "matrix"),
        ("float64", 512, 1024, "tiled"),
        ("float32", 1, 4096, "decode"),
        ("bfloat16", 1, 4096, "decode"),
        ("float32", 60, 60, "brief"),
        ("float32", 112, 112, "matrix"),
    ):
        q, k, v = qkv(DTYPES[name], Lq, Lk, D=64)
        assert harken.explain(q, k, v).form == form, (name, Lq, Lk)
    q, k, v = qkv(np.float32, 512, 1024, D=64)
    assert harken.explain(q, k, v, alibi=0.1).form == "tiled"
    assert harken.explain(q, k, v, return_weights=True).form == "tiled"


@pytest.mark.parametrize("seed", range(8))
def test_sizes_of_every_kind(dtype: Dtype, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(10):
        Lq, Lk, D, Dv = (int(n) for n in rng.integers(1, 200, 4))
        q, k, v = qkv(dtype, Lq, Lk, D=D, Dv=Dv, Hkv=int(rng.integers(1, 3)), seed=seed)
        assert harken.explain(q, k, v).form == "matrix"
        options: dict[str, Any] = {
            "causal": True,
            "window": (int(rng.integers(0, 60)), int(rng.integers(0, 60))),
            "q_start": int(rng.integers(-5, Lk + 5)),
            "kv_lengths": int(rng.integers(0, Lk + 1)),
            "mask": rng.random((Lq, Lk)) < 0.7,
            "bias": rng.standard_normal((Lq, Lk)).astype(dtype),
            "softcap": 3.0,
            "sinks": np.array([0.5, -2.0]),
        }
        check(q, k, v, weights=False, **{name: x for name, x in options.items() if rng.random() < 0.3})


def test_six_products_are_as_exact_as_float32_and_fewer_are_what_they_say() -> None:
    q, k, v = qkv(np.float32, 300, 700, D=64)
    truth = harken.reference(q, k, v, dtype=np.float64)
    naive = relative(harken.reference(q, k, v), truth)
    errors = {}
    for precision in ("highest", "high", "medium"):
        plan = harken.explain(q, k, v, precision=precision)
        assert (plan.form, plan.precision, plan.why_precision) == ("matrix", precision, "what was asked for")
        errors[precision] = relative(harken.attention(q, k, v, precision=precision), truth)
    assert errors["highest"] < naive
    assert 1e-6 < errors["high"] < 3e-5
    assert 1e-4 < errors["medium"] < 1e-2
    core._set_form("tiled")
    plan = harken.explain(q, k, v, precision="high")
    assert plan.precision == "highest"
    assert plan.why_precision.startswith("'high' was asked for")


def test_a_row_that_needs_a_maximum_is_done_again_and_alone(dtype: Dtype) -> None:
    q, k, v = qkv(dtype, 100, 200, D=64)
    clean, clean_lse = harken.attention(q, k, v, return_lse=True)
    rows = [3, 40, 41, 99]
    for factor in (60, 1000):
        hard = q.copy()
        hard[:, rows] *= dtype.type(factor)
        out, lse = harken.attention(hard, k, v, return_lse=True)
        others = np.ones(lse.shape, bool)
        others[:, rows] = False
        same_bits(out, clean, where=others[..., None])
        same_bits(lse, clean_lse, where=others)
        expected, expected_lse = tiled(hard, k, v, return_lse=True)
        same_bits(out[:, rows], expected[:, rows])
        same_bits(lse[:, rows], expected_lse[:, rows])
    check(q * dtype.type(30), k, v, weights=False)


def test_scores_far_below_zero_are_done_again(dtype: Dtype) -> None:
    q, k, v = qkv(dtype, 40, 150, D=32)
    bias = np.full((40, 150), -200, dtype)
    bias[:20] = 0
    out = harken.attention(q, k, v, bias=bias)
    same_bits(out[:, :20], harken.attention(q, k, v, bias=np.zeros_like(bias))[:, :20])
    same_bits(out[:, 20:], tiled(q, k, v, bias=bias)[:, 20:])
    check(q, k, v, weights=False, bias=bias)


@pytest.mark.parametrize("size", [1e30, 1e19, 1e-19, 1e-30])
def test_numbers_that_terms_do_not_hold(size: float) -> None:
    q, k, v = qkv(np.float32, 40, 100, D=32)
    check(q, k, v * np.float32(size), weights=False)
    check(q * np.float32(size), k / np.float32(size), v, weights=False)
    check(q / np.float32(size), k * np.float32(size), v, weights=False)


def test_values_that_are_not_finite_reach_who_sees_them(dtype: Dtype) -> None:
    q, k, v = qkv(dtype, 70, 150, D=32)
    clean = harken.attention(q, k, v, causal=True)
    for poison in (np.nan, np.inf):
        spoiled = v.copy()
        spoiled[1, 120, 5] = poison
        out = harken.attention(q, k, spoiled, causal=True)
        sees = np.arange(70) + 80 >= 120
        assert not np.isfinite(out[1, sees, 5]).any()
        same_bits(out[1, ~sees], clean[1, ~sees])
        same_bits(out[0], clean[0])


@pytest.mark.parametrize("causal", [False, True])
def test_keys_may_end_anywhere_in_a_unit(dtype: Dtype, causal: bool) -> None:
    q, k, v = qkv(dtype, 50, 130, D=32)
    for Lk in (1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97, 129):
        few = (q, k[..., :Lk, :], v[..., :Lk, :])
        for options in ({}, {"softcap": 3.0}):
            check(*few, weights=False, causal=causal, **options)
        spoiled = [x.copy() for x in (k, v)]
        for x in spoiled:
            x[..., Lk:, :] = np.nan
        out, lse = harken.attention(q, *spoiled, kv_lengths=Lk, causal=causal, return_lse=True)
        expected, expected_lse = harken.attention(*few, causal=causal, return_lse=True)
        same_bits(out, expected)
        same_bits(lse, expected_lse)


@pytest.mark.parametrize("options", [{"causal": True}, {"window": (20, 9)}, {"causal": True, "softcap": 3.0}])
def test_a_row_is_the_same_wherever_the_diagonal_meets_its_strip(dtype: Dtype, options: dict[str, Any]) -> None:
    q, k, v = qkv(dtype, 70, 130, D=32)
    start = 41
    out, lse = harken.attention(q, k, v, q_start=start, return_lse=True, **options)
    check(q, k, v, weights=False, q_start=start, **options)
    for i in (1, 7, 15, 16, 17, 31, 33, 48, 69):
        part, part_lse = harken.attention(q[..., i:, :], k, v, q_start=start + i, return_lse=True, **options)
        same_bits(part, out[..., i:, :])
        same_bits(part_lse, lse[..., i:])


def test_layouts_give_the_same_bits(dtype: Dtype) -> None:
    q, k, v = qkv(dtype, 70, 150, D=64)
    expected = harken.attention(q, k, v)
    for step in (1, 2):
        same_bits(harken.attention(*(poisoned(x, step=step) for x in (q, k, v))), expected)
    swapped = (x.swapaxes(-3, -2).copy() for x in (q, k, v))
    same_bits(harken.attention(*swapped, head_axis=-2).swapaxes(-3, -2), expected)
    wide = np.zeros((2, 150, 4096 // dtype.itemsize), dtype)[..., :64]
    wide[...] = k
    same_bits(harken.attention(q, wide, v), expected)


def test_a_large_call_uses_ranges_and_groups() -> None:
    q, k, v = qkv(ml_dtypes.bfloat16, 40, 9000, D=32, Hq=4, Hkv=2)
    plan = harken.explain(q, k, v)
    assert (plan.form, plan.heads, plan.ranges) == ("matrix", 2, 3)
    check(q, k, v, weights=False)
    check(q, k, v, weights=False, kv_lengths=4100, sinks=np.arange(4.0))
