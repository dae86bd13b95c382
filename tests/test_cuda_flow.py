"""NumPy arrays flow through a card in pieces: in order, beyond its memory, and with errors in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_void_p
from typing import Any

import emulated
import numpy as np
import pytest
from compare import check, poisoned, qkv, same_bits

import harken
import harken.cuda
from harken import masks
from harken.cuda.interface import load

pytestmark = [emulated.needed, pytest.mark.usefixtures("emulator")]


def free() -> int:
    return int(harken.cuda.devices()[0]["free"])


@contextmanager
def card_of(size: int) -> Iterator[None]:
    """Inside, the card has so much memory left; a piece may take a quarter."""
    at = c_void_p()
    load().call("allocate", 0, free() - size, None, byref(at))
    try:
        yield
    finally:
        load().call("release", 0, at, None)


def test_pieces_come_back_in_order(dtype: np.dtype[Any]) -> None:
    """Each head by itself is small enough to go another way."""
    q, k, v = qkv(dtype, 40, 60, 64, 40, Hq=6, Hkv=3, batch=(2, 5))
    out, lse = harken.attention(q, k, v, causal=True, return_lse=True, device="cuda")
    for at in np.ndindex(2, 5, 3):
        b, pair = at[:2], slice(2 * at[2], 2 * at[2] + 2)
        alone = [x[b][rows] for x, rows in ((q, pair), (k, at[2:]), (v, at[2:]))]
        one = harken.attention(*alone, causal=True, return_lse=True, device="cuda")
        same_bits(out[b][pair], one[0])
        same_bits(lse[b][pair], one[1])


def test_gaps_and_results_that_are_given() -> None:
    q, k, v = qkv(np.float32, 50, 60, 64, Hq=4, batch=(6,))
    plain = harken.attention(q, k, v, device="cuda")
    out = poisoned(np.zeros_like(q), 2)
    assert harken.attention(*(poisoned(x, 3) for x in (q, k, v)), out=out, device="cuda") is out
    same_bits(out.copy(), plain)
    swapped = harken.attention(*(x.swapaxes(1, 2) for x in (q, k, v)), head_axis=-2, device="cuda")
    same_bits(swapped.swapaxes(1, 2), plain)
    one = np.broadcast_to(k[:1, :1], k.shape)
    same_bits(harken.attention(q, one, v, device="cuda"), harken.attention(q, one.copy(), v, device="cuda"))


def test_pinned_arrays() -> None:
    q, k, v = qkv(np.float16, 100, 120, 64, Hq=6)
    arrays = [harken.cuda.pinned_empty(x.shape, x.dtype) for x in (q, k, v, q)]
    for to, x in zip(arrays, (q, k, v), strict=False):
        to[...] = x
    same_bits(harken.attention(*arrays[:3], out=arrays[3], device="cuda"), harken.attention(q, k, v, device="cuda"))
    assert harken.cuda.pinned_empty((0, 3)).shape == (0, 3)


def options(name: str) -> dict[str, Any]:
    """For 2 heads, 30 queries and 700 keys."""
    rng = np.random.default_rng(1)
    mask = rng.random((2, 30, 700)) < 0.3
    mask[0, 3] = False
    return {
        "plain": {},
        "causal": {"causal": True},
        "window": {"window": (300, 40), "q_start": 200},
        "lengths": {"kv_lengths": 410, "q_lengths": 22, "causal": True, "sinks": [0.5, -2.0]},
        "arrays": {"mask": mask, "bias": rng.standard_normal((2, 30, 700)).astype(np.float32)},
        "alibi": {"alibi": harken.alibi_slopes(2), "softcap": 4.0, "window": (400, None)},
        "lists": {"mask": masks.Documents(np.arange(700) // 90, np.arange(670, 700) // 90) | masks.Prefix(5)},
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "causal", "window", "lengths", "arrays", "alibi", "lists"])
def test_keys_beyond_the_card(name: str) -> None:
    q, k, v = qkv(np.float32, 30, 700, 48, 64)
    with card_of(400_000):
        check(q, k, v, weights=False, device="cuda", **options(name))


def test_types_beyond_the_card(dtype: np.dtype[Any]) -> None:
    q, k, v = qkv(dtype, 5, 900, 64, Hq=4, Hkv=2, batch=(2,))
    with card_of(300_000):
        check(q, k, v, weights=False, device="cuda", causal=True, kv_lengths=[900, 500])


def test_queries_beyond_the_card() -> None:
    q, k, v = qkv(np.float32, 700, 60, 48)
    with card_of(300_000):
        check(q, k, v, weights=False, device="cuda", causal=True, q_lengths=650)
        out, weights = harken.attention(q, k[:, :20], v[:, :20], return_weights=True, device="cuda")
    wanted = harken.attention(q, k[:, :20], v[:, :20], return_weights=True, device="cuda")
    same_bits(out, wanted[0])
    same_bits(weights, wanted[1])


def test_integers_beyond_the_card() -> None:
    q, k, v = qkv(np.float32, 9, 3000, 64)
    (k8, ks), (v8, vs) = harken.quantize(k), harken.quantize(v)
    with card_of(300_000):
        check(q, k8, v8, k_scale=ks, v_scale=vs, device="cuda", weights=False, causal=True)


def test_what_cannot_be_cut_leaves_the_card_usable() -> None:
    q, k, v = qkv(np.float32, 30, 700, 48)
    wanted = harken.attention(q, k, v, device="cuda")
    with card_of(1_000), pytest.raises(MemoryError, match=r"^one key exceeds the memory of the card$"):
        harken.attention(q, k, v, device="cuda")
    with card_of(400_000):
        with pytest.raises(MemoryError, match=r"^keys exceed the memory of the card, and with return_weights=True"):
            harken.attention(q, k, v, device="cuda", return_weights=True)
        harken.attention(q, k, v, device="cuda")
    same_bits(harken.attention(q, k, v, device="cuda"), wanted)


def test_an_error_in_the_middle_leaves_the_card_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is full when pieces are under way."""
    q, k, v = qkv(np.float32, 60, 300, 64, Hq=8)
    wanted, before = harken.attention(q, k, v, device="cuda"), free()
    monkeypatch.setenv("HARKEN_EMULATOR_FAILS", "12")
    with pytest.raises(MemoryError, match="out of memory"):
        harken.attention(q, k, v, device="cuda")
    monkeypatch.delenv("HARKEN_EMULATOR_FAILS")
    assert free() == before
    same_bits(harken.attention(q, k, v, device="cuda"), wanted)
