"""A cache keeps keys and values in another type than they come in: rounded once, integers with their factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import Array, same_bits

import harken

LAYOUTS = ("contiguous", "ring", "paged")


def filled(layout: Any, kv_dtype: Any, page_size: int = 64) -> tuple[harken.KVCache, list[Array], list[Array]]:
    """A cache after appending pieces of different lengths, and what its two rows were given and still hold."""
    rng = np.random.default_rng(11)
    k, v = rng.standard_normal((2, 2, 2, 210, 64)).astype(np.float32)
    pages = {"page_size": page_size} if layout == "paged" else {}
    cache = harken.KVCache(2, 2, 150, 64, layout=layout, kv_dtype=kv_dtype, **pages)
    lengths = np.zeros(2, int)
    for counts in ([70, 3], [1, 1], [60, 90], [19, 1], *([[50, 20], [1, 1]] if layout == "ring" else [])):
        pieces = np.zeros((2, 2, 2, max(counts), 64), np.float32)
        for row, count in enumerate(counts):
            for piece, x in zip(pieces, (k, v), strict=True):
                piece[row, :, :count] = x[row, :, lengths[row] : lengths[row] + count]
        cache.append(*pieces, lengths=counts)
        lengths += counts
    held = [slice(max(0, n - 150), n) for n in lengths]
    return cache, *([x[row, :, held[row]] for row in range(2)] for x in (k, v))


@pytest.mark.parametrize("page_size", [64, 16, 7])
@pytest.mark.parametrize("Lq", [1, 4, 40])
def test_integers_are_those_of_quantize(backend: str, Lq: int, page_size: int) -> None:
    q = np.random.default_rng(12).standard_normal((2, 8, Lq, 64)).astype(np.float32)
    for layout in LAYOUTS if page_size == 64 else ("paged",):
        cache, k, v = filled(layout, "int8", page_size)
        out, lse = cache.attend(q, return_lse=True)
        for row in range(2):
            (n, s), (m, t) = harken.quantize(k[row]), harken.quantize(v[row])
            alone = harken.attention(q[row], n, m, k_scale=s, v_scale=t, causal=True, return_lse=True)
            same_bits(out[row], alone[0])
            same_bits(lse[row], alone[1])
            same_bits(cache.keys(row), n * s)
            same_bits(cache.values(row), m * t)


def test_integers_err_no_more_than_stated() -> None:
    q = np.random.default_rng(13).standard_normal((2, 8, 4, 64)).astype(np.float32)
    cache, k, v = filled("contiguous", "int8")
    for row in range(2):
        exact = harken.reference(q[row], k[row], v[row], causal=True, dtype=np.float64)
        s, t = harken.quantize(k[row])[1].max(), harken.quantize(v[row])[1].max()
        delta = np.abs(q[row]).sum(-1, keepdims=True) * s / 2 / np.sqrt(64)
        error = np.abs(cache.attend(q)[row] - exact)
        assert (error <= np.expm1(2 * delta) * np.abs(v[row]).max() + t / 2).all()
        assert 1e-4 < error.max() < 0.02  # and far less, in fact


@pytest.mark.parametrize("kv_dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_narrower_cache_is_smaller_and_survives_forks_and_files(tmp_path: Any, layout: Any, kv_dtype: str) -> None:
    q = np.random.default_rng(14).standard_normal((2, 4, 3, 64)).astype(np.float32)
    cache, k, v = filled(layout, kv_dtype)
    assert cache.dtype == np.float32
    assert cache.kv_dtype.name == kv_dtype
    assert cache.nbytes <= filled(layout, None)[0].nbytes * (0.27 if kv_dtype == "int8" else 0.5)
    out = cache.attend(q)
    if kv_dtype != "int8":
        for row in range(2):
            stored = (x[row].astype(cache.kv_dtype) for x in (k, v))
            same_bits(out[row], harken.attention(q[row], *stored, causal=True))
    cache.save(tmp_path / "cache.npz")
    again = harken.KVCache.load(tmp_path / "cache.npz")
    assert (again.dtype, again.kv_dtype) == (cache.dtype, cache.kv_dtype)
    same_bits(again.attend(q), out)
    if layout == "paged":
        twin = cache.fork(1)
        cache.truncate([150, 90, 95])
        piece = np.ones((3, 2, 1, 64), np.float32)
        cache.append(piece, piece, lengths=[0, 1, 1])
        same_bits(np.ascontiguousarray(cache.keys(twin)[:, :95]), np.ascontiguousarray(again.keys(1)[:, :95]))
        same_bits(np.ascontiguousarray(cache.keys(1)[:, :90]), np.ascontiguousarray(again.keys(1)[:, :90]))


def test_what_a_cache_cannot_keep() -> None:
    with pytest.raises(TypeError, match=r"kv_dtype is int8 for a cache of float64: wanted float64 alone"):
        harken.KVCache(1, 1, 8, 16, dtype=np.float64, kv_dtype="int8")
    with pytest.raises(TypeError, match=r"kv_dtype is int16 for a cache of float32: wanted one of float32"):
        harken.KVCache(1, 1, 8, 16, kv_dtype=np.int16)
    cache = harken.KVCache(1, 1, 8, 16, kv_dtype="int8")
    k = np.zeros((1, 1, 4, 16), np.float32)
    with pytest.raises(ValueError, match="NaN"):
        cache.append(k, k + np.nan)
    assert cache.lengths.tolist() == [0]
