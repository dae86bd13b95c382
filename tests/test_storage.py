"""Keys and values of any storage type: floats of other types exactly, integers times their factors by the rule."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, close, in_form, qkv, same_bits, ulp

import harken

Dtype = np.dtype[Any]

FLOATS = [DTYPES[name] for name in ("float32", "float16", "bfloat16")]
FORMS = ["tiled", "brief", "decode", "matrix"]
SCALES = ["number", "head", "token", "channel"]
TOGETHER: dict[str, dict[str, Any]] = {
    "nothing": {},
    "causal": {"causal": True},
    "window": {"window": (30, 3), "q_start": 50},
    "lengths": {"kv_lengths": [77, 20], "q_lengths": [5, 3]},
    "softcap, alibi, sinks": {"softcap": 2.0, "alibi": [0.1, 0.2, 0.0, 0.05], "sinks": [0.5, 0.0, 1.0, -1.0]},
    "mask, bias": {
        "mask": np.random.default_rng(1).random((9, 130)) < 0.6,
        "bias": np.random.default_rng(2).standard_normal((4, 1, 130)),
    },
    "cosine": {"score": "cosine", "scale": 3.0},
}

forms = pytest.mark.parametrize("form", FORMS)
of_q = pytest.mark.parametrize("type", FLOATS, ids=str)


def widest(*types: Dtype) -> Dtype:
    return types[0] if len(set(types)) == 1 else np.dtype(np.float32)


def factors(x: Array, how: str, seed: int = 5) -> Array:
    """Of both signs, from 0.005 to 0.05."""
    *batch, H, L, D = x.shape
    shape = {"number": (), "head": (*batch, H, 1, 1), "token": (*batch, H, L, 1), "channel": (*batch, H, 1, D)}[how]
    rng = np.random.default_rng(seed)
    return (rng.choice([-1, 1], shape) * np.exp(rng.uniform(-5.3, -3, shape))).astype(np.float32)


def int8(type: Dtype, Lq: int, Lk: int, D: int, Dv: int | None = None, **shape: Any) -> tuple[Array, Array, Array]:
    """q as it is, k and v as integers of all sizes."""
    q, k, v = qkv(np.float32, Lq, Lk, D, Dv, **{"Hq": 4, "Hkv": 2, "batch": (2,), **shape})
    return q.astype(type), *(np.clip(np.rint(50 * x), -128, 127).astype(np.int8) for x in (k, v))


def check(q: Array, k: Array, v: Array, *, weights: bool = False, **options: Any) -> Array:
    """The rule of accuracy of compare.check; values are v_scale * v."""
    asked = {"return_lse": True, "return_weights": weights}
    truth = harken.reference(q, k, v, **options, **asked, dtype=np.float64)
    naive = harken.reference(q, k, v, **options, **asked)
    actual = harken.attention(q, k, v, **options, **asked)
    largest = float(np.abs(v.astype(float) * options.get("v_scale", 1.0)).max(initial=0))
    rounding = ulp(np.float32, max(1.0, float(np.abs(np.where(np.isfinite(truth[1]), truth[1], 0)).max(initial=0))))
    two_terms = 2.0**-16 * max(1.0, rounding * 2**23) if q.dtype == np.float16 else 0
    for name, slack, x, n, t in zip(
        ("out", "lse", "weights"),
        (rounding * largest, 4 * rounding + two_terms, 4 * rounding),
        actual,
        naive,
        truth,
        strict=False,
    ):
        close(f"{name} of {q.dtype} {q.shape}, {k.dtype} {k.shape} {options}", x, n, t, slack)
    alone: Array = harken.attention(q, k, v, **options)
    same_bits(alone, actual[0]) if not weights else None
    return alone


# --- floats ---


@forms
@pytest.mark.parametrize(
    "types", list(itertools.product(FLOATS, repeat=3)), ids=lambda types: " ".join(map(str, types))
)
def test_floats_mix_exactly(backend: str, form: str, types: tuple[Dtype, ...]) -> None:
    """Bit for bit the call in the widest type, rounded to q's; decode adds bfloat16's channels in its own order."""
    wide = widest(*types)
    own_order = wide.name != "bfloat16" and "bfloat16" in [type.name for type in types]
    for Lq, Lk, D, Dv in ((1, 70, 64, 64), (9, 100, 64, 32), (40, 130, 20, 9)):
        arrays = qkv(np.float32, Lq, Lk, D, Dv, Hq=4, Hkv=2, batch=(2,))
        q, k, v = (x.astype(type) for x, type in zip(arrays, types, strict=True))
        for options in ({}, {"causal": True, "sinks": 0.5}):
            with in_form(form):
                out, lse = harken.attention(q, k, v, **options, return_lse=True)
                same, same_lse = harken.attention(*(x.astype(wide) for x in (q, k, v)), **options, return_lse=True)
                taken = harken.explain(q, k, v, **options).form
            if own_order and taken == "decode":
                last_digit = ulp(types[0], 1) + 2e-6
                np.testing.assert_allclose(out.astype(float), same.astype(types[0]).astype(float), last_digit, 2e-6)
                np.testing.assert_allclose(lse, same_lse, 2e-6)
                continue
            same_bits(out, same.astype(types[0]))
            same_bits(lse, same_lse)


def test_the_choice_is_that_of_the_widest_type(backend: str) -> None:
    for Lq, Lk in ((1, 4096), (5, 60), (60, 60), (300, 300)):
        q, k, v = qkv(np.float32, Lq, Lk, D=64)
        plan = harken.explain(q, k, v)
        for type in FLOATS:
            other = harken.explain(q, k.astype(type), v)
            assert (other.form, other.range_keys) == (plan.form, plan.range_keys)
            assert (other.dtype, other.storage) == ("float32", (type.name, "float32"))


def test_explain_says_the_types() -> None:
    q, k, v = int8(FLOATS[2], 1, 40, 64)
    plan = harken.explain(q, k, v.astype(np.float16), k_scale=np.float32(0.02))
    assert (plan.dtype, plan.storage) == ("bfloat16", ("int8", "float16"))
    assert str(plan).splitlines()[0].endswith("bfloat16, k int8, v float16")
    assert plan.converted == ()
    assert harken.explain(q, k, v, k_scale=0.5, v_scale=np.ones(64)).converted == ("k_scale", "v_scale")


def test_weights_with_other_types(backend: str) -> None:
    q, k, v = qkv(np.float32, 9, 130, 24, Hq=4, Hkv=2)
    for types in itertools.product(FLOATS, repeat=3):
        check(*(x.astype(type) for x, type in zip((q, k, v), types, strict=True)), weights=True)


# --- integers ---


@forms
@of_q
@pytest.mark.parametrize(("of_k", "of_v"), [*zip(SCALES, SCALES[::-1], strict=True), ("token",) * 2, ("channel",) * 2])
def test_every_scale(backend: str, form: str, type: Dtype, of_k: str, of_v: str) -> None:
    for Lq, Lk, D, Dv in ((1, 130, 64, 64), (3, 67, 48, 16), (9, 130, 24, 20)):
        q, k, v = int8(type, Lq, Lk, D, Dv)
        with in_form(form):
            check(q, k, v, k_scale=factors(k, of_k), v_scale=factors(v, of_v, 6))


@forms
@of_q
@pytest.mark.parametrize("how", list(TOGETHER))
def test_together_with_options(backend: str, form: str, type: Dtype, how: str) -> None:
    q, k, v = int8(type, 9, 130, 64)
    for of_k, of_v in (("token", "token"), ("channel", "head"), ("number", "channel")):
        with in_form(form):
            check(q, k, v, k_scale=factors(k, of_k), v_scale=factors(v, of_v, 6), **TOGETHER[how])


@of_q
def test_many_keys(backend: str, type: Dtype) -> None:
    """Ranges of keys, added up; few rows and many."""
    for Lq, Hq in ((1, 2), (1, 8), (3, 6), (40, 2)):
        q, k, v = int8(type, Lq, 1300, 32, Hq=Hq, batch=())
        for how in ("token", "channel"):
            check(q, k, v, k_scale=factors(k, how), v_scale=factors(v, how))


@forms
def test_one_of_both_is_int8(backend: str, form: str) -> None:
    for type, other in itertools.product(FLOATS, repeat=2):
        q, k, v = int8(type, 4, 70, 32)
        with in_form(form):
            check(q, k, (v / 64).astype(other), k_scale=factors(k, "token"))
            check(q, (k / 64).astype(other), v, v_scale=factors(v, "token"))


@forms
def test_floats_take_factors(backend: str, dtype: Dtype, form: str) -> None:
    q, k, v = qkv(dtype, 5, 90, 32, Hq=4, Hkv=2)
    with in_form(form):
        for how in SCALES:
            check(q, k, v, k_scale=40 * factors(k, how), v_scale=factors(v, how))


def test_weights(backend: str) -> None:
    for type, how in itertools.product(FLOATS, SCALES):
        q, k, v = int8(type, 9, 130, 24)
        check(q, k, v, k_scale=factors(k, how), v_scale=factors(v, how), weights=True)


@forms
def test_any_layout(backend: str, form: str) -> None:
    for how, (Lq, D) in itertools.product(SCALES, ((9, 32), (3, 64))):
        q, k, v = int8(FLOATS[0], Lq, 66, D)
        k_scale, v_scale = factors(k, how), factors(v, how, 6)
        with in_form(form):
            plain = harken.attention(q, k, v, k_scale=k_scale, v_scale=v_scale)
            turned = [np.ascontiguousarray(x.swapaxes(-3, -2)) if x.ndim else x for x in (q, k, v, k_scale, v_scale)]
            out = harken.attention(*turned[:3], k_scale=turned[3], v_scale=turned[4], head_axis=-2)
            same_bits(np.ascontiguousarray(out.swapaxes(-3, -2)), plain)
            back = [np.array(x[..., ::-1, ::-1])[..., ::-1, ::-1] if x.ndim else x for x in (k, v, k_scale, v_scale)]
            same_bits(harken.attention(q, *back[:2], k_scale=back[2], v_scale=back[3]), plain)
            double = harken.attention(q, k, v, k_scale=k_scale.astype(float), v_scale=v_scale.astype(">f4"))
            same_bits(double, plain)
            if how != "number":
                spread = [np.broadcast_to(x, y.shape) for x, y in ((k_scale, k), (v_scale, v))]
                same_bits(harken.attention(q, k, v, k_scale=spread[0], v_scale=spread[1]), plain)
            if form != "matrix":  # which must not copy the scale of another plan
                alone = [np.broadcast_to(x, (2, 2, *x.shape[-2:]))[1, 0] for x in (k_scale, v_scale)]
                one = harken.attention(q[1, 0], k[1, 0], v[1, 0], k_scale=alone[0], v_scale=alone[1])
                same_bits(one, plain[1, 0])


def test_leading_axes_broadcast(backend: str) -> None:
    q, k, v = int8(FLOATS[0], 3, 40, 16)
    for name in ("k_scale", "v_scale"):
        for shape in ((1,), (16,), (40, 1), (2, 1, 1), (2, 40, 1), (1, 1, 1, 16), (2, 1, 1, 1), (2, 1, 40, 1)):
            scale = np.exp(np.random.default_rng(0).uniform(-4, -3, shape))
            check(q, k, v, **({"k_scale": 0.01, "v_scale": 0.01} | {name: scale.astype(np.float32)}))
            check(q, k[:1], v[0], **({"k_scale": 0.01, "v_scale": 0.01} | {name: np.float32(0.02)}))


@pytest.mark.parametrize("Lk", [0, 1])
def test_no_keys_and_one(backend: str, Lk: int) -> None:
    for form, how, D in itertools.product(FORMS, SCALES, (0, 16)):
        q, k, v = int8(FLOATS[0], 3, Lk, D, 16)
        with in_form(form):
            check(q, k, v, k_scale=factors(k, how), v_scale=factors(v, how))


@forms
@of_q
def test_factors_of_hidden_keys_are_not_seen(backend: str, form: str, type: Dtype) -> None:
    q, k, v = int8(type, 9, 130, 32)
    hidden = np.random.default_rng(3).random(130) < 0.4
    hidden[100:] = True
    k_scale, v_scale = factors(k, "token"), factors(v, "token")
    for options in ({"mask": ~hidden}, {"kv_lengths": 100}, {"window": (None, -0), "q_start": 60}):
        out = np.arange(130) >= 100 if "kv_lengths" in options else hidden if "mask" in options else np.arange(130) > 68
        with in_form(form):
            clean = harken.attention(q, k, v, k_scale=k_scale, v_scale=v_scale, **options, return_lse=True)
            for poison in (np.nan, np.inf):
                spoiled = [np.where(out[:, None], np.float32(poison), x) for x in (k_scale, v_scale)]
                again = harken.attention(q, k, v, k_scale=spoiled[0], v_scale=spoiled[1], **options, return_lse=True)
                same_bits(again[0], clean[0])
                same_bits(again[1], clean[1])


@forms
def test_factors_of_seen_keys_are(backend: str, form: str) -> None:
    q, k, v = int8(FLOATS[0], 9, 130, 32)
    k, v = k | 1, v | 1  # 0 times infinity would be another matter
    for name in ("k_scale", "v_scale"):
        scale = {"k_scale": factors(k, "token"), "v_scale": factors(v, "token")}
        scale[name][0, 0, 40] = np.nan
        with in_form(form):
            out = harken.attention(q, k, v, **scale, causal=True, q_start=38)
        assert np.isnan(out[0, :2, 2:]).all()
        for rest in (out[0, :2, :2], out[1], out[:, 2:]):
            assert np.isfinite(rest).all()


def test_any_number_of_threads_and_heads_beside(backend: str) -> None:
    for how in SCALES:
        q, k, v = int8(FLOATS[0], 2, 1100, 64)
        scale = {"k_scale": factors(k, how), "v_scale": factors(v, how)}
        plain = harken.attention(q, k, v, **scale)
        same_bits(harken.attention(q, k, v, **scale, threads=1), plain)
        alone = {n: x[1:] if x.ndim else x for n, x in scale.items()}
        same_bits(harken.attention(q[1:], k[1:], v[1:], **alone), plain[1:])


def test_beside_float64_int8_is_an_integer_like_others(backend: str) -> None:
    q, k, v = int8(np.dtype(float), 3, 40, 16)
    assert harken.explain(q, k, v).converted == ("k", "v")
    same_bits(harken.attention(q, k, v), harken.attention(q, k.astype(float), v.astype(float)))
    scale = 1e-3 * np.ones((40, 1))
    np.testing.assert_allclose(
        harken.attention(q, k, v, k_scale=scale), harken.attention(q, k * scale, v.astype(float)), rtol=1e-12
    )


def test_reference_is_attention_over_the_products() -> None:
    q, k, v = int8(FLOATS[0], 9, 130, 32)
    for of_k, of_v in itertools.product(SCALES, repeat=2):
        k_scale, v_scale = factors(k, of_k), factors(v, of_v)
        out = harken.reference(q, k, v, k_scale=k_scale, v_scale=v_scale, causal=True, dtype=np.float64)
        exact = [x.astype(float) * scale.astype(float) for x, scale in ((k, k_scale), (v, v_scale))]
        np.testing.assert_allclose(out, harken.reference(q.astype(float), *exact, causal=True), rtol=1e-12)


# --- few queries, whole cache lines: the products by digits, where there is an engine for them ---


@pytest.mark.parametrize(("D", "Dv"), [(64, 64), (128, 64), (64, 192), (1024, 64), (1088, 64)])
def test_whole_lines(backend: str, D: int, Dv: int) -> None:
    """As many rows as there may be, and every tail of a chunk."""
    for n, (Lq, Lk, Hq) in enumerate(((1, 64, 2), (1, 127, 8), (5, 65, 2), (2, 80, 6), (3, 1, 2), (7, 1100, 2))):
        q, k, v = int8(FLOATS[n % 2 * 2], Lq, Lk if D < 1000 else min(Lk, 80), D, Dv, Hq=Hq)
        for of_k, of_v in (("token", "channel"), ("channel", "token")):
            scale = {"k_scale": factors(k, of_k), "v_scale": factors(v, of_v)}
            with in_form("decode"):
                check(q, k, v, **scale, causal=True)
                check(q, k, v, **scale, scale=8.0 if D < 1000 else 0.5)  # one key has nearly all of the weight


def test_rows_of_any_size(backend: str) -> None:
    q, k, v = int8(FLOATS[0], 4, 300, 64, batch=())
    scale = {"k_scale": factors(k, "token"), "v_scale": np.exp(np.random.default_rng(0).normal(0, 6, (300, 1)))}
    scale["v_scale"] = scale["v_scale"].astype(np.float32)
    q *= np.array([1e-36, 1e-5, 1.0, 10.0], np.float32)[:, None]
    q[0] *= np.logspace(-6, 0, 64, dtype=np.float32)
    q[1, 3] = 0
    check(q, k, v, **scale)


def test_rows_that_are_not_finite_leave_others_alone(backend: str) -> None:
    q, k, v = int8(FLOATS[0], 4, 130, 64)
    scale = {"k_scale": factors(k, "token"), "v_scale": factors(v, "token")}
    with in_form("decode"):
        clean = harken.attention(q, k, v, **scale)
        for poison in (np.nan, np.inf, -np.inf, 1e30):
            spoiled = q.copy()
            spoiled[0, 0, 1, 5] = spoiled[1, 3, 3] = poison
            others = np.ones(clean.shape, bool)
            others[0, 0, 1] = others[1, 3, 3] = False
            out = harken.attention(spoiled, k, v, **scale)
            same_bits(out, clean, others)
            truth = harken.reference(spoiled, k, v, **scale, dtype=np.float64)
            assert (np.isnan(out) == np.isnan(truth)).all()
        k[..., 5] = np.minimum(k[..., 5], -1)
        one = harken.reference(np.abs(q), k, v, k_scale=0.01, v_scale=scale["v_scale"], dtype=np.float64)
        spoiled = np.abs(q)
        spoiled[0, 0, 1, 5] = np.inf  # every logit is -inf: such a row is 0
        out = harken.attention(spoiled, k, v, k_scale=0.01, v_scale=scale["v_scale"])
        assert not out[0, 0, 1].any()
        np.testing.assert_allclose(out[1], one[1], atol=1e-4)
        v_scale = factors(v, "token")
        v_scale[0, 0, 40] = np.inf
        v = v | 1
        out = harken.attention(q, k, v, k_scale=0.01, v_scale=v_scale)
        truth = harken.reference(q, k, v, k_scale=0.01, v_scale=v_scale, dtype=np.float64)
        np.testing.assert_array_equal(out[0, :2], truth[0, :2].astype(np.float32))


def test_a_row_does_not_know_its_neighbours(backend: str) -> None:
    q, k, v = int8(FLOATS[0], 1, 700, 128, Hq=12)
    scale = {"k_scale": factors(k, "token"), "v_scale": factors(v, "channel")}
    together = harken.attention(q, k, v, **scale)
    for n in (1, 2, 3, 4, 5):
        part = np.concatenate([q[:, :n], q[:, 6 : 6 + n]], axis=1)
        out = harken.attention(part, k, v, **scale)
        same_bits(out[:, :n], np.ascontiguousarray(together[:, :n]))
        same_bits(out[:, n:], np.ascontiguousarray(together[:, 6 : 6 + n]))


# --- wrong calls ---

Q, K, V = np.zeros((2, 8, 5, 64), np.float32), np.zeros((2, 2, 10, 64), np.int8), np.zeros((2, 2, 10, 32), np.int8)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"k_scale": None}, ValueError,
     "k is int8 and k_scale is missing: give the factors that its integers were divided by, as harken.quantize returns "
     "them"),
    ({"v_scale": None}, ValueError,
     "v is int8 and v_scale is missing: give the factors that its integers were divided by, as harken.quantize returns "
     "them"),
    ({"k_scale": np.zeros((3, 1))}, ValueError,
     "k_scale has shape (3, 1): wanted one that broadcasts to (2, 2, 10, 64), the shape of k"),
    ({"v_scale": np.zeros((1, 2, 2, 10, 1))}, ValueError,
     "v_scale has shape (1, 2, 2, 10, 1): wanted one that broadcasts to (2, 2, 10, 32), the shape of v"),
    ({"k_scale": np.zeros((10, 64))}, ValueError,
     "k_scale has shape (10, 64): wanted one factor for each row of k or for each of its channels, not for each "
     "element; of a product of both give one, and multiply q by the other"),
    ({"v_scale": np.zeros((2, 1, 10, 32))}, ValueError,
     "v_scale has shape (2, 1, 10, 32): wanted one factor for each row of v or for each of its channels, not for each "
     "element; of a product of both give one, and multiply the result by the other"),
    ({"k_scale": "big"}, TypeError, "k_scale is <U3: wanted numbers, which k is multiplied by"),
    ({"v_scale": 1j}, TypeError, "v_scale is complex128: wanted numbers, which v is multiplied by"),
    ({"v_scale": True}, TypeError, "v_scale is bool: wanted numbers, which v is multiplied by"),
    ({"k": K.astype(np.int16)}, TypeError,
     "q is float32, k is float64: give both the same dtype, for example k.astype(np.float32)"),
    ({"q": Q.astype(float), "k": Q[:, :2].astype(np.float32), "v": Q[:, :2].astype(float)}, TypeError,
     "q is float64, k is float32: give both the same dtype, for example k.astype(np.float64)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), WRONG, ids=[text[:50] for _, _, text in WRONG])
def test_wrong_calls(call: dict[str, Any], error: type[Exception], text: str) -> None:
    out = np.full((2, 8, 5, 32), 7, np.float32)
    right: dict[str, Any] = {"q": Q, "k": K, "v": V, "k_scale": 1, "v_scale": 1, "out": out}
    for function in (harken.attention, harken.explain):
        with pytest.raises(error) as caught:
            function(**(right | call))
        assert str(caught.value) == text
    assert (out == 7).all()
