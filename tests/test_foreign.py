"""Arrays of other libraries go in where they lie and come back as their library's own, with NumPy's very bits."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, qkv, same_bits
from exporter import Exporter, contiguous
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import FLAGS, Library, equal, every_option, torch
from strategies import Call, calls

import harken
from harken.foreign import is_foreign, view

# --- what comes back ---


@pytest.mark.parametrize("function", [harken.attention, harken.reference], ids=["attention", "reference"])
def test_bits_of_numpy(library: Library, dtype: np.dtype[Any], function: Any) -> None:
    if not library.has(dtype):
        pytest.skip(f"{library.name} has no {dtype}")
    arrays, options = every_option(dtype)
    foreign = [library.of(x) for x in arrays]
    equal(library, function(*foreign), function(*arrays))
    equal(library, function(*foreign, causal=True, **FLAGS), function(*arrays, causal=True, **FLAGS))
    equal(library, function(*foreign, **library.all_of(options)), function(*arrays, **options))
    equal(library, function(*foreign, **options), function(*arrays, **options))


def test_every_backend(backend: str, library: Library) -> None:
    for Lq, Lk in ((1, 300), (70, 80), (200, 300)):
        arrays = qkv(np.float32, Lq, Lk, D=64)
        equal(library, harken.attention(*map(library.of, arrays), **FLAGS), harken.attention(*arrays, **FLAGS))


def test_parts_merge(library: Library) -> None:
    q, k, v = qkv(np.float32, 5, 12, batch=(2,))
    for axis, swap in ((-3, lambda x: x), (-2, lambda x: x.swapaxes(-3, -2))):
        pieces = [[swap(x) for x in (q, k[..., j : j + 6, :], v[..., j : j + 6, :])] for j in (0, 6)]
        options: dict[str, Any] = {"head_axis": axis}
        parts = [harken.attention(*piece, return_lse=True, **options) for piece in pieces]
        foreign = [tuple(library.of(np.ascontiguousarray(x)) for x in part) for part in parts]
        equal(library, harken.merge(foreign, **options), harken.merge(parts, **options))
        equal(library, harken.merge([foreign[0], parts[1]], **options), harken.merge(parts, **options))
        assert all(type(x) is np.ndarray for x in harken.merge([parts[0], foreign[1]], **options))
    with pytest.raises(TypeError, match=r"^parts\[0\] is .*: give \(out, lse\)"):
        harken.merge([library.of(np.ones((2, 5, 4)))])
    with pytest.raises(ValueError, match=r"^parts\[0\] has out \(5, 4\) and lse \(4,\): "):
        harken.merge([(library.of(np.ones((5, 4))), library.of(np.ones(4)))])
    with pytest.raises(TypeError, match=r"^lse of parts\[0\] is int64: give floating arrays"):
        harken.merge([(library.of(np.ones((5, 4))), library.of(np.ones(5, int)))])


@pytest.mark.parametrize("function", [harken.attention, harken.reference], ids=["attention", "reference"])
def test_q_decides(library: Library, function: Any) -> None:
    q, k, v = qkv(np.float32, 5, 6)
    plain = function(q, k, v)
    equal(library, function(library.of(q), k, library.of(v)), plain)
    for arrays in ((q, library.of(k), library.of(v)), (q, k, library.of(v))):
        out = function(*arrays)
        assert type(out) is np.ndarray
        same_bits(out, plain)
    mask = library.of(np.ones((5, 6), bool))
    assert type(function(q, k, v, mask=mask)) is np.ndarray
    assert type(function(q.tolist(), library.of(k.astype(float)), library.of(v.astype(float)))) is np.ndarray


def test_an_exporter_of_no_library_gets_numpy(dtype: np.dtype[Any]) -> None:
    arrays, options = every_option(dtype)
    exporters = {name: Exporter(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    for function in (harken.attention, harken.reference):
        for ours, numpys in zip(
            function(*map(Exporter, arrays), **exporters), function(*arrays, **options), strict=True
        ):
            assert type(ours) is np.ndarray
            same_bits(ours, numpys)


def test_subclass_of_a_librarys_array() -> None:
    torch = pytest.importorskip("torch")

    class Own(torch.Tensor):  # type: ignore[name-defined, misc]
        pass

    q = torch.ones(3, 4).as_subclass(Own)
    parameter = torch.nn.Parameter(torch.ones(3, 4), requires_grad=False)
    for x in (q, parameter):
        assert isinstance(harken.attention(x, x, x), torch.Tensor)


def test_the_device_of_q() -> None:
    xp = pytest.importorskip("array_api_strict")
    device = xp.Device("device1")
    q = xp.ones((2, 3, 4), device=device)
    for function in (harken.attention, harken.reference):
        out, lse = function(q, q, q, return_lse=True)
        assert (out.device, lse.device) == (device, device)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4), (0, 2, 3, 4), (0, 0, 0)])
def test_sizes_of_zero(library: Library, shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    equal(library, harken.attention(*[library.of(x)] * 3, **FLAGS), harken.attention(x, x, x, **FLAGS))


def test_integers_become_float64(library: Library) -> None:
    x = np.arange(12).reshape(3, 4)
    equal(library, harken.attention(*[library.of(x)] * 3), harken.attention(x, x, x))
    assert harken.explain(*[library.of(x)] * 3).converted == ("q", "k", "v")


# --- where it lies ---


def test_nothing_is_copied(library: Library, dtype: np.dtype[Any]) -> None:
    if not library.has(dtype):
        pytest.skip(f"{library.name} has no {dtype}")
    arrays, options = every_option(dtype)
    foreign = [library.of(x) for x in arrays]
    for name, x in zip("qkv", foreign, strict=True):
        seen = view(name, x)
        assert seen.ctypes.data == library.address(x)
        assert (seen.shape, seen.dtype) == (tuple(x.shape), dtype)
    assert harken.explain(*foreign, mask=library.of(options["mask"]), bias=library.of(options["bias"])).converted == ()
    assert str(harken.explain(*foreign)) == str(harken.explain(*arrays))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_are_not_copied(library: Library, dtype: str) -> None:
    """They lie in NumPy's memory, which tracemalloc sees, for as long as the library holds them."""
    if not library.has(DTYPES[dtype]):
        pytest.skip(f"{library.name} has no {dtype}")
    foreign = [library.of(x) for x in qkv(DTYPES[dtype], 257, 300, D=33)]
    harken.attention(*foreign, **FLAGS)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        results = harken.attention(*foreign, **FLAGS)
        sizes = [
            x.size * np.dtype(dtype if n != 1 else "f4").itemsize for n, x in enumerate(map(library.numpy, results))
        ]
        now, most = tracemalloc.get_traced_memory()
        assert sum(sizes) <= now - before <= most - before < sum(sizes) + 2**15
        del results
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 2**15
    finally:
        tracemalloc.stop()


def test_out_is_written_in_place(library: Library, dtype: np.dtype[Any]) -> None:
    if not library.has(dtype):
        pytest.skip(f"{library.name} has no {dtype}")
    q, k, v = arrays = qkv(dtype, 6, 7)
    plain = harken.attention(*arrays, return_lse=True)
    foreign = [library.of(x) for x in arrays]
    for function in (harken.attention, harken.reference):
        out = library.of(np.zeros_like(q))
        if library.immutable:
            with pytest.raises(ValueError, match=r"read-only"):
                function(*foreign, out=out)
            continue
        address = library.address(out)
        given, lse = function(*foreign, out=out, return_lse=True)
        assert given is out
        assert library.address(out) == address
        equal(library, (out, lse), function(*arrays, return_lse=True))
        ours = np.zeros_like(q)
        assert function(*foreign, out=ours) is ours  # NumPy's own for q's library
        out = library.of(np.zeros_like(q))
        assert function(q, k, v, out=out) is out  # and the other way round
    if not library.immutable:
        x = library.of(q.copy())  # out is q
        assert harken.attention(x, *foreign[1:], out=x) is x
        equal(library, x, plain[0])
        assert harken.explain(x, *foreign[1:], out=x).converted == ("out",)
        with pytest.raises(TypeError, match=r"^out is bool, wanted .*, the dtype of q$"):
            harken.attention(*foreign, out=library.of(np.zeros(q.shape, bool)))
        with pytest.raises(ValueError, match=r"^out has shape \(2, 6, 8\), wanted \(2, 6, 16\)$"):
            harken.attention(*foreign, out=library.of(np.zeros((2, 6, 8), dtype)))


def test_what_may_be_written_to() -> None:
    q, k, v = qkv(np.float32, 3, 4)
    out = np.zeros_like(q)
    writeable = Exporter(out)
    assert harken.attention(q, k, v, out=writeable) is writeable
    same_bits(out, harken.attention(q, k, v))
    for immutable in (Exporter(out, flags=1), Exporter(out, versioned=False)):
        with pytest.raises(ValueError, match=r"^out is read-only: wanted an array that can be written to$"):
            harken.attention(q, k, v, out=immutable)
        same_bits(harken.attention(immutable, k, v), harken.attention(out, k, v))


@pytest.mark.parametrize("make", [Exporter, contiguous, lambda x: Exporter(x, versioned=False)])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(DTYPES)))
def test_any_strides(make: Callable[[Array], Exporter], data: st.DataObject, name: str) -> None:
    q, k, v, options = data.draw(a_call(name))
    foreign = {n: make(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    plain = harken.attention(q, k, v, **options, return_lse=True)
    for ours, numpys in zip(
        harken.attention(make(q), make(k), make(v), **foreign, return_lse=True), plain, strict=True
    ):
        same_bits(ours, numpys)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(DTYPES)))
def test_any_strides_of_torch(data: st.DataObject, name: str) -> None:
    library = torch()
    q, k, v, options = data.draw(a_call(name))

    def of(x: Array) -> Any:
        backwards = any(n < 0 for n in x.strides)  # which PyTorch has not
        y = library.of(x.copy() if backwards else x)
        assert backwards or view("y", y).strides == x.strides or min(x.shape) < 2
        return y

    foreign = {n: of(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    plain = harken.attention(q, k, v, **options, return_lse=True)
    equal(library, harken.attention(of(q), of(k), of(v), **foreign, return_lse=True), plain)


def a_call(name: str) -> st.SearchStrategy[Call]:
    return calls(DTYPES[name], st.integers(0, 9), st.integers(0, 12), st.integers(0, 9))


def test_views_of_torch() -> None:
    torch = pytest.importorskip("torch")
    fused = torch.randn(2, 30, 3, 4, 16, generator=torch.Generator().manual_seed(0))  # (B, L, qkv, H, D)
    q, k, v = fused.unbind(2)
    plain = harken.attention(*(x.numpy() for x in (q, k, v)), head_axis=-2, causal=True)
    assert np.array_equal(harken.attention(q, k, v, head_axis=-2, causal=True), plain)
    heads_first = harken.attention(*(x.transpose(1, 2) for x in (q, k, v)), causal=True)
    assert np.array_equal(heads_first.transpose(1, 2), plain)
    wide = k[:1].expand(2, -1, -1, -1)
    assert np.array_equal(
        harken.attention(q, wide, wide, head_axis=-2),
        harken.attention(q.numpy(), wide.numpy(), wide.numpy(), head_axis=-2),
    )


# --- what is not foreign ---


def test_numpys_own_are_as_they_were() -> None:
    class Own(np.ndarray):
        pass

    class Convertible:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            return np.ones((3, 4), np.float32)

    x = np.ones((3, 4), np.float32)
    for given_x in (x.view(Own), Convertible(), x.tolist(), memoryview(x)):
        assert not is_foreign(given_x)
        assert view("q", given_x) is given_x
        assert type(harken.attention(given_x, given_x, given_x)) is np.ndarray


def test_everything_else_that_takes_arrays(library: Library) -> None:
    """The same numbers as with NumPy's arrays, and every array of a result in kind."""
    x = np.random.default_rng(8).standard_normal((2, 2, 12, 16)).astype(np.float32)
    rows = np.ascontiguousarray(x[0].swapaxes(0, 1))
    y, packed = library.of(x), library.of(rows)
    cos, sin = harken.rope_table(12, 16)
    cache = harken.KVCache(2, 2, 64, 16)
    cache.append(y, y)
    pairs = [
        (harken.rope(y, cos, sin), harken.rope(x, cos, sin)),
        (harken.additive_attention(y, y, y), harken.additive_attention(x, x, x)),
        (harken.attention_varlen(packed, packed, packed, [0, 5, 12]), harken.attention_varlen(*[rows] * 3, [0, 5, 12])),
        (cache.attend(y), harken.attention(x, x, x, causal=True)),
    ]
    stats, same = (harken.attention_stats(a, a, top_k=2, entropy=True) for a in (y, x))
    pairs += [(getattr(stats, name), getattr(same, name)) for name in ("lse", "top_indices", "top_weights", "entropy")]
    for found, expected in pairs:
        assert isinstance(found, library.kind)
        np.testing.assert_array_equal(library.numpy(found), expected)
    listed = [library.of(part) for part in (rows[:5], rows[5:])]
    parts = harken.attention_varlen(listed, listed, listed)
    assert len(parts) == 2
    assert all(isinstance(part, library.kind) for part in parts)
