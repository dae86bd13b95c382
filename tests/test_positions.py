"""Rotary positions are complex multiplication, in any layout and in place, by angles that equal their sources'."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, EPSILON, Array, same_bits

from harken import rope, rope_table

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

YARN = {"factor": 4.0, "original_max_position_embeddings": 4096}


def tokens(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def turned(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """(a + i b) (cos + i sin) for heads-first x and tables of (..., H, L, R/2), one step above float64."""
    half = cos.shape[-1]
    out = x.astype(np.longdouble)
    a = np.s_[..., 0 : 2 * half : 2] if interleaved else np.s_[..., :half]
    b = np.s_[..., 1 : 2 * half : 2] if interleaved else np.s_[..., half : 2 * half]
    z = (out[a] + 1j * out[b]) * (cos.astype(np.longdouble) + 1j * sin.astype(np.longdouble))
    out[a], out[b] = z.real, z.imag
    return out


def near(actual: Array, exact: Array, length: Array) -> None:
    """Two products and a sum in the compute type, of numbers as long as the pair is, and one rounding to the dtype."""
    name = actual.dtype.name
    compute = 2.0**-52 if name == "float64" else 2.0**-23
    least = 2.0**-25 if name == "float16" else 0.0
    allowed = 2 * compute * length + EPSILON[name] / 2 * np.abs(exact) + least
    assert (np.abs(actual.astype(np.longdouble) - exact) <= allowed).all()


# --- rotation ---


@pytest.mark.parametrize("rotary", [16, 6, 0])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("places", ["none", "shared", "batch", "gathered", "gathered for all"])
def test_rope_is_complex_multiplication(dtype: np.dtype[Any], interleaved: bool, places: str, rotary: int) -> None:
    B, H, L, D, P = 3, 4, 7, 16, 50
    x = tokens(B, H, L, D, dtype=dtype)
    cos, sin = rope_table(P, rotary, dtype=np.float64 if dtype == np.float64 else np.float32)
    rng = np.random.default_rng(1)
    positions = {"shared": rng.integers(0, P, L), "batch": rng.integers(0, P, (B, L))}.get(places)
    if places.startswith("gathered"):
        which = rng.integers(0, P, (B, L) if places == "gathered" else (1, L))
        cos, sin = cos[which], sin[which]
    rows = [
        table[np.arange(L) if positions is None else positions] if table.ndim == 2 else table for table in (cos, sin)
    ]
    rows = [table[:, None] if table.ndim == 3 else table for table in rows]
    exact = turned(x, rows[0], rows[1], interleaved)
    length = np.abs(x).astype(float).max(axis=-1, keepdims=True) * math.sqrt(2)
    out = rope(x, cos, sin, positions, interleaved=interleaved)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    near(out, exact, length)
    same_bits(out[..., rotary:], x[..., rotary:])
    swapped = rope(x.swapaxes(1, 2), cos, sin, positions, interleaved=interleaved, head_axis=-2)
    same_bits(swapped.swapaxes(1, 2), out)


def test_tables_of_16_bits_are_read_as_they_are(dtype: np.dtype[Any]) -> None:
    x = tokens(5, 8, dtype=np.float32)
    cos, sin = (table.astype(dtype) for table in rope_table(5, 8))
    near(rope(x, cos, sin), turned(x, cos, sin, False), np.float64(np.abs(x).max() * 2))


def test_axes_of_x() -> None:
    x = tokens(2, 3, 4, 5, 8)  # (2, 3) batches, 4 heads, 5 rows
    cos, sin = rope_table(9, 8)
    positions = np.random.default_rng(0).integers(0, 9, (2, 3, 5))
    whole = rope(x, cos, sin, positions)
    for b, c, h in np.ndindex(2, 3, 4):
        same_bits(whole[b, c, h], rope(x[b, c, h], cos, sin, positions[b, c]))
    same_bits(whole[1, 2], rope(x[1, 2], cos, sin, positions[1, 2]))
    same_bits(rope(x, cos, sin, positions[:1, :1]), rope(x, cos, sin, positions[0, 0].astype(np.uint8)))
    same_bits(whole[1, 2, 0].T, rope(x[1, 2, 0], cos, sin, positions[1, 2].tolist(), head_axis=-2).T)
    assert rope([[1, 2], [3, 4]], cos[:, :1], sin[:, :1]).dtype == np.float64


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_the_distance(interleaved: bool) -> None:
    q, k = tokens(1, 64, dtype=np.float64), tokens(1, 64, dtype=np.float64, seed=1)
    cos, sin = rope_table(4000, 64, dtype=np.float64)
    scores = [
        rope(q, cos, sin, [p + 17], interleaved=interleaved) @ rope(k, cos, sin, [p], interleaved=interleaved).T
        for p in (0, 1, 1000, 3982)
    ]
    np.testing.assert_allclose(np.ravel(scores), scores[0].item(), rtol=1e-11)


LAYOUTS: list[Any] = [
    lambda x: x.copy(),
    lambda x: x.swapaxes(0, 1).copy().swapaxes(0, 1),
    lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    lambda x: x[..., ::-1].copy()[..., ::-1],
    lambda x: x[::-1, :, ::-1].copy()[::-1, :, ::-1],
]


@pytest.mark.parametrize("interleaved", [False, True])
def test_strides(interleaved: bool, backend: str) -> None:
    """The bits depend neither on the layout of x, nor on that of out, nor on `out=x`."""
    cos, sin = rope_table(30, 10)
    positions = np.random.default_rng(0).integers(0, 30, (3, 11))
    for dtype, shape in itertools.product(DTYPES.values(), [(3, 2, 11, 12), (3, 13, 11, 12)]):
        x = tokens(*shape, dtype=dtype)
        plain = rope(x, cos, sin, positions, interleaved=interleaved)
        for lay, lay_out in itertools.product(LAYOUTS, LAYOUTS):
            given, out = lay(x), lay_out(np.zeros_like(x))
            assert rope(given, cos, sin, positions, interleaved=interleaved, out=out) is out
            same_bits(out, plain)
            same_bits(given, x)
        for lay in LAYOUTS:
            given = lay(x)
            assert rope(given, cos, sin, positions, interleaved=interleaved, out=given) is given
            same_bits(given, plain)


@pytest.mark.parametrize("interleaved", [False, True])
def test_threads_and_backends_give_the_same_bits(dtype: np.dtype[Any], interleaved: bool, backend: str) -> None:
    """At every number of pairs, and of rows enough for many pieces."""
    for pairs in (*range(1, 20), 31, 32, 33, 64):
        L = 5 if pairs < 64 else 3000
        x, (cos, sin) = tokens(2, L, 2 * pairs + 3, dtype=dtype), rope_table(L, 2 * pairs)
        out = rope(x, cos, sin, interleaved=interleaved)
        rows = [rope(x[:, l : l + 1], cos, sin, [l], interleaved=interleaved) for l in (0, 1, L - 1)]
        same_bits(np.concatenate(rows, 1), out[:, [0, 1, -1]])
        a = x[..., 0 : 2 * pairs : 2] if interleaved else x[..., :pairs]
        b = x[..., 1 : 2 * pairs : 2] if interleaved else x[..., pairs : 2 * pairs]
        compute = np.float64 if dtype == np.float64 else np.float32
        a, b, c, s = (part.astype(compute) for part in (a, b, cos[:L], sin[:L]))
        first, second = (a * c - b * s).astype(dtype), (a * s + b * c).astype(dtype)
        same_bits(out[..., 0 : 2 * pairs : 2] if interleaved else out[..., :pairs], first)
        same_bits(out[..., 1 : 2 * pairs : 2] if interleaved else out[..., pairs : 2 * pairs], second)


@pytest.mark.parametrize("shift", [-13, -1, 1, 6, 12])
def test_out_may_overlap(shift: int) -> None:
    cos, sin = rope_table(9, 8)
    for interleaved, back in itertools.product((False, True), (1, -1)):
        buffer = tokens(9 * 12 + 40)
        x, out = (buffer[start : start + 9 * 12].reshape(9, 12) for start in (20, 20 + shift))
        plain = rope(x, cos, sin, interleaved=interleaved)
        rope(x, cos, sin, interleaved=interleaved, out=out[::back])
        same_bits(out[::back], plain)
    square = tokens(9, 9, 12)
    plain = rope(square, cos, sin)
    rope(square, cos, sin, out=square.swapaxes(0, 1))  # it begins where x begins
    same_bits(square.swapaxes(0, 1), plain)
    x = tokens(9, 16)
    plain = rope(x, cos, sin)
    table = np.zeros((9, 16), np.float32)
    table[:, :4], table[:, 4:8] = cos, sin
    rope(x, table[:, :4], table[:, 4:8], out=table)  # the tables themselves are overwritten
    same_bits(table, plain)


def test_a_fused_projection_turns_in_place() -> None:
    B, L, H, D = 2, 20, 3, 8
    cos, sin = rope_table(L, D)
    qkv = tokens(B, L, 3, H, D)
    before = qkv.copy()
    for n in (0, 1):
        rope(qkv[:, :, n], cos, sin, head_axis=-2, out=qkv[:, :, n])
        same_bits(qkv[:, :, n], rope(before[:, :, n], cos, sin, head_axis=-2))
    same_bits(qkv[:, :, 2], before[:, :, 2])


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 2, 5, 4), (2, 0, 5, 4), (2, 3, 0, 4), (0, 0, 0, 0)])
def test_sizes_may_be_zero(shape: tuple[int, ...]) -> None:
    width = min(2, shape[-1] // 2)
    x = tokens(*shape)
    assert rope(x, *rope_table(5, 2 * width)).shape == shape
    assert rope(x, *rope_table(5, 2 * width), np.zeros(shape[-2], int), out=x) is x
    assert rope_table(0, 8)[0].shape == (0, 4)
    assert rope_table(8, 0)[0].shape == (8, 0)


def test_what_is_not_finite_stays_in_its_pair() -> None:
    x = tokens(3, 8, dtype=np.float16)
    x[0, 0], x[1, 2], x[2, 1] = np.inf, np.nan, np.inf  # at position 0 the sine is 0, and 0 * inf is NaN
    out = rope(x, *rope_table(3, 6))
    wrong = {(0, 0), (0, 3), (1, 2), (1, 5), (2, 1), (2, 4)}
    assert {(i, j) for i, j in np.argwhere(~np.isfinite(out)).tolist()} == wrong


# --- the angles ---


def llama3(f: float) -> float:
    """The branches of Meta's `apply_scaling`, with its constants."""
    wavelength = 2 * math.pi / f
    if wavelength < 8192 / 4:
        return f
    if wavelength > 8192 / 1:
        return f / 8
    smooth = (8192 / wavelength - 1) / (4 - 1)
    return (1 - smooth) * f / 8 + smooth * f


def yarn(n: int, dim: int, base: float, factor: float, original: int, truncate: bool) -> float:
    """The frequency of a pair as `_compute_yarn_parameters` of huggingface/transformers has it."""

    def find_correction_dim(num_rotations: float) -> float:
        return (dim * math.log(original / (num_rotations * 2 * math.pi))) / (2 * math.log(base))

    low, high = find_correction_dim(32), find_correction_dim(1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = min(max((n - low) / (high - low), 0), 1)
    position = base ** (2 * n / dim)
    return 1 / (factor * position) * ramp + 1 / position * (1 - ramp)


@pytest.mark.parametrize("kind", ["none", "default", "linear", "ntk", "llama3", "yarn", "yarn as it is"])
def test_rope_table(kind: str) -> None:
    base, dim = 500000.0, 128
    f = [base ** (-2 * n / dim) for n in range(dim // 2)]
    scaling: dict[str, Any] | None = {"rope_type": kind, "factor": 4.0}
    if kind in ("none", "default"):
        scaling = None if kind == "none" else {"rope_type": "default"}
    if kind == "linear":
        f = [x / 4 for x in f]
    if kind == "ntk":
        f = [(base * 4 ** (dim / (dim - 2))) ** (-2 * n / dim) for n in range(dim // 2)]
        assert f[-1] == pytest.approx(base ** (2 / dim - 1) / 4, rel=1e-12)  # the slowest pair: 4 times slower
    if kind == "llama3":
        scaling, plain, f = LLAMA31, f, list(map(llama3, f))
        assert 0 < sum(x < y for x, y in zip(f, plain, strict=True)) < len(f)
    size = 1.0
    if kind.startswith("yarn"):
        scaling = {"rope_type": "yarn", **YARN}
        scaling |= {"beta_fast": 32, "attention_factor": None, "truncate": False} if kind != "yarn" else {}
        plain, f = f, [yarn(n, dim, base, 4.0, 4096, kind == "yarn") for n in range(dim // 2)]
        assert f[0] == plain[0]
        assert f[-1] == pytest.approx(plain[-1] / 4, rel=1e-12)
        size = 0.1 * math.log(4.0) + 1
        twice = rope_table(9, dim, base=base, scaling={**scaling, "attention_factor": 2.0})
        np.testing.assert_allclose(np.hypot(*twice), 2.0, rtol=1e-6)
    cos, sin = rope_table(5000, dim, base=base, scaling=scaling, dtype=np.float64)
    angles = np.arange(5000)[:, None] * np.array(f)
    np.testing.assert_allclose(cos, size * np.cos(angles), rtol=0, atol=1e-11)
    np.testing.assert_allclose(sin, size * np.sin(angles), rtol=0, atol=1e-11)
    for name, dtype in DTYPES.items():
        for table, exact in zip(
            rope_table(5000, dim, base=base, scaling=scaling, dtype=dtype), (cos, sin), strict=True
        ):
            assert table.dtype == dtype
            same_bits(table, exact.astype(dtype))
        assert name == dtype.name
    assert rope_table(3, 4)[0].dtype == np.float32


# --- mistakes ---

X, TABLE = np.zeros((2, 3, 5, 8), np.float32), np.ones((10, 4), np.float32)
STRIDED = np.lib.stride_tricks.as_strided(np.zeros(200, np.float32), X.shape, (0, 16, 4, 4))


def turn(**wrong: Any) -> dict[str, Any]:
    return {"x": X, "cos": TABLE, "sin": TABLE, **wrong}


WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (rope, turn(x=X.astype(complex)), TypeError, "x is complex128: give one of float64, float32, float16, bfloat16"),
    (rope, turn(x=X[0, 0, 0]), ValueError, "x has shape (8,): wanted (..., H, L, D), or (L, D) for one head"),
    (rope, turn(head_axis=1), ValueError, "head_axis is 1: wanted -3 for (..., H, L, D) or -2 for (..., L, H, D)"),
    (rope, turn(sin=TABLE[:9]), ValueError,
     "cos has shape (10, 4), sin (9, 4): both must be (P, R/2) or (..., L, R/2)"),
    (rope, turn(cos=TABLE[0], sin=TABLE[0]), ValueError,
     "cos and sin have shape (4,): wanted (P, R/2) or (..., L, R/2)"),
    (rope, turn(cos=X[0, 0], sin=X[0, 0]), ValueError,
     "cos and sin have 8 columns and turn 16 channels: x has 8"),
    (rope, turn(cos=TABLE[:4], sin=TABLE[:4]), ValueError,
     "cos and sin have shape (4, 4): wanted a row for each of the 5 rows of x, (2, 5)"),
    (rope, turn(cos=X[:1, ..., :4], sin=X[:1, ..., :4]), ValueError,
     "cos and sin have shape (1, 3, 5, 4): wanted a row for each of the 5 rows of x, (2, 5)"),
    (rope, turn(cos=X[0, ..., :4], sin=X[0, ..., :4], positions=np.arange(5)), ValueError,
     "positions are given, and cos and sin have shape (3, 5, 4): wanted (P, R/2), a row for a position"),
    (rope, turn(positions=np.arange(5.0)), TypeError, "positions is float64: wanted integers"),
    (rope, turn(positions=7), ValueError, "positions has shape (): wanted one that broadcasts to (2, 5), (..., L)"),
    (rope, turn(positions=np.zeros((3, 5), int)), ValueError,
     "positions has shape (3, 5): wanted one that broadcasts to (2, 5), (..., L)"),
    (rope, turn(positions=np.arange(6, 11)), ValueError,
     "positions holds 10: cos and sin have 10 rows, for positions from 0"),
    (rope, turn(positions=np.arange(-1, 4)), ValueError,
     "positions holds -1: cos and sin have 10 rows, for positions from 0"),
    (rope, turn(out=X.tolist()), TypeError, "out is list: wanted a NumPy array that the result is written to"),
    (rope, turn(out=X.astype(float)), TypeError, "out is float64, wanted float32, the dtype of x"),
    (rope, turn(out=X[0]), ValueError, "out has shape (3, 5, 8), wanted (2, 3, 5, 8)"),
    (rope, turn(out=np.broadcast_to(X[:1], X.shape)), ValueError,
     "out is read-only: wanted an array that can be written to"),
    (rope, turn(out=STRIDED), ValueError,
     "out has strides (0, 16, 4, 4) for shape (2, 3, 5, 8), so that elements share memory"),
    (rope_table, {"length": -1, "dim": 8}, ValueError, "length is -1: wanted 0 or more"),
    (rope_table, {"length": 1, "dim": 7}, ValueError,
     "dim is 7: channels turn in pairs, wanted an even number, 0 or more"),
    (rope_table, {"length": 1, "dim": 8, "base": 0}, ValueError, "base is 0: wanted a finite number above 0"),
    (rope_table, {"length": 1, "dim": 8, "dtype": int}, TypeError,
     "dtype is int64: wanted one of float64, float32, float16, bfloat16"),
    (rope_table, {"length": 1, "dim": 8, "scaling": {"type": "dynamic"}}, ValueError,
     "scaling has the rope_type 'dynamic': wanted 'default', 'linear', 'ntk', 'llama3', 'yarn'"),
    (rope_table, {"length": 1, "dim": 8, "scaling": {"type": "linear"}}, ValueError,
     "scaling is 'linear' without 'factor'"),
    (rope_table, {"length": 1, "dim": 8, "scaling": {"type": "ntk", "factor": 2, "beta_fast": 32}}, ValueError,
     "scaling has 'beta_fast', which 'ntk' does not know"),
    (rope_table, {"length": 1, "dim": 8, "scaling": {"rope_type": "ntk", "factor": 0}}, ValueError,
     "scaling has 'factor' = 0: wanted a finite number above 0"),
    (rope_table, {"length": 1, "dim": 8, "base": 1, "scaling": {**YARN, "type": "yarn"}}, ValueError,
     "scaling is 'yarn' and base is 1: wanted more than 1"),
    (rope_table, {"length": 1, "dim": 8, "scaling": {**YARN, "type": "yarn", "beta_slow": 0}}, ValueError,
     "scaling has 'beta_slow' = 0: wanted a finite number above 0"),
    (rope_table, {"length": 1, "dim": 2, "scaling": {"rope_type": "ntk", "factor": 2}}, ValueError,
     "scaling is 'ntk' and dim is 2: its exponent, dim / (dim - 2), needs dim > 2"),
    (rope_table, {"length": 1, "dim": 8, "scaling": {**LLAMA31, "low_freq_factor": 4}}, ValueError,
     "scaling has low_freq_factor 4 and high_freq_factor 4: wanted low < high"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "call", "error", "text"), WRONG, ids=[text[:50] for *_, text in WRONG])
def test_mistakes(function: Any, call: dict[str, Any], error: type[Exception], text: str) -> None:
    out = np.full(X.shape, 7, np.float32)
    call = {"out": out, **call} if function is rope else call
    with pytest.raises(error) as caught:
        function(**call)
    assert str(caught.value) == text
    assert (out == 7).all()
