"""Who may look at whom: causal, windows, positions, lengths and boolean masks, alone and together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import Array, check, poisoned, qkv, same_bits

import harken

Dtype = np.dtype[Any]

FLOAT = np.dtype(np.float32)

rows = pytest.mark.parametrize("Lq", [1, 5, 17, 70])


def call(dtype: Dtype, Lq: int, Lk: int = 150, **shape: Any) -> tuple[Array, Array, Array]:
    """Two batches of four query heads over two key heads."""
    return qkv(dtype, Lq, Lk, **{"Hq": 4, "Hkv": 2, "batch": (2,), **shape})


def random(*shape: int, share: float = 0.5) -> Array:
    return np.random.default_rng(7).random(shape) < share


@pytest.mark.parametrize("Lq", [1, 2, 7, 16, 17, 33, 64, 65, 130, 257])
def test_causal(backend: str, dtype: Dtype, Lq: int) -> None:
    for Lk in (0, 1, 2, 16, 33, 64, 129, 257, 300):  # more keys than queries, and more queries than keys
        q, k, v = qkv(dtype, Lq, Lk, D=8, Hq=1)
        check(q, k, v, causal=True, weights=False)
        check(q, k, v, causal=True, q_start=0, weights=False)


def test_causal_aligns_the_last_query_with_the_last_key(backend: str) -> None:
    for Lq, Lk in ((3, 5), (40, 70), (70, 40)):
        visible = harken.attention(*qkv(FLOAT, Lq, Lk, Hq=1), causal=True, return_weights=True)[1][0] > 0
        np.testing.assert_array_equal(visible, np.tri(Lq, Lk, Lk - Lq, bool))


WINDOWS = [(0, 0), (3, 0), (0, 3), (2, 5), (None, 0), (0, None), (None, None), (None, 4), (31, None), (64, 64),
           (500, 500), (0, 149), (149, 0), (128, 1), (2**62, 2**62)]  # fmt: skip


@rows
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_window(backend: str, dtype: Dtype, Lq: int, window: Any) -> None:
    q, k, v = call(dtype, Lq)
    check(q, k, v, window=window)
    check(q, k, v, window=window, causal=True, weights=False)
    check(q, k, v, window=window, q_start=np.array([30, -2]), weights=False)


def test_causal_is_a_window(backend: str, dtype: Dtype) -> None:
    for Lq in (5, 70):
        q, k, v = call(dtype, Lq)
        causal = harken.attention(q, k, v, causal=True)
        same_bits(harken.attention(q, k, v, window=(None, 0)), causal)
        same_bits(harken.attention(q, k, v, causal=True, window=(None, 9)), causal)


@pytest.mark.parametrize(("Lq", "Lk"), [(300, 300), (257, 513), (520, 200), (5, 2000), (1, 4000)])
def test_whole_tiles_out_of_sight(backend: str, dtype: Dtype, Lq: int, Lk: int) -> None:
    """Keys before, after and between what is seen, by every means that says so."""
    q, k, v = qkv(dtype, Lq, Lk, D=8, Hq=1)
    j = np.arange(Lk)
    for options in (
        {"window": (20, 0)},
        {"window": (0, 20)},
        {"window": (10, 10), "q_start": 40},
        {"causal": True, "q_start": -130},
        {"causal": True, "q_start": Lk // 2, "window": (140, None)},
        {"kv_lengths": Lk // 3},
        {"kv_lengths": Lk // 3, "q_lengths": Lq // 2, "causal": True},
        {"mask": (j < 20) | (j >= Lk - 3)},
        {"mask": (j > 140) & (j < 150)},
        {"mask": (j // 64 % 2 == 1) & (np.arange(Lq)[:, None] % 3 > 0)},
        {"mask": j == Lk - 1, "window": (None, None)},
    ):
        check(q, k, v, weights=False, **options)


@rows
@pytest.mark.parametrize("start", [0, -1, 80, 149, 400, -70, -(10**9), 10**9])
def test_positions(backend: str, dtype: Dtype, Lq: int, start: int) -> None:
    q, k, v = call(dtype, Lq)
    for options in ({"causal": True}, {"window": (7, 9)}, {"causal": True, "alibi": np.full(4, 0.1)}):
        check(q, k, v, q_start=start, weights=False, **options)
        check(q, k, v, q_start=np.array([start, 3]), weights=False, **options)


def test_positions_over_the_batch_axes(backend: str, dtype: Dtype) -> None:
    q, k, v = call(dtype, 6, 40, batch=(2, 3))
    starts = np.arange(6).reshape(2, 3) * 7 - 8
    for start in (starts, starts[:1], starts[:, :1], starts[0], starts.astype(np.int8), starts.tolist()):
        check(q, k, v, causal=True, q_start=start)


@rows
def test_lengths(backend: str, dtype: Dtype, Lq: int) -> None:
    q, k, v = call(dtype, Lq, 130, batch=(4,))
    of_q, of_k = np.array([Lq, Lq // 2, 0, 1]), np.array([0, 130, 63, 17])
    for options in ({}, {"causal": True}, {"window": (9, 5)}, {"sinks": np.arange(4.0)}):
        check(q, k, v, kv_lengths=of_k, **options)
        check(q, k, v, q_lengths=of_q, **options)
        out = check(q, k, v, q_lengths=of_q, kv_lengths=of_k, **options)
        for b in range(4):
            assert not out[b, :, of_q[b] :].any()


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64, list, tuple], ids=lambda x: x.__name__)
def test_lengths_of_every_kind(kind: Any) -> None:
    q, k, v = call(FLOAT, 20, 130, batch=(4,))
    of_q, of_k = [20, 10, 0, 1], [0, 100, 63, 17]
    plain = harken.attention(q, k, v, q_lengths=np.array(of_q), kv_lengths=np.array(of_k), causal=True)
    same_bits(harken.attention(q, k, v, q_lengths=kind(of_q), kv_lengths=kind(of_k), causal=True), plain)


def test_lengths_are_shorter_arrays(backend: str, dtype: Dtype) -> None:
    for Lq in (9, 80):
        q, k, v = qkv(dtype, Lq, 130)
        padded = harken.attention(q, k, v, q_lengths=Lq - 2, kv_lengths=71, causal=True)
        short = harken.attention(q[:, :-2], k[:, :71], v[:, :71], causal=True)
        np.testing.assert_allclose(padded[:, :-2].astype(float), short.astype(float), rtol=1e-2, atol=1e-2)
        check(q, k, v, q_lengths=Lq - 2, kv_lengths=71, causal=True)


MASKS = [(), (1,), (150,), ("Lq", 1), ("Lq", 150), (4, 1, 1), (4, "Lq", 150), (1, "Lq", 150), (2, 1, 1, 150),
         (2, 4, "Lq", 150), (2, 1, "Lq", 1), (1, 1, 1, 1)]  # fmt: skip


@rows
@pytest.mark.parametrize("shape", MASKS, ids=lambda x: "x".join(map(str, x)) or "scalar")
def test_mask_of_every_shape(backend: str, dtype: Dtype, Lq: int, shape: tuple[int | str, ...]) -> None:
    sizes = [Lq if n == "Lq" else int(n) for n in shape]
    for share in (0.05, 0.9):
        check(*call(dtype, Lq), mask=random(*sizes, share=share) if shape else np.array(share > 0.5))


def test_mask_of_every_stride(backend: str, dtype: Dtype) -> None:
    for Lq in (3, 70):
        mask = random(4, Lq, 150)
        turned = np.ascontiguousarray(mask.swapaxes(-1, -2)).swapaxes(-1, -2)
        for view in (mask, poisoned(mask), poisoned(mask, step=3), turned, mask[..., ::-1], mask.tolist()):
            check(*call(dtype, Lq), mask=view, weights=False)


@rows
def test_lonely_rows(backend: str, dtype: Dtype, Lq: int) -> None:
    """Who sees nobody is 0 with lse -inf, or lse = sink; the rows beside it do not notice."""
    q, k, v = call(dtype, Lq)
    mask = random(2, 4, Lq, 150)
    mask[:, :, ::3], mask[0, 1] = False, False
    sinks = np.array([0.5, -1, 3, 0])
    for options in ({}, {"bias": np.full((Lq, 1), 1e4)}, {"score": "cosine"}, {"softcap": 3.0}):
        out, lse, weights = harken.attention(q, k, v, mask=mask, **options, return_lse=True, return_weights=True)
        lonely = ~mask.any(axis=-1)
        assert not out[lonely].any()
        assert not weights[lonely].any()
        np.testing.assert_array_equal(lse == -np.inf, lonely)
        check(q, k, v, mask=mask, **options)
        out, lse = harken.attention(q, k, v, mask=mask, **options, sinks=sinks, return_lse=True)
        assert not out[lonely].any()
        np.testing.assert_allclose(lse[lonely], np.broadcast_to(sinks[:, None], lse.shape)[lonely], rtol=1e-6)


@rows
def test_everything_is_anded(backend: str, dtype: Dtype, Lq: int) -> None:
    q, k, v = call(dtype, Lq)
    of_q, of_k, start = np.array([Lq, Lq - 1]), np.array([140, 77]), np.array([100, 20])
    mask = random(4, Lq, 150, share=0.8)
    limits: dict[str, Any] = {
        "causal": True,
        "window": (60, 4),
        "q_start": start,
        "q_lengths": of_q,
        "kv_lengths": of_k,
    }
    p, j = start[:, None, None, None] + np.arange(Lq)[:, None], np.arange(150)
    dense = mask & (j <= p) & (j >= p - 60) & (j < of_k[:, None, None, None])
    dense &= np.arange(Lq)[:, None] < of_q[:, None, None, None]
    out = check(q, k, v, mask=mask, **limits)
    by_hand = harken.attention(q, k, v, mask=dense)
    tolerance = {"float64": 1e-12, "float32": 1e-5}.get(dtype.name, 2e-2)
    np.testing.assert_allclose(out.astype(float), by_hand.astype(float), rtol=tolerance, atol=tolerance)
