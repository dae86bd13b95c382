"""What attention_stats says is what the dense weights in float64 say, whatever the options, types and layouts."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, EPSILON, Array, forced, poisoned, qkv, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import calls

import harken
from harken import attention_stats, stats, tiles

ALL: dict[str, Any] = {"top_k": 3, "per_key_mass": True, "entropy": True}


def dense(q: Array, k: Array, **options: Any) -> tuple[Array, Array, Array]:
    """lse, weights, and weights with the share of the sink as one more key, a step more exact than the input."""
    exact = np.longdouble if q.dtype == np.float64 else np.float64
    _, lse, P = harken.reference(q, k, k, **options, return_lse=True, return_weights=True, dtype=exact)
    sink = np.asarray(options.get("sinks", -np.inf), exact)
    with np.errstate(invalid="ignore"):
        share = np.where(lse == -np.inf, 0, np.exp((sink[..., None] if sink.ndim else sink) - lse))
    return lse, P, np.concatenate([P, share[..., None]], axis=-1)


def entropy_of(p: Array) -> Array:
    """-sum p log p, with log p = log(1 - the others) for the largest."""
    large = p.max(axis=-1, keepdims=True, initial=0)
    others = np.sort(p, axis=-1)[..., :-1].sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.where((p == large) & (large > 0.5), np.log1p(-others), np.log(p))
        return -np.where(p > 0, p * log, 0).sum(axis=-1)


def near(name: str, actual: Array, expected: Array, tolerance: float) -> None:
    np.testing.assert_allclose(actual.astype(expected.dtype), expected, rtol=tolerance, atol=tolerance, err_msg=name)


def agree(q: Array, k: Array, count: int, rows: list[int] | None, **options: Any) -> harken.AttentionStats:
    """All that can be asked for, against the dense weights."""
    found = attention_stats(q, k, top_k=count, per_key_mass=True, entropy=True, rows=rows, **options)
    lse, P, shares = dense(q, k, **options)
    precise = np.dtype(np.float64 if q.dtype == np.float64 else np.float32)
    # a logit is off by some roundings of its size, and a weight by that share
    slack = 64 * EPSILON[precise.name] * max(1.0, float(np.abs(lse[np.isfinite(lse)]).max(initial=0)))
    near("lse", found.lse, lse, slack)
    near("entropy", found.entropy, entropy_of(shares), 4 * slack)
    near("per_key_mass", found.per_key_mass, P.sum(axis=-2), slack)
    assert (found.lse.dtype, found.entropy.dtype, found.per_key_mass.dtype) == (precise, precise, np.float64)
    if rows is not None:
        near("row_weights", found.row_weights, P[..., rows, :], slack)
        assert found.row_weights.dtype == precise
    assert (found.entropy >= 0).all()
    if count:
        keys, weights = found.top_indices, found.top_weights
        assert (keys.shape, keys.dtype, weights.dtype) == ((*lse.shape, count), np.int64, precise)
        listed = keys >= 0
        np.testing.assert_array_equal(listed, weights > 0)
        P = np.concatenate([P, np.zeros((*P.shape[:-1], count), P.dtype)], axis=-1)  # where -1 points
        near("weights where the indices point", np.take_along_axis(P, keys, axis=-1), weights, slack)
        near("the largest weights", weights, -np.sort(-P, axis=-1)[..., :count], slack)
        for n in range(1, count):
            later = (weights[..., n] == weights[..., n - 1]) & (keys[..., n] > keys[..., n - 1])
            assert ((weights[..., n] < weights[..., n - 1]) | later | ~listed[..., n]).all()
    return found


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("name", harken.backends())
@settings(max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_call(name: str, dtype: str, data: st.DataObject) -> None:
    """Whatever the options, and wherever it is cut: into tiles of one query, of a few, of all heads."""
    lengths, depths = st.sampled_from([0, 1, 2, 5, 17, 40, 150]), st.sampled_from([0, 1, 8, 20])
    q, k, _, options = data.draw(calls(DTYPES[dtype], lengths, lengths, depths))
    Lq = q.shape[-3 if options["head_axis"] == -2 and q.ndim > 2 else -2]
    some = st.lists(st.integers(-Lq, Lq - 1), max_size=4) if Lq else st.just([])
    with forced(name), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", data.draw(st.sampled_from([1, 5000, 60000, tiles.TILE])))
        agree(q, k, data.draw(st.sampled_from([0, 1, 3, 60])), data.draw(st.none() | some), **options)


@pytest.mark.parametrize("Lk", [200, 701])
def test_long_rows(backend: str, dtype: Any, Lk: int) -> None:
    """Where the largest are looked for among the maxima of groups."""
    q, k, _ = qkv(dtype, 33, Lk, Hkv=1)
    for count in (1, 8, Lk + 3):
        agree(q, k, count, None, scale=2.0)


@pytest.mark.parametrize("levels", [1, 2, 4, 40])
@pytest.mark.parametrize("width", [5, 64, 129, 500])
def test_ties_go_to_the_smaller_key(backend: str, levels: int, width: int) -> None:
    """Weights of a few levels, some of them 0."""
    q = np.zeros((1, 60, 4), np.float32)
    bias = np.random.default_rng(width).integers(0, levels, (60, width)).astype(np.float32)
    bias[:, ::7] = -500.0
    for count in (1, 2, 8, 70):
        found = attention_stats(q, q[:, :1].repeat(width, 1), bias=bias, top_k=count)
        padded = np.concatenate([bias, np.full((60, count), -500.0)], axis=1)
        order = np.argsort(-padded, axis=-1, kind="stable")[:, :count]
        expected = np.where(np.take_along_axis(padded, order, axis=-1) > -500, order, -1)
        np.testing.assert_array_equal(found.top_indices[0], expected)


def test_many_large_ones_in_one_group() -> None:
    """64 keys apart: what tells large from small for random weights passes more here."""
    q, k = np.zeros((1, 20, 4), np.float32), np.zeros((1, 2000, 4), np.float32)
    bias = np.random.default_rng(0).random((20, 2000)).astype(np.float32)
    bias[:, 5::64] += 3
    for count in (1, 3, 20):
        found = attention_stats(q, k, bias=bias, top_k=count)
        np.testing.assert_array_equal(found.top_indices[0], np.argsort(-bias, axis=-1, kind="stable")[:, :count])


def test_few_more_than_the_largest_reach_the_bound() -> None:
    """Wherever they lie: among the last keys, too, which are no whole group."""
    rng = np.random.default_rng(0)
    for width in (130, 300, 1000, 1151):
        for slope in (0, 1, -1):
            p = rng.standard_normal((200, width)) + slope * np.arange(width)
            for count in (1, 8):
                reached = (p >= stats._bound(p, count)[:, None]).sum(axis=-1)
                assert reached.min() >= count
                assert reached.mean() <= 1.5 * count


def test_queries_that_see_few(backend: str, dtype: Any) -> None:
    q, k, _ = qkv(dtype, 6, 4)
    found = attention_stats(q, k, causal=True, top_k=3, entropy=True, per_key_mass=True)  # the first two see no key
    assert (found.top_indices[:, :2] == -1).all()
    np.testing.assert_array_equal(np.sort(found.top_indices[:, 2:4]), [[[-1, -1, 0], [-1, 0, 1]]] * 2)
    assert not found.top_weights[:, :2].any()
    assert not found.entropy[:, :2].any()
    assert (found.lse[:, :2] == -np.inf).all()
    assert (found.entropy[:, 2] < 1e-6).all()
    np.testing.assert_allclose(found.per_key_mass.sum(axis=-1), 4, rtol=1e-6)
    sunk = attention_stats(q, k, causal=True, sinks=0.5, **ALL, q_lengths=5, q_start=-2)
    assert not sunk.entropy[:, :2].any()
    np.testing.assert_array_equal(sunk.lse[:, [0, 1, 5]], [[0.5, 0.5, -np.inf]] * 2)
    assert (sunk.top_indices[:, [0, 1, 5]] == -1).all()


def test_known_entropies(backend: str) -> None:
    q, k = np.zeros((2, 3, 4)), np.zeros((2, 50, 4))
    np.testing.assert_allclose(attention_stats(q, k, entropy=True).entropy, np.log(50), rtol=1e-14)
    mask = np.arange(50) == 7
    np.testing.assert_allclose(attention_stats(q, k, mask=mask, entropy=True).entropy, 0, atol=1e-15)
    mask |= np.arange(50) == 9
    np.testing.assert_allclose(attention_stats(q, k, mask=mask, entropy=True).entropy, np.log(2), rtol=1e-14)
    # the sink as a third of three
    with_sink = attention_stats(q, k, mask=mask, sinks=0, entropy=True)
    np.testing.assert_allclose(with_sink.entropy, np.log(3), rtol=1e-14)
    # and without it
    sinks = np.array([-1.0, 3.0])
    with_sink = attention_stats(q, k, mask=mask, sinks=sinks, entropy=True)
    r = np.exp(sinks[:, None] - with_sink.lse)
    alone = (with_sink.entropy + r * np.log(r)) / (1 - r) + np.log1p(-r)
    np.testing.assert_allclose(alone, np.log(2), rtol=1e-12)


def test_entropy_of_a_lone_weight_that_is_rounded() -> None:
    P = (1 + np.arange(-50, 50) * 2.0**-23).astype(np.float32)[:, None]
    with np.errstate(all="ignore"):
        found = stats._entropy(P, np.zeros(100, np.float32), -np.inf)
    assert (found >= 0).all()
    assert (found < 1e-12).all()


@pytest.mark.parametrize("sink", [None, -3.0])
def test_small_entropies_are_exact_too(backend: str, dtype: Any, sink: float | None) -> None:
    """One key far above the others: 1 - p is below the rounding of p, and the entropy is known all the same."""
    q, k, _ = qkv(dtype, 40, 90, D=8)
    bias = np.where(np.arange(90) == 33, np.linspace(0, 30, 40)[:, None], 0).astype(np.float32)
    expected = entropy_of(dense(q, k, bias=bias, sinks=sink if sink is not None else -np.inf)[2])
    assert expected.min() < 1e-9
    found = attention_stats(q, k, bias=bias, sinks=sink, entropy=True).entropy
    relative = 1e-12 if q.dtype == np.float64 else 3e-5
    np.testing.assert_allclose(found, expected.astype(float), rtol=relative, atol=2e-15)


def test_mass_is_summed_in_float64(dtype: Any) -> None:
    q, k = np.zeros((1, 30000, 2), dtype), np.zeros((1, 3, 2), dtype)
    found = attention_stats(q, k, per_key_mass=True, rows=[0])
    np.testing.assert_allclose(found.per_key_mass, 30000 * found.row_weights[:, 0].astype(np.float64), rtol=1e-13)


def test_weights_of_16_bits_are_not_rounded(backend: str) -> None:
    for name in ("float16", "bfloat16"):
        q, k, _ = qkv(DTYPES[name], 30, 400)
        found = attention_stats(q, k, top_k=50, rows=[0, 29])
        assert (np.diff(found.top_weights) < 0).mean() > 0.99
        wide = attention_stats(q.astype(np.float32), k.astype(np.float32), top_k=50, rows=[0, 29])
        for one, other in zip(vars(found).values(), vars(wide).values(), strict=True):
            assert one is other is None or same_bits(one, other) is None


def test_rows(backend: str, dtype: Any) -> None:
    q, k, _ = qkv(dtype, 100, 70, Hq=4, Hkv=2, batch=(3,))
    options: dict[str, Any] = {"causal": True, "q_start": [5, -3, 0], "kv_lengths": [70, 9, 40]}
    rows = [99, 3, 3, -98, 50, 51, 0]
    alone = attention_stats(q, k, rows=np.array(rows, np.int8), **options)
    with_others = agree(q, k, 2, rows, **options)
    near("row_weights", alone.row_weights, with_others.row_weights, 1e-6)
    near("lse", alone.lse, dense(q, k, **options)[0], 1e-4 if dtype.name == "float16" else 1e-5)
    assert attention_stats(q, k, rows=[]).row_weights.shape == (3, 4, 0, 70)


def test_what_was_not_asked_for_is_none(dtype: Any) -> None:
    q, k, v = qkv(dtype, 20, 30)
    names = [field.name for field in fields(harken.AttentionStats)]
    assert names[0] == "lse"
    asked = {
        "top_indices": {"top_k": 2},
        "top_weights": {"top_k": 2},
        "entropy": {"entropy": True},
        "per_key_mass": {"per_key_mass": True},
        "row_weights": {"rows": [1]},
    }
    assert list(asked) == names[1:]
    for name, options in asked.items():
        found = attention_stats(q, k, **options)
        assert {n for n in names[1:] if getattr(found, n) is not None} == {n for n in asked if asked[n] == options}
        assert getattr(found, name) is not None
    nothing = attention_stats(q, k)
    same_bits(nothing.lse, harken.attention(q, k, v[..., :0], return_lse=True)[1])
    with pytest.raises(FrozenInstanceError):
        nothing.lse = q  # type: ignore[misc]


def test_layouts(backend: str, dtype: Any) -> None:
    q, k, _ = qkv(dtype, 25, 35, Hq=6, Hkv=2, batch=(2, 3))
    expected = attention_stats(q, k, rows=[1, 2], **ALL)
    swapped = [np.ascontiguousarray(x.swapaxes(-3, -2)) for x in (q, k)]
    ways = [
        attention_stats(*swapped, head_axis=-2, rows=[1, 2], **ALL),
        attention_stats(poisoned(q, 2), poisoned(k, 3), rows=[1, 2], **ALL, threads=1),
    ]
    if q.dtype.name != "bfloat16":
        ways.append(attention_stats(q.astype(q.dtype.newbyteorder()), k, rows=[1, 2], **ALL))
    for found, (name, x) in ((found, item) for found in ways for item in vars(expected).items()):
        same_bits(getattr(found, name), x)
    alone = attention_stats(q[1, 2, 4], k[1, 2, 1], rows=[1, 2], **ALL)  # 2-D
    for name, x in vars(expected).items():
        assert getattr(alone, name).shape == x.shape[3:]
        near(name, getattr(alone, name), x[1, 2, 4], 1e-6)


def test_lengths_within_a_tile(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 queries of both batches, where one has more of them than the other."""
    q, k, _ = qkv(np.float32, 100, 30, batch=(2,))
    monkeypatch.setattr(tiles, "TILE", 4 * 4 * 32 * 30)
    for causal in (False, True):
        found = agree(q, k, 3, [0, 40], q_lengths=[100, 37], kv_lengths=[20, 30], causal=causal, sinks=0.5)
        assert (found.lse[1, :, 37:] == -np.inf).all()


def test_leading_axes_broadcast(backend: str) -> None:
    q, k, _ = qkv(np.float32, 12, 15, Hq=4, Hkv=2, batch=(3, 1))
    k = np.concatenate([k[:1], k[1:2] + 1], axis=1)  # (1, 2, ...)
    mask = np.random.default_rng(0).random((3, 1, 1, 12, 15)) < 0.7
    found = agree(q, k, 3, [0, -1], mask=mask, kv_lengths=[15, 4], scale=np.ones((2, 1)))
    assert found.lse.shape == (3, 2, 4, 12)
    agree(q[:, 0], k[0, :1], 3, [0], q_start=np.array([2, 0, 2**62], "u8"), causal=True)
    sides = (np.uint8(200), np.int64(2**62)), (200, 2**62)  # whose sum is no number of theirs
    same_bits(*(attention_stats(q, k, window=window, **ALL).top_weights for window in sides))
    assert (attention_stats(q, k, q_start=10**30, window=(10**30, None), **ALL).lse > -np.inf).all()
    assert (attention_stats(q, k, q_start=-(10**30), causal=True, **ALL).lse == -np.inf).all()
    same_bits(
        attention_stats([[1, 2]], [[3, 4], [5, 6]]).lse, attention_stats([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]).lse
    )


@pytest.mark.parametrize("empty", ["batch", "Hq", "H", "Lq", "Lk", "D"])
@pytest.mark.parametrize("sink", [None, 0.25])
def test_empty_sizes(empty: str, sink: float | None) -> None:
    n = {
        name: 0 if name == empty else size for name, size in zip(("batch", "Lq", "Lk", "D"), (2, 5, 7, 3), strict=True)
    }
    Hq, Hkv = {"Hq": (0, 2), "H": (0, 0)}.get(empty, (4, 2))
    q, k = np.ones((n["batch"], Hq, n["Lq"], n["D"])), np.ones((n["batch"], Hkv, n["Lk"], n["D"]))
    found = agree(q, k, 3, [0, -1] if n["Lq"] else [], sinks=sink if sink is not None else -np.inf)
    assert found.per_key_mass.shape == (n["batch"], Hq, n["Lk"])
    assert found.row_weights.shape == (n["batch"], Hq, 2 if n["Lq"] else 0, n["Lk"])


def test_nan(backend: str, dtype: Any) -> None:
    """It reaches the queries that see it, whose largest it is, and the keys that they see."""
    q, k, _ = qkv(dtype, 30, 200)
    clean = attention_stats(q, k, causal=True, **ALL, rows=[0, 29])
    k[:, 190] = np.nan  # seen by the last ten queries
    with np.errstate(all="raise"):
        found = attention_stats(q, k, causal=True, **ALL, rows=[0, 29])
    for name in ("lse", "entropy", "top_indices", "top_weights"):
        same_bits(getattr(found, name)[:, :20], getattr(clean, name)[:, :20])
    for name in ("lse", "entropy", "top_weights"):
        assert np.isnan(getattr(found, name)[:, 20:]).all()
    np.testing.assert_array_equal(found.top_indices[:, 20:], np.broadcast_to([0, 1, 2], (2, 10, 3)))
    assert np.isnan(found.per_key_mass).all()
    same_bits(found.row_weights[:, 0], clean.row_weights[:, 0])
    unseen = attention_stats(q, k, causal=True, kv_lengths=190, q_start=160, **ALL)
    assert np.isfinite(unseen.per_key_mass[:, :190]).all()
    assert not unseen.per_key_mass[:, 190:].any()


def test_what_is_far_below_is_not_listed() -> None:
    q, k = np.zeros((1, 3, 2), np.float32), np.zeros((1, 300, 2), np.float32)
    found = attention_stats(q, k, bias=np.where(np.arange(300) == 250, 0, -1000.0), top_k=3)
    np.testing.assert_array_equal(found.top_indices, [[[250, -1, -1]] * 3])
    np.testing.assert_array_equal(found.top_weights, [[[1, 0, 0]] * 3])


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"top_k": -1}, ValueError, "top_k is -1: wanted 0 or more"),
        ({"top_k": 2.5}, TypeError, "top_k is 2.5: wanted an integer"),
        ({"top_k": True}, TypeError, "top_k is True: wanted an integer"),
        ({"top_k": None}, TypeError, "top_k is None: wanted an integer"),
        ({"per_key_mass": 1}, TypeError, "per_key_mass is 1: wanted True or False"),
        ({"entropy": "nats"}, TypeError, "entropy is 'nats': wanted True or False"),
        ({"rows": [5]}, ValueError, "rows holds 5: wanted -5 to 4, the queries in q"),
        ({"rows": [0, -6]}, ValueError, "rows holds -6: wanted -5 to 4, the queries in q"),
        ({"rows": 3}, ValueError, r"rows has shape \(\): wanted one axis"),
        ({"rows": [[1], [2]]}, ValueError, r"rows has shape \(2, 1\): wanted one axis"),
        ({"rows": [1.0]}, TypeError, "rows is float64: wanted integers"),
        ({"rows": np.ones(5, bool)}, TypeError, r"rows is bool: wanted integers.*np\.flatnonzero"),
        ({"q": zeros(2, 6, 5, 8)}, ValueError, "k has 4 heads, q has 6: q's heads must be a multiple of k's"),
        ({"k": zeros(2, 4, 10, 9)}, ValueError, "q has 8 channels, k has 9"),
        ({"k": zeros(2, 4, 10, 8, dtype=float)}, TypeError, r"q is float32, k is float64.*k\.astype"),
        ({"k": None}, TypeError, "k is None: wanted an array"),
        ({"mask": np.ones((5, 10), int)}, TypeError, "mask is int64: wanted bool"),
        (
            {"bias": zeros(5, 11)},
            ValueError,
            r"bias has shape \(5, 11\): wanted one that broadcasts to \(2, 8, 5, 10\)",
        ),
        ({"window": 5}, TypeError, "window is 5: wanted"),
        ({"kv_lengths": [3, 11]}, ValueError, "kv_lengths holds 11: wanted 0 to 10"),
        ({"q_start": 0.5}, TypeError, "q_start is float64: wanted integers"),
        ({"softcap": 0}, ValueError, "softcap is 0"),
        ({"head_axis": 1}, ValueError, "head_axis is 1"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"v": zeros(2, 4, 10, 8)}, TypeError, "unexpected keyword argument 'v'"),
    ],
)
def test_refuses(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        attention_stats(**({"q": zeros(2, 8, 5, 8), "k": zeros(2, 4, 10, 8)} | options))


def test_one_signature() -> None:
    """The options of attention that shape weights, by the same names and defaults, and then what to say of these."""
    of = {
        n: p
        for n, p in inspect.signature(harken.attention).parameters.items()
        if n not in ("v", "v_scale", "out", "device")
    }
    own = inspect.signature(attention_stats).parameters
    shared = [n for n in of if not n.startswith("return_")]
    assert list(own) == [*shared, "top_k", "per_key_mass", "entropy", "rows"]
    assert [(own[n].kind, own[n].default) for n in shared] == [(of[n].kind, of[n].default) for n in shared]
