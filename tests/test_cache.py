"""A cache gives, bit for bit, what attention gives over all that was appended, however its keys and values lie."""

from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from child import in_child
from compare import in_form, qkv, same_bits
from twin import LAYOUTS, NAMES, Twin

import harken

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all keys": {"causal": False},
    "window, alibi, sinks": {"window": (30, None), "alibi": np.linspace(0.1, 0.4, 4), "sinks": np.arange(4.0)},
    "cosine, softcap": {"score": "cosine", "softcap": 3.0, "scale": 5.0},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_it_is_attention(backend: str, layout: dict[str, Any], options: str) -> None:
    """A prompt, tokens, a longer piece, rows of their own lengths; a ring goes round."""
    twin = Twin(3, 150 if layout["layout"] == "ring" else 300, **layout)
    twin.append(70)
    twin.check(70, **OPTIONS[options])
    for _ in range(3):
        twin.append(1)
        twin.check(1, **OPTIONS[options])
    twin.append(64, [10, 64, 0])
    twin.check(10, **OPTIONS[options])
    for L in (40, 1, 33):
        twin.append(L)
        twin.check(L, **OPTIONS[options])
    twin.append(1, [1, 0, 1])
    twin.check(2, **OPTIONS[options])


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_types(backend: str, dtype: np.dtype[Any], layout: dict[str, Any]) -> None:
    for D in (48, 64):
        twin = Twin(2, 200 if layout["layout"] == "ring" else 400, dtype, D, **layout)
        twin.append(180)
        twin.append(100, [77, 100])
        for Lq in (1, 20, 70):
            twin.check(Lq)


FORMS = ("tiled", "brief", "decode", "matrix")


@pytest.mark.parametrize("form", FORMS)
def test_forms(backend: str, form: str, dtype: np.dtype[Any]) -> None:
    """Each of them reads pages that begin and end anywhere."""
    with in_form(form):
        for layout in ({"layout": "ring"}, {"layout": "paged", "page_size": 7}, {"layout": "paged", "page_size": 128}):
            twin = Twin(2, 300, dtype, 32, **layout)
            twin.append(290, [290, 133])
            if layout["layout"] == "ring":
                twin.append(150)
            for Lq, options in (
                (3, {}),
                (70, {}),
                (40, {"alibi": 0.1, "window": (100, None)}),
                (5, {"score": "cosine"}),
            ):
                twin.check(Lq, **options)
            twin.check(20, return_weights=False, precision="medium")


def test_many_keys(backend: str) -> None:
    """Keys that are cut into ranges, rows of which have none."""
    for layout in LAYOUTS:
        twin = Twin(3, 5000 if layout["layout"] != "ring" else 4500, D=16, **layout)
        twin.append(4400, [4400, 0, 1200])
        twin.append(300, [300, 0, 300])
        for Lq in (1, 12, 300):
            twin.check(Lq)


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_threads_do_not_show(layout: dict[str, Any]) -> None:
    twin = Twin(4, 3000, **layout)
    twin.append(2900, [2900, 1, 700, 64])
    q = twin.random(4, 4, 5, 64)
    one = twin.cache.attend(q, threads=1)
    same_bits(twin.cache.attend(q, threads=3), one)
    found: list[Any] = []
    others = [threading.Thread(target=lambda: found.append(twin.cache.attend(q))) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert len(found) == 4
    for out in found:
        same_bits(out, one)


def test_options_of_each_row() -> None:
    """Masks, bias, starts and lengths of queries, where rows have different keys."""
    for layout in LAYOUTS:
        twin = Twin(2, 90, **layout)
        twin.append(70, [70, 50])
        q, rng = twin.random(2, 4, 6, 64), np.random.default_rng(1)
        mask, bias = rng.random((2, 1, 6, 70)) < 0.7, twin.random(4, 6, 70)
        options = {"mask": mask, "bias": bias, "q_start": [60, 44], "q_lengths": [6, 3]}
        out, weights = twin.cache.attend(q, **options, return_weights=True)
        for b, n in enumerate((70, 50)):
            own = {"mask": mask[b, ..., :n], "bias": bias[..., :n], "q_start": [60, 44][b], "q_lengths": [6, 3][b]}
            expected = harken.attention(q[b], twin.k[b], twin.v[b], causal=True, **own, return_weights=True)
            same_bits(out[b], expected[0])
            same_bits(np.ascontiguousarray(weights[b, ..., :n]), expected[1])
            assert not weights[b, ..., n:].any()
        swapped = twin.cache.attend(q.swapaxes(1, 2), head_axis=-2)
        same_bits(np.ascontiguousarray(swapped.swapaxes(1, 2)), twin.cache.attend(q))


def test_positions_stay_true() -> None:
    """A ring that has dropped keys gives what the whole history gives through a window that fits into it."""
    rng = np.random.default_rng(0)
    k, v, q = rng.standard_normal((3, 1, 2, 1000, 32))
    ring = harken.KVCache(1, 2, 100, 32, dtype=np.float64, layout="ring")
    for t in range(0, 1000, 8):
        ring.append(k[:, :, t : t + 8], v[:, :, t : t + 8])
        options: dict[str, Any] = {"alibi": [0.05, 0.2], "window": (90, None)}
        for given in ({}, {"q_start": t}):
            out = ring.attend(q[:, :, t : t + 8], **options, **given)
            exact = harken.reference(
                q[:, :, t : t + 8], k[:, :, : t + 8], v[:, :, : t + 8], causal=True, q_start=t, **options
            )
            assert np.abs(out - exact).max() < 1e-12
    assert (ring.starts, ring.lengths) == (900, 100)


def test_a_ring_takes_more_than_it_holds() -> None:
    twin = Twin(2, 20, layout="ring")
    twin.append(7)
    twin.append(65, [65, 12])
    twin.check(3)
    twin.append(41, [3, 41])
    twin.check(20)


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_truncate_and_reset(layout: dict[str, Any]) -> None:
    twin = Twin(3, 60, **layout)
    twin.append(55, [55, 20, 33])
    if layout["layout"] == "ring":
        twin.append(20)
    twin.truncate(twin.cache.lengths - [3, 0, 12])
    twin.append(4, [2, 0, 4])
    twin.check(2)
    twin.truncate(1)
    twin.append(5)
    twin.check(6)
    twin.cache.reset([1])
    twin.k[1], twin.v[1], twin.dropped[1] = twin.k[1][:, :0], twin.v[1][:, :0], 0
    twin.append(3)
    twin.check(3)
    twin.cache.reset()
    assert not twin.cache.lengths.any()
    assert not twin.cache.starts.any()
    assert twin.cache.free_pages == (twin.cache.pages or 0)


def test_a_full_cache_says_so_and_changes_nothing() -> None:
    for layout, text in (
        ({"layout": "contiguous"}, r"row 1 holds 9 of 10 keys, 2 more do not fit: truncate or reset it, make the"),
        ({"layout": "paged", "page_size": 4}, r"row 1 holds 9 of 10 keys"),
        ({"layout": "paged", "page_size": 4, "pages": 5}, r"the cache has 0 free pages of 4 keys, this takes 1"),
    ):
        twin = Twin(2, 10 if "pages" not in layout else 100, **layout)
        twin.append(9, [8, 9])
        with pytest.raises(ValueError, match=text):
            twin.append(2, [1 if "pages" in layout else 2, 2])
        twin.check(2)
        twin.append(1, [0, 1])
        twin.check(2)


def test_forks_share_pages() -> None:
    twin = Twin(1, 64, layout="paged", page_size=4, pages=9)
    cache = twin.cache
    twin.append(10)
    assert cache.free_pages == 6
    for _ in range(2):
        assert cache.fork(0) == len(twin.k)
        twin.k.append(twin.k[0])
        twin.v.append(twin.v[0])
        twin.dropped.append(0)
    assert (cache.batch, cache.free_pages) == (3, 6)
    twin.append(2)  # two of three copy the page that they share, the last writes in place
    assert cache.free_pages == 4
    twin.check(3)
    twin.append(3)
    assert cache.free_pages == 1
    twin.check(5)
    with pytest.raises(ValueError, match="1 free pages of 4 keys, this takes 3"):
        twin.append(2)
    twin.check(5)
    assert cache.fork(2, into=1) == 1
    twin.k[1], twin.v[1] = twin.k[2], twin.v[2]
    assert cache.free_pages == 3
    twin.check(4)
    twin.truncate(6)
    twin.append(1)
    twin.check(2)
    cache.reset()
    assert cache.free_pages == 9


def test_forks_take_no_page_more_than_they_write() -> None:
    twin = Twin(1, 16, layout="paged", page_size=4, pages=4)
    twin.append(6)
    for _ in range(2):
        twin.cache.fork(0)
        twin.k.append(twin.k[0])
        twin.v.append(twin.v[0])
        twin.dropped.append(0)
    twin.append(1)
    assert twin.cache.free_pages == 0
    twin.check(3)


def test_views() -> None:
    cache = harken.KVCache(2, 3, 8, 4)
    k, v = qkv(np.float32, 1, 5, D=4, Dv=4, Hq=3, batch=(2,))[1:]
    cache.append(k, v)
    same_bits(np.ascontiguousarray(cache.keys()), k)
    assert np.shares_memory(cache.values(1), cache.values())
    with pytest.raises(ValueError, match="read-only"):
        cache.keys()[...] = 0
    cache.truncate([2, 3])
    with pytest.raises(ValueError, match=r"rows hold \[2, 3\] keys: name one"):
        cache.keys()
    assert harken.KVCache(1, 1, 5, 4, layout="paged").keys(0).shape == (1, 0, 4)


MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batch": 0}, ValueError, "batch is 0: wanted 1 or more"),
    ({"capacity": 1.5}, TypeError, "capacity is 1.5: wanted an integer, 1 or more"),
    ({"dtype": np.int8}, TypeError, "dtype is int8: give one of float64, float32, float16, bfloat16"),
    ({"layout": "heap"}, ValueError, "layout is 'heap': wanted one of contiguous, ring, paged"),
    ({"page_size": 8}, ValueError, "page_size is given for layout='contiguous': only layout='paged' has pages"),
]


def test_wrong_calls() -> None:
    right: dict[str, Any] = {"batch": 2, "kv_heads": 2, "capacity": 10, "head_dim": 4}
    for wrong, error, text in MISTAKES:
        with pytest.raises(error, match=text):
            harken.KVCache(**{**right, **wrong})
    cache = harken.KVCache(**right)
    k = np.zeros((2, 2, 3, 4), np.float32)
    for arguments, error, text in (
        ((k[0], k), ValueError, r"k has shape \(2, 3, 4\): wanted \(2, 2, L, 4\)"),
        ((k, k[:, :, :2]), ValueError, "v has 2 rows, k has 3: keys and values come in pairs"),
        ((k.astype(float), k), TypeError, r"k is float64, the cache holds float32: give k.astype\('float32'\)"),
        ((k, k, [1, 4]), ValueError, "lengths of row 1 is 4: wanted 0 to 3, the rows of k"),
        ((k, k, [1.0, 2.0]), TypeError, "lengths is float64: wanted integers, one for each row"),
        ((k, k, [1]), ValueError, r"lengths has shape \(1,\): wanted \(2,\), one for each row"),
    ):
        with pytest.raises(error, match=text):
            cache.append(*arguments)
        assert not cache.lengths.any()
    for options, error, text in (
        ({"q": k[:1]}, ValueError, r"q has shape \(1, 2, 3, 4\): wanted 4 axes, with 2 batch rows"),
        ({"q": k.astype(float)}, TypeError, "q is float64, k is float32"),
        ({"q": k, "kv_lengths": 3}, TypeError, "takes no kv_lengths: the cache knows"),
        ({"q": k, "is_causal": True}, TypeError, "unexpected keyword argument 'is_causal'. Did you mean 'causal'"),
        ({"q": k[:, :1]}, ValueError, "k has 2 heads, q has 1"),
    ):
        with pytest.raises(error, match=text):
            cache.attend(**options)
    with pytest.raises(ValueError, match="lengths of row 0 is 1: wanted 0 to 0, the keys that the row holds"):
        cache.truncate(1)
    with pytest.raises(ValueError, match="row is 2: the cache has 2 rows"):
        cache.reset(2)
    with pytest.raises(ValueError, match="fork needs layout='paged'"):
        cache.fork(0)


def steps(layout: dict[str, Any]) -> int:
    """The most that is allocated at once in steps of decoding, in bytes."""
    cache = harken.KVCache(2, 4, 600, 64, **layout)
    q, k, v = qkv(np.float32, 1, 1, D=64, Hq=8, Hkv=4, batch=(2,))
    prompt = np.zeros((2, 4, 500, 64), np.float32)
    cache.append(prompt, prompt, [500, 333])
    out = np.zeros_like(q)
    tracemalloc.start()
    for step in range(60):
        if step == 2:
            tracemalloc.clear_traces()
            tracemalloc.reset_peak()
        cache.append(k, v)
        cache.attend(q, out=out)
    return tracemalloc.get_traced_memory()[1]


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_a_step_takes_no_memory(layout: dict[str, Any]) -> None:
    """One row of keys of a head is 128 KB, a token's 4 KB."""
    assert in_child(steps, layout) < 6000


@pytest.mark.parametrize("layout", ["contiguous", "ring", "paged"])
def test_a_mask_knows_how_many_keys_each_row_holds(backend: str, layout: Any) -> None:
    mask = harken.masks.Window(5, 0) | harken.masks.Prefix(2)
    rng = np.random.default_rng(3)
    k, v = (rng.standard_normal((2, 2, 40, 16)).astype(np.float32) for _ in range(2))
    q = rng.standard_normal((2, 4, 3, 16)).astype(np.float32)
    cache = harken.KVCache(2, 2, 64, 16, layout=layout)
    cache.append(k, v, lengths=[40, 25])
    out = cache.attend(q, mask=mask)
    for row, n in enumerate((40, 25)):
        alone = harken.attention(q[row], k[row, :, :n], v[row, :, :n], mask=mask, causal=True)
        same_bits(out[row], alone)


def test_factors_of_integers_are_refused() -> None:
    cache = harken.KVCache(1, 1, 8, 16)
    cache.append(*np.zeros((2, 1, 1, 4, 16), np.float32))
    with pytest.raises(TypeError, match=r"attend\(\) takes no k_scale"):
        cache.attend(np.zeros((1, 1, 1, 16), np.float32), k_scale=1.0)
