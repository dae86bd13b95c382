"""Any array goes in and out as it lies: strides, byte orders, subclasses, overlaps, axes, and what is copied."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, bits, close, poisoned, qkv

import harken

Dtype = np.dtype[Any]


def unaligned(x: Array) -> Array:
    """The same numbers one byte away from where the processor would like them."""
    view = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def read_only(x: Array) -> Array:
    view = x.view()
    view.flags.writeable = False
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "gaps": poisoned,
    "steps of three": lambda x: poisoned(x, step=3),
    "columns first": np.asfortranarray,
    "backwards": lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "heads last": lambda x: x.swapaxes(-3, -2).copy().swapaxes(-3, -2),
    "unaligned": unaligned,
    "read-only": read_only,
}


def same(one: Any, other: Any) -> None:
    """Equal types, equal shapes, equal bits."""
    for a, b in zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]:
        assert type(a) is np.ndarray
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.array_equal(bits(a), bits(b))


@pytest.mark.parametrize("Lq", [1, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, dtype: Dtype, layout: str, Lq: int) -> None:
    q, k, v = qkv(dtype, Lq, 50, D=24, Dv=19, Hq=4, Hkv=2, batch=(2, 3))
    bias = qkv(dtype, Lq, 50, Hq=4)[0][..., :1] * np.ones(50, dtype)
    mask = np.random.default_rng(0).random((3, 1, Lq, 50)) < 0.8
    lay = LAYOUTS[layout]
    options = {"return_lse": True, "return_weights": True, "causal": True}
    plain = harken.attention(q, k, v, bias=bias, mask=mask, **options)
    same(harken.attention(lay(q), lay(k), lay(v), bias=lay(bias), mask=lay(mask), **options), plain)
    assert harken.explain(lay(q), lay(k), lay(v), bias=lay(bias), mask=lay(mask)).converted == ()


def test_broadcast_views(backend: str, dtype: Dtype) -> None:
    q, k, v = qkv(dtype, 20, 30, batch=(1,))
    wide = [np.broadcast_to(x, (5, *x.shape[1:])) for x in (q, k, v)]
    same(harken.attention(*wide), harken.attention(*map(np.ascontiguousarray, wide)))
    row = np.broadcast_to(k[..., :1, :], k.shape)  # every key is the same
    same(harken.attention(q, row, v), harken.attention(q, row.copy(), v))
    constant = np.broadcast_to(dtype.type(0.5), k.shape)
    same(harken.attention(q, constant, v), harken.attention(q, constant.copy(), v))


def test_fused_projection(dtype: Dtype) -> None:
    fused = np.random.default_rng(0).standard_normal((2, 30, 3, 4, 16)).astype(dtype)  # (B, L, qkv, H, D)
    q, k, v = (fused[:, :, n] for n in range(3))
    out = harken.attention(q, k, v, head_axis=-2)
    assert out.shape == (2, 30, 4, 16)
    assert out.flags.c_contiguous
    plain = harken.attention(*(x.swapaxes(-3, -2).copy() for x in (q, k, v)))
    same(out, plain.swapaxes(-3, -2))
    assert harken.explain(q, k, v, head_axis=-2).converted == ()


@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
def test_byte_order(name: str) -> None:
    q, k, v = qkv(name, 8, 9)
    bias = np.linspace(-1, 1, 72, dtype=name).reshape(8, 9)
    plain = harken.attention(q, k, v, bias=bias, sinks=np.arange(2.0))
    swapped = [x.astype(x.dtype.newbyteorder(">")) for x in (q, k, v, bias, np.arange(2.0))]
    options: dict[str, Any] = {"bias": swapped[3], "sinks": swapped[4]}
    same(harken.attention(*swapped[:3], **options), plain)
    same(harken.attention(q, swapped[1], v, **options), plain)
    assert harken.explain(*swapped[:3], **options).converted == ("q", "k", "v", "bias", "sinks")
    out = np.zeros(plain.shape, swapped[0].dtype)
    assert harken.attention(q, k, v, **options, out=out) is out
    assert np.array_equal(out, plain)
    lengths = np.array(5, ">i4")
    same(harken.attention(q, k, v, kv_lengths=lengths), harken.attention(q, k, v, kv_lengths=5))


def test_lists_and_integers() -> None:
    q, k, v = (np.rint(3 * x).astype(np.int64) for x in qkv(float, 4, 5))
    plain = harken.attention(*(x.astype(float) for x in (q, k, v)))
    assert plain.dtype == np.float64
    for kind in (np.ndarray.tolist, lambda x: x, lambda x: x.astype(np.int8), lambda x: x.astype(float)):
        same(harken.attention(kind(q), k, kind(v)), plain)
    same(harken.attention(q > 0, k, v), harken.attention((q > 0).astype(float), k, v))
    assert harken.explain(q.tolist(), k, v.astype(float)).converted == ("q", "k")
    same(
        harken.attention(q, k, v, mask=[[True] * 4 + [False]], bias=[1, 2, 3, 4, 5], window=[2, None]),
        harken.attention(q, k, v, mask=np.arange(5) < 4, bias=np.arange(1.0, 6), window=(2, None)),
    )


def test_scalars_of_every_kind() -> None:
    q, k, v = qkv(np.float32, 6, 7)
    for scale in (2, 2.0, np.float32(2), np.float16(2), np.int8(2), np.array(2.0), np.array([2]), [2.0, 2.0]):
        same(harken.attention(q, k, v, scale=scale), harken.attention(q, k, v, scale=2.0))
    same(harken.attention(q, k, v, scale=DTYPES["bfloat16"].type(2)), harken.attention(q, k, v, scale=2.0))
    same(harken.attention(q, k, v, scale=None), harken.attention(q, k, v, scale=1 / np.sqrt(16)))
    same(harken.attention(q, k, v, softcap=np.float32(3)), harken.attention(q, k, v, softcap=3))
    same(harken.attention(q, k, v, causal=np.True_), harken.attention(q, k, v, causal=True))
    for start in (3, np.int8(3), np.uint64(3), np.array(3)):
        expected = harken.attention(q, k, v, window=(None, 0), q_start=3)
        same(harken.attention(q, k, v, causal=True, q_start=start), expected)
    short = harken.attention(q, k, v, kv_lengths=np.uint8(4), threads=np.int64(1))
    same(short, harken.attention(q, k[:, :4], v[:, :4]))
    same(harken.attention(q, k, v, sinks=1, alibi=0.5), harken.attention(q, k, v, sinks=[1, 1], alibi=[0.5, 0.5]))


def test_any_magnitude() -> None:
    q, k, v = qkv(np.float32, 6, 7)
    everything, nothing = harken.attention(q, k, v), np.zeros_like(q)
    same(harken.attention(q, k, v, window=(10**30, 2**63)), everything)
    same(harken.attention(q, k, v, causal=True, q_start=10**30), everything)
    same(harken.attention(q, k, v, causal=True, q_start=-(10**30)), nothing)
    same(harken.attention(q, k, v, window=(2**62, 2**62), q_start=np.array(2**64 - 1, np.uint64)), everything)
    same(harken.attention(q, k, v, window=(5, None), q_start=np.array(2**63 - 1)), nothing)
    same(harken.attention(q, k, v, window=(None, 5), q_start=np.array(-(2**63))), nothing)
    same(harken.attention(q, k, v, threads=10**30), everything)


def test_subclasses(tmp_path: Path) -> None:
    class Named(np.ndarray):
        pass

    class Exporter:
        def __init__(self, array: Array) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            return self.array

    q, k, v = qkv(np.float32, 8, 9)
    plain = harken.attention(q, k, v)
    mapped = np.memmap(tmp_path / "k", np.float32, "w+", shape=k.shape)
    mapped[...] = k
    same(harken.attention(q.view(Named), mapped, Exporter(v)), plain)
    assert harken.explain(q.view(Named), mapped, Exporter(v)).converted == ()
    result = np.memmap(tmp_path / "out", np.float32, "w+", shape=plain.shape)
    assert harken.attention(q, k, v, out=result) is result
    assert np.array_equal(result, plain)


OUTPUTS: dict[str, Callable[[tuple[int, ...], Dtype], Array]] = {
    "plain": np.zeros,
    "gaps": lambda shape, dtype: poisoned(np.zeros(shape, dtype)),
    "steps of three": lambda shape, dtype: poisoned(np.zeros(shape, dtype), step=3),
    "columns first": lambda shape, dtype: np.zeros(shape, dtype, order="F"),
    "backwards": lambda shape, dtype: np.zeros(shape, dtype)[::-1, ..., ::-1, ::-1],
    "axes swapped": lambda shape, dtype: np.zeros(shape[::-1], dtype).transpose(),
    "unaligned": lambda shape, dtype: unaligned(np.zeros(shape, dtype)),
}


@pytest.mark.parametrize("head_axis", [-3, -2])
@pytest.mark.parametrize("Lq", [2, 40])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_out(backend: str, dtype: Dtype, kind: str, Lq: int, head_axis: int) -> None:
    q, k, v = qkv(dtype, Lq, 30, D=8, Dv=21, batch=(3,))
    if head_axis == -2:
        q, k, v = (x.swapaxes(-3, -2) for x in (q, k, v))
    plain, lse = harken.attention(q, k, v, head_axis=head_axis, return_lse=True)
    out = OUTPUTS[kind](plain.shape, dtype)
    base = out if out.base is None else out.base
    around = np.ones(base.shape, bool)
    if base.dtype == dtype and out.strides[-1] % dtype.itemsize == 0 and kind in ("gaps", "steps of three"):
        around[tuple(slice(1, None, s // b) for s, b in zip(out.strides, base.strides, strict=True))] = False
        before = base.copy()
    results = harken.attention(q, k, v, head_axis=head_axis, return_lse=True, out=out)
    assert results[0] is out
    same((out, results[1]), (plain, lse))
    assert harken.attention(q, k, v, head_axis=head_axis, out=out) is out
    if not around.all():
        assert np.array_equal(bits(base)[around], bits(before)[around]), "wrote beside out"


@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
@pytest.mark.parametrize("shift", [0, 1, 7, -1])
def test_out_overlaps_an_input(backend: str, dtype: Dtype, name: str, shift: int) -> None:
    L = 24
    arguments = dict(zip("qkv", qkv(dtype, L, L, D=L), strict=True), bias=qkv(dtype, L, L, D=L, seed=1)[0])
    expected = harken.attention(**arguments)
    buffer = np.zeros(arguments[name].size + 16, dtype)

    def window(start: int) -> Array:
        return buffer[8 + start :][: expected.size].reshape(expected.shape)

    arguments[name], out = window(0), window(shift)
    window(0)[...] = dict(zip("qkv", qkv(dtype, L, L, D=L), strict=True), bias=qkv(dtype, L, L, D=L, seed=1)[0])[name]
    assert harken.explain(**arguments, out=out).converted == ("out",)
    assert harken.attention(**arguments, out=out) is out
    same(out, expected)


def test_out_overlaps_small_inputs() -> None:
    q, k, v = qkv(np.float64, 8, 8, D=8)
    out = np.zeros_like(q)
    for name, array in {
        "mask": out[0].view(bool)[:, ::8],
        "sinks": out[0, 0, :2],
        "alibi": out[0, 0, :2],
        "scale": out[0, 0, :2],
    }.items():
        out[...] = 1.0
        if name == "mask":
            array[...] = np.tri(8, dtype=bool)
        expected = harken.attention(q, k, v, **{name: array.copy()})
        same(harken.attention(q, k, v, **{name: array}, out=out), expected)


def test_out_between_the_inputs() -> None:
    """A slice of the buffer that also holds q, k and v, but no element of theirs, is written in place."""
    fused = np.random.default_rng(0).standard_normal((30, 4, 2, 16)).astype(np.float32)  # (L, qkv and out, H, D)
    q, k, v, out = (fused[:, n] for n in range(4))
    expected = harken.attention(q, k, v, head_axis=-2)
    assert harken.explain(q, k, v, head_axis=-2, out=out).converted == ()
    same(harken.attention(q, k, v, head_axis=-2, out=out), expected)


def traced(call: Callable[[], Any]) -> int:
    """The most bytes of Python's and NumPy's memory that a call holds at once."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("Lq", [1, 300])
def test_nothing_is_copied(dtype: Dtype, Lq: int) -> None:
    q, k, v = qkv(dtype, Lq, 300, D=64, Hq=4, Hkv=2, batch=(2,))
    mask, bias = np.ones((2, 1, Lq, 300), bool), np.zeros((4, Lq, 300), dtype)
    out = np.zeros_like(q)
    for lay in LAYOUTS.values():
        arrays = {"q": lay(q), "k": lay(k), "v": lay(v), "mask": lay(mask), "bias": lay(bias)}
        assert traced(lambda arrays=arrays: harken.attention(**arrays, out=out)) < 4096
    assert traced(lambda: harken.attention(q, k, v)) < out.nbytes + 4096
    assert traced(lambda: harken.attention(q, k, v, out=q)) < out.nbytes + 4096
    assert traced(lambda: harken.explain(q, k, v, return_weights=True)) < 100_000


def test_explain_allocates_no_result() -> None:
    q = np.broadcast_to(np.zeros((1, 8), np.float32), (2**20, 2**18, 8))  # 2 TiB of out, 128 PiB of weights
    plan = harken.explain(q, q[:, :99], q[:, :99], return_lse=True, return_weights=True)
    assert plan.q == (2**20, 2**18, 8)


@pytest.mark.parametrize("batch", [None, (), (1,), (3,), (0,)])
@pytest.mark.parametrize("sizes", [*itertools.product([0, 2], [0, 3], [0, 4], [0, 5], [0, 6])])
def test_sizes_of_zero(backend: str, batch: tuple[int, ...] | None, sizes: tuple[int, ...]) -> None:
    H, Lq, Lk, D, Dv = sizes
    lead = () if batch is None else (*batch, H)
    q, k, v = (np.ones((*lead, *tail), np.float32) for tail in ((Lq, D), (Lk, D), (Lk, Dv)))
    out, lse, weights = harken.attention(q, k, v, return_lse=True, return_weights=True)
    assert (out.shape, lse.shape, weights.shape) == ((*lead, Lq, Dv), (*lead, Lq), (*lead, Lq, Lk))
    assert (out == (Lk > 0)).all()
    expected = np.log(Lk) + D**0.5 if Lk else -np.inf
    assert np.allclose(lse, expected)
    assert np.allclose(weights, 1 / max(Lk, 1))
    assert harken.explain(q, k, v).tasks >= 0
    same(harken.attention(q, k, v), out)
    same(harken.attention(q, k, v, out=np.full_like(out, 7)), out)


@pytest.mark.parametrize(
    ("q", "k", "v", "out"),
    [
        ((5, 8), (6, 8), (6, 7), (5, 7)),
        ((5, 8), (1, 6, 8), (6, 7), (1, 5, 7)),
        ((4, 5, 8), (6, 8), (6, 7), (4, 5, 7)),
        ((4, 5, 8), (2, 6, 8), (2, 6, 7), (4, 5, 7)),
        ((3, 4, 5, 8), (2, 6, 8), (2, 6, 7), (3, 4, 5, 7)),
        ((4, 5, 8), (3, 2, 6, 8), (1, 2, 6, 7), (3, 4, 5, 7)),
        ((3, 1, 4, 5, 8), (2, 2, 6, 8), (3, 2, 2, 6, 7), (3, 2, 4, 5, 7)),
        ((2, 1, 3, 1, 4, 5, 8), (1, 2, 1, 3, 2, 6, 8), (2, 6, 7), (2, 2, 3, 3, 4, 5, 7)),
    ],
)
def test_axes_broadcast(q: Any, k: Any, v: Any, out: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in (q, k, v)]
    options = {"return_lse": True, "return_weights": True, "causal": True}
    results = harken.attention(*arrays, **options)
    assert [x.shape for x in results] == [out, out[:-1], (*out[:-1], 6)]
    assert all(x.flags.c_contiguous for x in results)
    for actual, expected in zip(results, harken.reference(*arrays, **options), strict=True):
        close("broadcast", actual, expected, expected, 1e-14)
    last = [x if x.ndim == 2 else x.swapaxes(-3, -2) for x in arrays]
    swapped = harken.attention(*last, head_axis=-2, **options)
    same((swapped[0] if len(out) == 2 else swapped[0].swapaxes(-3, -2), *swapped[1:]), results)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_leading_axes_in_any_order(order: tuple[int, ...]) -> None:
    """Leading axes that merge, and some that do not, for every option that has them."""
    rng = np.random.default_rng(0)
    q, k, v = qkv(np.float64, 4, 6, Hq=4, Hkv=2, batch=(2, 3, 5), D=8)
    options = {
        "mask": rng.random((2, 1, 5, 1, 4, 6)) < 0.7,
        "bias": rng.standard_normal((3, 1, 4, 4, 6)),
        "q_start": rng.integers(-3, 4, (2, 1, 1)),
        "q_lengths": rng.integers(0, 5, (3, 5)),
        "kv_lengths": rng.integers(0, 7, (2, 3, 5)),
        "scale": rng.standard_normal((5, 4)),
        "alibi": rng.standard_normal((3, 1, 1)),
        "sinks": rng.standard_normal(4),
        "causal": True,
    }

    def shuffled(x: Array, tail: int) -> Array:
        """The same array, with leading axes that lie in memory in another order."""
        lead = x.ndim - tail
        if lead < 3:
            return x
        axes = (*order, *range(lead, x.ndim))
        return x.transpose(axes).copy().transpose(np.argsort(axes))

    tails = {"mask": 3, "bias": 3, "scale": 1, "alibi": 1, "sinks": 1, "q_start": 0, "q_lengths": 0, "kv_lengths": 0}
    moved = {n: shuffled(x, tails[n]) if n in tails else x for n, x in options.items()}
    out, lse = harken.attention(*(shuffled(x, 3) for x in (q, k, v)), **moved, return_lse=True)
    naive = harken.reference(q, k, v, **options, return_lse=True)
    close("out", out, naive[0], naive[0], 1e-13)
    close("lse", lse, naive[1], naive[1], 1e-13)


def test_as_many_axes_as_numpy_has() -> None:
    most = 64 if int(np.__version__.split(".")[0]) > 1 else 32
    q, k, v = (x.reshape(*[1] * (most - 9), *[2] * 6, *x.shape[-3:]) for x in qkv(np.float32, 3, 4, batch=(64,)))
    out, weights = harken.attention(q, k, v, return_weights=True)
    flat = harken.attention(*(x.reshape(64, *x.shape[-3:]) for x in (q, k, v)), return_weights=True)
    assert out.ndim == weights.ndim == most
    same((out.reshape(flat[0].shape), weights.reshape(flat[1].shape)), flat)


def test_results(dtype: Dtype) -> None:
    q, k, v = qkv(dtype, 4, 6)
    wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    assert type(harken.attention(q, k, v)) is np.ndarray
    for asked, dtypes in {
        ("return_lse",): (dtype, wide),
        ("return_weights",): (dtype, dtype),
        ("return_lse", "return_weights"): (dtype, wide, dtype),
    }.items():
        results = harken.attention(q, k, v, **dict.fromkeys(asked, True))
        assert type(results) is tuple
        assert tuple(x.dtype for x in results) == dtypes
        assert all(x.flags.owndata and x.flags.writeable and x.flags.c_contiguous for x in results)
