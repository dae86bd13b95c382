"""A cache on a card holds and answers what harken.KVCache does, and attends there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import emulated
import numpy as np
import pytest
from compare import DTYPES, check, same_bits

import harken
import harken.cuda

pytestmark = [emulated.needed, pytest.mark.usefixtures("emulator")]


def drawn(L: int, dtype: Any = np.float32, seed: int = 0) -> tuple[Any, Any, Any]:
    """Queries of 4 heads, keys and values of 2, for 2 rows."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((2, H, L, D)).astype(dtype) for H, D in ((4, 24), (2, 24), (2, 40)))  # type: ignore


def cache_of(dtype: Any = np.float32, **given: Any) -> Any:
    return harken.cuda.KVCache(2, 2, 50, 24, value_dim=40, dtype=dtype, **given)


def test_tokens_one_by_one(dtype: np.dtype[Any]) -> None:
    q, k, v = drawn(20, dtype)
    cache = cache_of(dtype)
    whole = harken.attention(q, k, v, causal=True, device="cuda")
    cache.append(k[:, :, :11], v[:, :, :11])
    same_bits(cache.attend(q[:, :, :11]), np.ascontiguousarray(whole[:, :, :11]))
    for n in range(11, 20):
        cache.append(k[:, :, n : n + 1], v[:, :, n : n + 1])
        same_bits(cache.attend(q[:, :, n : n + 1]), np.ascontiguousarray(whole[:, :, n : n + 1]))
    same_bits(cache.keys().copy(), k)
    same_bits(cache.values(1).copy(), v[1])
    out, lse = cache.attend(q, causal=False, window=(3, None), return_lse=True)
    wanted = harken.attention(q, k, v, window=(3, None), return_lse=True, device="cuda")
    same_bits(out, wanted[0])
    same_bits(lse, wanted[1])


def test_rows_of_their_own_lengths_and_truncate() -> None:
    q, k, v = drawn(30)
    cache, here = cache_of(), harken.KVCache(2, 2, 50, 24, value_dim=40)
    for one in (cache, here):
        one.append(k, v, lengths=[30, 17])
        one.truncate([25, 17])
        one.append(k[:, :, :4], v[:, :, :4], lengths=[4, 0])
    assert cache.lengths.tolist() == here.lengths.tolist() == [29, 17]
    mask = harken.masks.Window(9) | harken.masks.Prefix(2)
    for options in ({}, {"mask": mask}, {"q_start": [3, 1]}, {"bias": np.ones((29,), np.float32)}):
        np.testing.assert_allclose(
            cache.attend(q[:, :, :5], **options), here.attend(q[:, :, :5], **options), rtol=2e-5, atol=2e-6
        )
    for row in range(2):
        same_bits(cache.keys(row).copy(), here.keys(row).copy())
    cache.reset()
    assert not cache.attend(q[:, :, :2]).any()


@pytest.mark.parametrize("kept", ["int8", "float16", "bfloat16"])
def test_kept_in_less(kept: str) -> None:
    q, k, v = drawn(20)
    cache = cache_of(kv_dtype=kept)
    cache.append(k, v)
    if kept == "int8":
        (k8, ks), (v8, vs) = harken.quantize(k), harken.quantize(v)
        wanted = check(q, k8, v8, k_scale=ks, v_scale=vs, causal=True, device="cuda", weights=False)
    else:
        to = DTYPES[kept]
        wanted = harken.attention(q, k.astype(to), v.astype(to), causal=True, device="cuda")
    same_bits(cache.attend(q), wanted)


def there(x: Any) -> Any:
    """A copy of the array on the card."""
    from harken.cuda.arrays import make_there
    from harken.cuda.interface import load

    made = make_there(0, 0, x.shape, x.dtype, False)
    load().call("copy", 0, made.__array_interface__["data"][0], np.ascontiguousarray(x).ctypes.data, x.nbytes, None)
    return harken.cuda.Array(made, 0, 0)


def test_arrays_of_the_card() -> None:
    q, k, v = drawn(20)
    cache = cache_of()
    cache.append(there(k), there(v))
    out = cache.attend(there(q))
    assert isinstance(out, harken.cuda.Array)
    same_bits(out.numpy(), cache.attend(q))
    with pytest.raises(TypeError, match=r"^k is float16 on cuda:0 with strides .*: a cache there wanted float32 and"):
        cache.append(there(k.astype(np.float16)), there(v))


def test_saved_and_loaded(tmp_path: Path) -> None:
    q, k, v = drawn(20)
    cache = cache_of()
    cache.append(k, v, lengths=[20, 7])
    cache.save(tmp_path / "cache.npz")
    for one in (harken.cuda.KVCache.load(tmp_path / "cache.npz"), cache):
        same_bits(one.attend(q), cache.attend(q))


def test_wrong_calls() -> None:
    _, k, v = drawn(51)
    cache = cache_of()
    with pytest.raises(ValueError, match=r"^row 0 holds 0 of 50 keys, 51 more do not fit"):
        cache.append(k, v)
    with pytest.raises(TypeError, match=r"^k is float64, the cache holds float32: give k.astype"):
        cache.append(k.astype(float), v)
    with pytest.raises(ValueError, match=r"^layout is 'ring': on a card wanted 'contiguous'$"):
        cache_of(layout="ring")
    with pytest.raises(ValueError, match=r"^fork needs layout='paged'"):
        cache.fork(0)
    with pytest.raises(MemoryError, match="out of memory"):
        harken.cuda.KVCache(8, 8, 10**6, 64)
