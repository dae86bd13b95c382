"""Additive attention, sum_d w_d tanh(q_d + k_d): exact at every magnitude, and all else as for every other score."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
from child import in_child
from compare import DTYPES, Array, check, close, forced, in_form, poisoned, qkv, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import calls
from test_memory import resident

import harken

Dtype = np.dtype[Any]

FLOAT32 = DTYPES["float32"]
ADDITIVE: dict[str, Any] = {"score": "additive"}
rows = pytest.mark.parametrize("Lq", [1, 3, 9, 40])
forms = pytest.mark.parametrize("form", ["tiled", "decode"])


def call(dtype: Dtype, Lq: int, Lk: int = 70, D: int = 24, **shape: Any) -> tuple[Array, Array, Array]:
    """Two batches of four query heads over two key heads."""
    return qkv(dtype, Lq, Lk, **{"D": D, "Hq": 4, "Hkv": 2, "batch": (2,), **shape})


def normal(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


# --- the equation ---


@pytest.mark.parametrize("use_scale", [False, True])
def test_is_keras_additive_attention(backend: str, use_scale: bool) -> None:
    """Keras: scores = reduce_sum(scale * tanh(q + k)), softmax(scores), matmul with v; causal from the first."""
    q, k, v = qkv(np.float64, 7, 7, D=12, Hq=1, batch=(3,))
    scale = normal(12) if use_scale else 1.0
    scores = np.sum(scale * np.tanh(q[..., :, None, :] + k[..., None, :, :]), axis=-1)
    scores[..., ~np.tri(7, dtype=bool)] = -1e9
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    w = normal(12) if use_scale else None
    out, p = harken.additive_attention(q, k, v, w, causal=True, q_start=0, return_weights=True)
    np.testing.assert_allclose(out, weights @ v, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(p, weights, rtol=1e-12, atol=1e-12)


@rows
@pytest.mark.parametrize("D", [1, 2, 3, 8, 17, 33, 64, 129])
def test_every_depth(backend: str, dtype: Dtype, Lq: int, D: int) -> None:
    check(*call(dtype, Lq, 20, D=D, Dv=9, batch=()), w=normal(D), **ADDITIVE)


@pytest.mark.parametrize("Lq", [1, 2, 5, 8, 16, 33, 130])
@pytest.mark.parametrize("Lk", [1, 3, 16, 63, 131])
def test_every_length(backend: str, Lq: int, Lk: int) -> None:
    check(*call(FLOAT32, Lq, Lk, D=6), **ADDITIVE)


def test_ranges_of_keys(backend: str, dtype: Dtype) -> None:
    for Lq in (2, 9):
        q, k, v = call(dtype, Lq, 4500, D=3, batch=())
        assert harken.explain(q, k, v, **ADDITIVE).ranges > 1
        check(q, k, v, weights=False, w=normal(3), **ADDITIVE)


@rows
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7])
def test_groups_of_heads_each_with_its_own_w(backend: str, Lq: int, group: int) -> None:
    check(*call(FLOAT32, Lq, Hq=2 * group), w=normal(2 * group, 24), scale=normal(2 * group), **ADDITIVE)


W: dict[str, Any] = {
    "none": None,
    "one": np.float64(0.5),
    "channels": normal(24),
    "heads": normal(4, 24),
    "batch": normal(2, 1, 24),
    "a head's": normal(2, 4, 1),
    "all": normal(2, 4, 24),
    "integers": [1, -2, 3] * 8,
    "float16": normal(24).astype(np.float16),
    "bfloat16": normal(24).astype(DTYPES["bfloat16"]),
    "strides": poisoned(normal(4, 24), step=3),
    "backwards": normal(24)[::-1],
    "swapped": normal(24).astype(">f4"),
    "zeros": np.zeros(24),
}


@pytest.mark.parametrize("Lq", [2, 40])
@pytest.mark.parametrize("which", W)
def test_w(backend: str, dtype: Dtype, Lq: int, which: str) -> None:
    check(*call(dtype, Lq), w=W[which], **ADDITIVE)


@rows
def test_no_w_is_ones(backend: str, dtype: Dtype, Lq: int) -> None:
    q, k, v = call(dtype, Lq)
    same_bits(harken.additive_attention(q, k, v), harken.additive_attention(q, k, v, np.ones(24, np.float32)))


def test_is_a_score_of_attention(backend: str) -> None:
    q, k, v = call(FLOAT32, 9)
    w = normal(24)
    for actual, expected in zip(
        harken.additive_attention(q, k, v, w, causal=True, return_lse=True, return_weights=True),
        harken.attention(q, k, v, **ADDITIVE, w=w, causal=True, return_lse=True, return_weights=True),
        strict=True,
    ):
        same_bits(actual, expected)


# --- all that other scores have ---

OPTIONS: dict[str, dict[str, Any]] = {
    "mask": {"mask": np.random.default_rng(0).random((4, 9, 70)) < 0.5},
    "bias": {"bias": normal(2, 1, 9, 70)},
    "causal": {"causal": True},
    "window": {"window": (20, 3), "q_start": 30},
    "lengths": {"q_lengths": np.array([9, 4]), "kv_lengths": np.array([0, 33])},
    "scale": {"scale": [0.5, -1.0, 0.0, 3.0]},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi": [0.1, 0.2, 0.0, 0.01]},
    "sinks": {"sinks": normal(2, 4)},
}


@pytest.mark.parametrize("head_axis", [-3, -2])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(backend: str, dtype: Dtype, option: str, head_axis: int) -> None:
    q, k, v = call(dtype, 9)
    if head_axis == -2:
        q, k, v = (x.swapaxes(-3, -2) for x in (q, k, v))
    for form in ("tiled", "decode"):
        with in_form(form):
            check(q, k, v, w=normal(4, 24), head_axis=head_axis, **ADDITIVE, **OPTIONS[option])


@pytest.mark.parametrize("name", harken.backends())
@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_options_together(name: str, data: st.DataObject) -> None:
    dtype, special = data.draw(st.sampled_from(list(DTYPES.values()))), data.draw(st.booleans())
    q, k, v, options = data.draw(calls(dtype, st.integers(0, 40), st.integers(0, 80), st.integers(1, 20), special))
    Hq = 1 if q.ndim == 2 else q.shape[options["head_axis"]]
    w = data.draw(st.sampled_from([None, normal(q.shape[-1]), normal(Hq, q.shape[-1])]))
    with forced(name):
        check(q, k, v, **{**options, **ADDITIVE, "w": w})


def test_merge(backend: str) -> None:
    q, k, v = call(FLOAT32, 9)
    parts = [
        harken.additive_attention(q, k[..., a:b, :], v[..., a:b, :], return_lse=True)
        for a, b in ((0, 1), (1, 30), (30, 70))
    ]
    whole = harken.additive_attention(q, k, v, return_lse=True)
    for actual, expected in zip(harken.merge(parts), whole, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


# --- magnitudes ---


@forms
@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.05, 0.2, 0.5, 1.0, 3.0, 6.0, 10.0, 30.0, 300.0, 1e4])
def test_magnitudes(backend: str, dtype: Dtype, form: str, size: float) -> None:
    for Lk in (2, 50):  # an error of the scores shows where keys are few
        q, k, v = call(dtype, 9, Lk, D=64)
        q, k = ((x * size).astype(dtype) for x in (q, k))
        with in_form(form):
            check(q, k, v, **ADDITIVE)


@forms
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_scores_of_small_numbers_have_small_errors(backend: str, form: str, scale: float) -> None:
    """As small as NumPy's: seen through lse of one key, which is its score."""
    for size in (1e-4, 1e-2, 0.1):
        q, k, v = (np.float32(size) * normal(1, 200, 64, seed=n).astype(np.float32) for n in range(3))
        ways: dict[str, Any] = {**ADDITIVE, "scale": scale, "return_lse": True}
        sights: dict[str, Any] = {"window": (0, 0), "q_start": 0}
        truth, naive = (harken.reference(q, k, v, **ways, **sights, dtype=t)[1] for t in (np.float64, np.float32))
        with in_form(form):
            lse = harken.attention(q, k, v, **ways, **sights)[1]
        close(f"scores of {size}", lse, naive, truth)


@forms
def test_magnitudes_of_every_kind_meet(backend: str, dtype: Dtype, form: str) -> None:
    """Rows and keys of their own sizes: every way to a score within one block."""
    q, k, v = call(dtype, 37, 90, D=16)
    q = (q * np.logspace(-4, 2.2, 37)[:, None]).astype(dtype)
    k = (k * np.logspace(2.2, -4, 90)[:, None]).astype(dtype)
    with in_form(form):
        check(q, k, v, w=normal(4, 16) / 4, **ADDITIVE)


@forms
def test_large_numbers_that_cancel(backend: str, form: str) -> None:
    for dtype, most in ((np.float32, 40), (np.float64, 400)):
        q = np.linspace(-most, most, 41)[:, None] * np.ones(8)
        k = -q + np.linspace(-3, 3, 8)
        v = normal(41, 5)
        with in_form(form):
            check(*(x.astype(dtype) for x in (q, k, v)), w=normal(8), **ADDITIVE)


@forms
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e3, 1e30, 1e38])
def test_any_w(backend: str, form: str, size: float) -> None:
    q, k, v = call(FLOAT32, 9)
    with in_form(form):
        check(q, k, v, w=(normal(24) * size).astype(np.float32), scale=0.5 / size, **ADDITIVE)


# --- edges ---


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
@forms
def test_special_numbers(backend: str, dtype: Dtype, form: str, special: float) -> None:
    for where in itertools.product((True, False), repeat=3):
        q, k, v = call(dtype, 9)
        w = normal(4, 24)
        for at, x in zip(where, (q, k, w), strict=True):
            if at:
                x[..., 1, 3] = special
        with in_form(form):
            check(q, k, v, w=w, **ADDITIVE)


def test_infinities_that_meet(backend: str) -> None:
    q, k, v = call(FLOAT32, 9)
    q[..., 2, 5], k[..., 7, 5], k[..., 8, 5] = np.inf, -np.inf, np.inf
    check(q, k, v, **ADDITIVE)
    assert np.isnan(harken.additive_attention(q, k, v)[..., 2, :]).all()
    assert np.isfinite(harken.additive_attention(q, k, v, window=(0, 0), q_start=0)).all()


@pytest.mark.parametrize("sizes", [(0, 5, 3), (5, 0, 3), (5, 7, 0), (0, 0, 0), (40, 7, 0)], ids=str)
def test_nothing(backend: str, dtype: Dtype, sizes: tuple[int, int, int]) -> None:
    Lq, Lk, D = sizes
    check(*call(dtype, Lq, Lk, D=D, Dv=4), w=normal(D), **ADDITIVE)
    q, k, v = call(dtype, 3, 4, Hq=0, Hkv=0)
    assert harken.additive_attention(q, k, v).shape == q.shape
    check(*call(dtype, 3, 4, Dv=0), **ADDITIVE)


@forms
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30, 1e-30], ids=str)
def test_what_is_hidden_changes_no_bit(backend: str, form: str, poison: float) -> None:
    q, k, v = call(FLOAT32, 9, 150)
    hidden = np.random.default_rng(3).random(150) < 0.4
    options: dict[str, Any] = {"mask": ~hidden, "kv_lengths": 140, "w": normal(24), "return_lse": True}
    with in_form(form):
        clean = harken.attention(q, k, v, **ADDITIVE, **options)
        for x in (k, v):
            x[..., hidden, :] = x[..., 140:, :] = poison
        for actual, expected in zip(harken.attention(q, k, v, **ADDITIVE, **options), clean, strict=True):
            same_bits(actual, expected)


# --- the house's other promises ---


@forms
@pytest.mark.parametrize("Lq", [5, 60])
def test_bits(backend: str, dtype: Dtype, form: str, Lq: int) -> None:
    """They are a matter of a row's own problem: not of threads, neighbours, strides or results."""
    q, k, v = call(dtype, Lq, 200, D=40)
    q[1] *= 20  # other rows of the tile take another way
    w = normal(2, 4, 40)
    with in_form(form):
        out, lse = harken.additive_attention(q, k, v, w, causal=True, return_lse=True)
        for threads in (1, 3):
            same_bits(harken.additive_attention(q, k, v, w, causal=True, threads=threads), out)
        for b, h in itertools.product(range(2), range(4)):
            alone = harken.additive_attention(q[b, h], k[b, h // 2], v[b, h // 2], w[b, h], causal=True)
            same_bits(alone, out[b, h])
        spoiled = q.copy()
        spoiled[:, :, 1] = np.nan
        spoiled[:, :, 2] = 1e4
        others = np.ones(Lq, bool)
        others[1:3] = False
        rest = np.broadcast_to(others[:, None], out.shape)
        same_bits(harken.additive_attention(spoiled, k, v, w, causal=True), out, where=rest)
        into = poisoned(np.zeros_like(q), step=2)
        strided = poisoned(q, step=3), poisoned(k), v[..., ::-1].copy()[..., ::-1]
        harken.additive_attention(*strided, w, causal=True, out=into)
        same_bits(into, out)
        heads_last = [x.swapaxes(-3, -2).copy() for x in (q, k, v)]
        same_bits(harken.additive_attention(*heads_last, w, causal=True, head_axis=-2).swapaxes(-3, -2), out)
        same_bits(harken.additive_attention(q, k, v, w, causal=True, return_lse=True)[1], lse)


def growth() -> int:
    """By how much the highest ever memory grows in one call, less its result."""
    q, k, v = qkv(np.float32, 16384, 16384, D=2, Hq=1)
    out = np.zeros_like(q)
    harken.additive_attention(q[:, :300], k[:, :300], v[:, :300])
    before = resident("VmHWM")
    harken.additive_attention(q, k, v, causal=True, out=out)
    return resident("VmHWM") - before


def test_memory() -> None:
    assert in_child(growth) < 8 * 2**20  # (Lq, Lk, D) would be 2 GiB
    x = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (8, 8, 100000, 256), (0, 0, 0, 0))
    assert harken.explain(x, x, x, **ADDITIVE, threads=2).workspace_bytes < 16 * 2**20


def test_plan(backend: str) -> None:
    for Lq, form in ((1, "decode"), (100, "tiled")):
        q, k, v = call(FLOAT32, Lq)
        plan = harken.explain(q, k, v, **ADDITIVE, w=np.ones(24))
        assert plan.form == form
        assert plan.why_form.startswith("additive")
        for other in ("brief", "matrix"):
            with in_form(other):
                assert harken.explain(q, k, v, **ADDITIVE).form == form


def test_signature() -> None:
    ours, whole = (inspect.signature(f).parameters for f in (harken.additive_attention, harken.attention))
    assert list(ours)[:4] == ["q", "k", "v", "w"]
    assert set(whole) - set(ours) == {"score"}
    assert {n: p.default for n, p in ours.items()}.items() <= {n: p.default for n, p in whole.items()}.items()


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"w": np.ones(5)}, ValueError,
     "w has shape (5,): wanted one that broadcasts to (2, 4, 24), (..., Hq, D)"),
    ({"w": np.ones((3, 24))}, ValueError,
     "w has shape (3, 24): wanted one that broadcasts to (2, 4, 24), (..., Hq, D)"),
    ({"w": np.ones(24, complex)}, TypeError,
     "w is complex128: wanted float64, float32, float16 or bfloat16, for example w.astype(np.float32)"),
    ({"w": np.ones(24), "score": "dot"}, ValueError,
     "w is given, and score is 'dot': only score='additive' weighs channels; leave w=None"),
    ({"score": "concat"}, ValueError, "score is 'concat': wanted 'dot', 'cosine' or 'additive'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=lambda x: str(x)[:30])
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    q, k, v = call(FLOAT32, 9)
    out = np.full_like(q, 5)
    for function in (harken.attention, harken.explain):
        with pytest.raises(error) as raised:
            function(q, k, v, **{**ADDITIVE, **options}, out=out)
        assert str(raised.value) == message
    assert (out == 5).all()


def test_unknown_keywords() -> None:
    q, k, v = call(FLOAT32, 9)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'is_causal'\. Did you mean 'causal'"):
        harken.additive_attention(q, k, v, is_causal=True)
