"""The bits of a row are a function of its own (batch, head) problem: nothing else that a call has in it shows."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from child import in_child
from compare import DTYPES, Array, forced, in_form, poisoned, qkv, same_bits

import harken

Dtype = np.dtype[Any]

# Lq, Lk, D; and what the plan must then be where that form is forced
FORMS: dict[str, tuple[tuple[int, int, int], tuple[str, bool]]] = {
    "decode": ((1, 300, 64), ("decode", False)),
    "decode, three queries": ((3, 200, 40), ("decode", False)),
    "decode, ranges": ((2, 1100, 64), ("decode", True)),
    "brief": ((150, 60, 48), ("brief", False)),
    "brief, ragged": ((37, 51, 72), ("brief", False)),
    "brief, a handful": ((10, 13, 64), ("brief", False)),
    "tiled": ((70, 530, 40), ("tiled", False)),
    "tiled, many tiles": ((600, 130, 16), ("tiled", False)),
    "tiled, ranges": ((20, 4300, 8), ("tiled", True)),
    "matrix": ((70, 530, 40), ("matrix", False)),
    "matrix, ragged": ((133, 67, 72), ("matrix", False)),
    "matrix, ranges": ((20, 4300, 8), ("matrix", True)),
}
forms = pytest.mark.parametrize("form", FORMS)
B, Hq, Hkv = 2, 4, 2


@pytest.fixture(autouse=True)
def form_is_forced(request: pytest.FixtureRequest) -> Iterator[None]:
    """Wherever a test has a form, every call takes it; only a matrix engine has its own, and not in double."""
    if "form" not in request.fixturenames:
        yield
        return
    name = FORMS[request.getfixturevalue("form")][1][0]
    chosen = request.getfixturevalue("backend"), request.getfixturevalue("dtype")
    if name == "matrix" and (chosen[0] != "amx" or chosen[1] == np.float64):
        pytest.skip("no matrix engine for that")
    with in_form(name):
        yield


def call(form: str, dtype: Dtype, kind: str = "everything") -> tuple[Array, Array, Array, dict[str, Any]]:
    """Two batches of four query heads over two key heads, with options that reach into every step."""
    Lq, Lk, D = FORMS[form][0]
    q, k, v = qkv(dtype, Lq, Lk, D=D, Hq=Hq, Hkv=Hkv, batch=(B,))
    if kind == "plain":
        return q, k, v, {}
    rng = np.random.default_rng(1)
    options: dict[str, Any] = {
        "mask": rng.random((B, 1, Lq, Lk)) < 0.9,
        "bias": rng.standard_normal((Hq, Lq, Lk)).astype(dtype),
        "causal": True,
        "q_start": Lk // 2,
        "kv_lengths": np.array([Lk, Lk - 7]),
        "softcap": 5.0,
        "alibi": np.linspace(0.001, 0.01, Hq),
        "sinks": np.arange(Hq) / 2,
    }
    if FORMS[form][1][0] == "matrix":
        del options["alibi"]
    return q, k, v, options


KINDS = ("plain", "everything")
kinds = pytest.mark.parametrize("kind", KINDS)


def attend(*arguments: Any, **more: Any) -> tuple[Array, Array]:
    """out and lse of q, k, v and a dictionary of options."""
    q, k, v, options = arguments
    out, lse = harken.attention(q, k, v, **options, return_lse=True, **more)
    return out, lse


def all_same(actual: tuple[Array, Array], expected: tuple[Array, Array]) -> None:
    for one, other in zip(actual, expected, strict=True):
        same_bits(one, other)


def part(options: dict[str, Any], b: int, heads: slice) -> dict[str, Any]:
    """The options of one batch row and some of its heads."""
    pick = {
        "mask": lambda x: x[b],
        "bias": lambda x: x[heads],
        "kv_lengths": lambda x: x[b],
        "alibi": lambda x: x[heads],
        "sinks": lambda x: x[heads],
    }
    return {name: pick.get(name, lambda x: x)(value) for name, value in options.items()}


@forms
def test_the_forms_are_what_they_are_called(backend: str, dtype: Dtype, form: str) -> None:
    q, k, v, options = call(form, dtype)
    plan = harken.explain(q, k, v, **options)
    assert (plan.form, plan.ranges > 1) == FORMS[form][1]


@forms
@kinds
def test_number_of_threads(backend: str, dtype: Dtype, form: str, kind: str) -> None:
    q, k, v, options = call(form, dtype, kind)
    copies = 12  # enough work that every one of eight threads gets some
    q, k, v = (np.concatenate([x] * copies) for x in (q, k, v))
    for name in ("mask", "kv_lengths"):
        if name in options:
            options[name] = np.concatenate([options[name]] * copies)
    assert harken.explain(q, k, v, **options, threads=8).threads == 8
    expected = attend(q, k, v, options, threads=1)
    for threads in (2, 3, 8):
        all_same(attend(q, k, v, options, threads=threads), expected)
    for b in range(B, B * copies):  # and the twelve twins agree with one another
        all_same((expected[0][b], expected[1][b]), (expected[0][b % B], expected[1][b % B]))


@forms
def test_batch_neighbours(backend: str, dtype: Dtype, form: str) -> None:
    for kind, b in itertools.product(KINDS, range(B)):
        q, k, v, options = call(form, dtype, kind)
        out, lse = attend(q, k, v, options)
        alone = attend(q[b], k[b], v[b], part(options, b, slice(None)))
        all_same(alone, (out[b], lse[b]))


@forms
@kinds
def test_head_neighbours(backend: str, dtype: Dtype, form: str, kind: str) -> None:
    q, k, v, options = call(form, dtype, kind)
    out, lse = attend(q, k, v, options)
    group = Hq // Hkv
    for h in range(Hkv):  # a key head with its group of query heads
        heads = slice(h * group, (h + 1) * group)
        alone = attend(q[1, heads], k[1, h : h + 1], v[1, h : h + 1], part(options, 1, heads))
        all_same(alone, (out[1, heads], lse[1, heads]))
    for h in range(Hq):  # a query head apart from its group
        one, own = slice(h, h + 1), slice(h // group, h // group + 1)
        alone = attend(q[1, one], k[1, own], v[1, own], part(options, 1, one))
        all_same(alone, (out[1, one], lse[1, one]))


@pytest.mark.parametrize("Lq", [1, 2, 3, 5])
def test_groups_of_every_size(backend: str, dtype: Dtype, Lq: int) -> None:
    q, k, v = qkv(dtype, Lq, 700, D=32, Hq=8, Hkv=1)
    each = [attend(q[h : h + 1], k, v, {}) for h in range(8)]
    for heads in range(2, 9):
        out, lse = attend(q[:heads], k, v, {})
        for h in range(heads):
            all_same((out[h : h + 1], lse[h : h + 1]), each[h])


def layouts(x: Array) -> list[Array]:
    """The same numbers backwards, in steps, off by a byte, a page to each row."""
    shifted = np.empty(x.nbytes + 64, "u1")[1 : 1 + x.nbytes].view(x.dtype).reshape(x.shape)
    page = np.empty((*x.shape[:-1], 4096 // x.itemsize), x.dtype)[..., : x.shape[-1]]
    shifted[...] = page[...] = x
    return [x[..., ::-1, ::-1].copy()[..., ::-1, ::-1], poisoned(x, step=2), shifted, page]


@forms
def test_strides_out_and_lse(backend: str, dtype: Dtype, form: str) -> None:
    for kind in KINDS:
        q, k, v, options = call(form, dtype, kind)
        expected = attend(q, k, v, options)
        same_bits(harken.attention(q, k, v, **options), expected[0])
        for other_q, other_k, other_v in zip(layouts(q), layouts(k), layouts(v), strict=True):
            out = poisoned(np.zeros_like(q), step=3)
            all_same(attend(other_q, other_k, other_v, options, out=out), expected)
            all_same(attend(other_q, k, v, options), expected)
            all_same(attend(q, other_k, other_v, options), expected)
        out, lse = attend(*(x.swapaxes(-3, -2).copy() for x in (q, k, v)), options, head_axis=-2)
        all_same((out.swapaxes(-3, -2), lse), expected)
        out = q.copy()
        all_same(attend(out, k, v, options, out=out), expected)


@forms
def test_rows_beside_poisoned_rows(backend: str, dtype: Dtype, form: str) -> None:
    for kind, poison in itertools.product(KINDS, (np.nan, np.inf)):
        q, k, v, options = call(form, dtype, kind)
        expected = attend(q, k, v, options)
        Lq, others = q.shape[-2], slice(Hq // Hkv, None)
        q, k, v = q.copy(), k.copy(), v.copy()
        q[0, 1, Lq // 2] = poison  # one query
        k[1, 1, 5] = poison  # one key and one value, which the query heads of one key head see
        v[1, 1, 9] = poison
        out, lse = attend(q, k, v, options)
        assert np.isnan(out[0, 1, Lq // 2]).all()
        assert (~np.isfinite(out[1, others])).all(axis=-1).mean() > 0.5
        untouched = np.ones(lse.shape, bool)
        untouched[0, 1, Lq // 2] = untouched[1, others] = False
        same_bits(out, expected[0], where=untouched[..., None])
        same_bits(lse, expected[1], where=untouched)


def digest(threads: int) -> str:
    """A hash of results of every backend, type and form."""
    harken.set_num_threads(threads)
    total = hashlib.sha256()
    for name, dtype, form in itertools.product(harken.backends(), DTYPES.values(), FORMS):
        with forced(name), in_form(FORMS[form][1][0]):
            q, k, v, options = call(form, dtype)
            for result in attend(q, k, v, options):
                total.update(result.tobytes())
    harken.set_num_threads(None)
    return total.hexdigest()


def test_run_to_run() -> None:
    here = digest(2)
    assert digest(2) == here
    assert in_child(digest, 3, env={"OMP_NUM_THREADS": "5"}) == here
