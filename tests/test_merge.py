"""The law of merge: attention over keys cut anywhere, joined in any order, is attention over all keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, EPSILON, Array, check, forced, qkv, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import harken
from harken import merge

Dtype = np.dtype[Any]
Part = tuple[Array, Array]

laws = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def near(actual: Part, expected: Part) -> None:
    """Equal up to the rounding of the parts, which is that of the out's dtype, and of sums in lse's."""
    for x, y in zip(actual, expected, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        tolerance = max(4 * EPSILON[x.dtype.name], 32 * EPSILON[expected[1].dtype.name])
        np.testing.assert_allclose(x.astype(float), y.astype(float), rtol=tolerance, atol=tolerance)


def parts_of(q: Array, k: Array, v: Array, cuts: list[int], **options: Any) -> Iterator[Part]:
    """Attention over each range of keys, with positions that still count from the first key of all."""
    sinks = options.pop("sinks", None)
    for first, last in zip([0, *cuts], [*cuts, k.shape[-2]], strict=True):
        start = k.shape[-2] - q.shape[-2] - first
        keys = k[..., first:last, :], v[..., first:last, :]
        yield harken.attention(q, *keys, q_start=start, sinks=sinks, return_lse=True, **options)
        sinks = None  # the row has one sink: the first part takes it


@pytest.mark.parametrize("name", harken.backends())
@laws
@given(st.data())
def test_any_cut_of_the_keys(name: str, data: st.DataObject) -> None:
    dtype = DTYPES[data.draw(st.sampled_from(list(DTYPES)))]
    Lq, Lk = data.draw(st.sampled_from([1, 3, 20, 80])), data.draw(st.integers(0, 300))
    q, k, v = qkv(dtype, Lq, Lk, Dv=5, Hq=4, Hkv=2, batch=(2,), seed=data.draw(st.integers(0, 99)))
    options: dict[str, Any] = {
        "causal": data.draw(st.booleans()),
        "window": data.draw(st.sampled_from([None, (30, 3)])),
        "alibi": data.draw(st.sampled_from([None, 0.1])),
        "sinks": data.draw(st.sampled_from([None, [0.5, -1.0, 2.0, 0.0]])),
    }
    cuts = sorted(data.draw(st.lists(st.integers(0, Lk), max_size=5)))
    with forced(name):
        whole = harken.attention(q, k, v, return_lse=True, **options)
        parts = list(parts_of(q, k, v, cuts, **options))
        near(merge(parts), whole)
        near(merge(data.draw(st.permutations(parts))), whole)
        near(merge(iter(parts)), whole)


def drawn_parts(dtype: Dtype, count: int) -> list[Part]:
    """Attention over `count` sets of keys of very different weight, with rows that see nobody."""
    parts = []
    for n in range(count):
        q, k, v = qkv(dtype, 12, 9, Dv=3, seed=n)
        mask = np.random.default_rng(n).random((2, 12, 9)) < 0.2
        bias = np.full(9, 20.0 * np.random.default_rng(n).standard_normal())
        parts.append(harken.reference(q, k, v, mask=mask, bias=bias, return_lse=True))
    return parts


def test_associative_and_commutative(dtype: Dtype) -> None:
    a, b, c = drawn_parts(dtype, 3)
    whole = merge([a, b, c])
    near(merge([merge([a, b]), c]), whole)
    near(merge([a, merge([b, c])]), whole)
    near(merge([c, b, a]), whole)


def test_identity_is_exact(dtype: Dtype) -> None:
    (part,) = drawn_parts(dtype, 1)
    nothing = np.zeros_like(part[0]), np.full_like(part[1], -np.inf)
    for parts in ([part], [part, nothing], [nothing, part], [nothing, nothing, part, nothing]):
        out, lse = merge(parts)
        np.testing.assert_array_equal(out, part[0])
        same_bits(lse, part[1])
    for got, expected in zip(merge([nothing, nothing]), nothing, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_does_not_write_into_its_parts(dtype: Dtype) -> None:
    parts = drawn_parts(dtype, 3)
    before = [x.copy() for part in parts for x in part]
    for arrays in parts:
        for x in arrays:
            x.setflags(write=False)
    merge(parts)
    for old, new in zip(before, (x for part in parts for x in part), strict=True):
        same_bits(new, old)


def test_many_parts_round_once() -> None:
    """A thousand parts of float16 err like one: the sum is not kept in float16."""
    q, k, v = qkv(np.float16, 4, 1000)
    parts = [harken.reference(q, k[:, j : j + 1], v[:, j : j + 1], return_lse=True) for j in range(1000)]
    exact = harken.reference(q, k, v, return_lse=True, dtype=np.float64)
    out, lse = merge(parts)
    np.testing.assert_allclose(out, exact[0], atol=2 * EPSILON["float16"] * np.abs(exact[0]).max())
    np.testing.assert_allclose(lse, exact[1], atol=1e-5)


def test_extreme_lse() -> None:
    low, high = np.full((1, 2), -1e30), np.full((1, 2), 1e30)
    out, lse = merge([(np.full((1, 2, 3), 5.0), low), (np.full((1, 2, 3), 7.0), high), (np.zeros((1, 2, 3)), low)])
    np.testing.assert_array_equal(out, np.full((1, 2, 3), 7.0))
    np.testing.assert_array_equal(lse, high)


def test_nan_goes_through(dtype: Dtype) -> None:
    parts = drawn_parts(dtype, 3)
    clean, clean_lse = merge(parts)
    seen = np.isfinite(parts[1][1])
    parts[1][0][0, :, 2] = np.nan
    parts[1][1][1] = np.nan
    with np.errstate(all="raise"):
        out, lse = merge(parts)
    for spoiled in (out[0, :, 2], out[1], lse[1]):
        assert np.isnan(spoiled).all()
    np.testing.assert_array_equal(out[0, :, :2], clean[0, :, :2])
    np.testing.assert_array_equal(lse[0], clean_lse[0])
    assert seen.any()


def test_heads_after_length(dtype: Dtype) -> None:
    parts = drawn_parts(dtype, 3)
    out, lse = merge([(out.swapaxes(-3, -2), lse) for out, lse in parts], head_axis=-2)
    for got, expected in zip((out.swapaxes(-3, -2), lse), merge(parts), strict=True):
        np.testing.assert_array_equal(got, expected)
    flat = merge([(out[0], lse[0]) for out, lse in parts], head_axis=-2)  # one head: (L, D) in both layouts
    np.testing.assert_array_equal(flat[0], out[:, 0])


def test_split_decode_by_hand(backend: str) -> None:
    q, k, v = qkv(np.float32, 1, 5000, Hq=4, Hkv=1)
    whole = harken.attention(q, k, v, return_lse=True)
    near(merge(parts_of(q, k, v, [1024, 2048, 3072, 4096])), whole)
    check(q, k, v, weights=False)


ZEROS = np.zeros((2, 3, 4)), np.zeros((2, 3))


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ([], ValueError, "parts is empty"),
        ([ZEROS[0]], TypeError, r"parts\[0\] is ndarray: give \(out, lse\)"),
        ([ZEROS, (ZEROS[0],)], TypeError, r"parts\[1\] is tuple"),
        ([ZEROS, 3], TypeError, r"parts\[1\] is int"),
        ([(ZEROS[0].astype(int), ZEROS[1])], TypeError, r"out of parts\[0\] is int64"),
        ([(ZEROS[0], ZEROS[1].astype(int))], TypeError, r"lse of parts\[0\] is int64"),
        ([(ZEROS[0], ZEROS[0])], ValueError, r"out \(2, 3, 4\) and lse \(2, 3, 4\): lse must be \(\.\.\., H, L\)"),
        (
            [ZEROS, (ZEROS[0][:1], ZEROS[1][:1])],
            ValueError,
            r"parts\[1\] has out \(1, 3, 4\), parts\[0\] has \(2, 3, 4\)",
        ),
        ([ZEROS, (ZEROS[0].astype("f4"), ZEROS[1])], TypeError, r"parts\[1\] is float32 .* parts\[0\] is float64"),
    ],
)
def test_refuses(parts: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        merge(parts)


def test_refuses_a_head_axis() -> None:
    with pytest.raises(ValueError, match="head_axis is 1"):
        merge([ZEROS], head_axis=1)
