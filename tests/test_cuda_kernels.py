"""The kernel of the card that takes every problem, run by the emulator, obeys the rule of accuracy."""

from __future__ import annotations

from typing import Any

import emulated
import numpy as np
import pytest
from compare import DTYPES, check, close, poisoned, qkv

import harken
from harken import masks

pytestmark = emulated.needed
kernel = emulated.throughout("simple")


@pytest.mark.parametrize(
    ("Lq", "Lk", "D", "Dv"),
    [(1, 1, 1, 1), (1, 70, 64, 64), (16, 32, 64, 128), (17, 33, 65, 129), (5, 100, 130, 3), (40, 31, 8, 260)],
)
def test_shapes(Lq: int, Lk: int, D: int, Dv: int, dtype: np.dtype[Any]) -> None:
    q, k, v = qkv(dtype, Lq, Lk, D, Dv)
    check(q, k, v, device="cuda")
    check(q, k, v, device="cuda", causal=True)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (3, 0, 4, 5), (16, 100, 0, 5), (3, 4, 5, 0)])
def test_empty(shape: tuple[int, int, int, int], dtype: np.dtype[Any]) -> None:
    check(*qkv(dtype, *shape), device="cuda")


def options(dtype: np.dtype[Any], name: str) -> dict[str, Any]:
    """One set of options for 4 query heads, 2 key heads, 2 batch rows, 20 queries and 75 keys."""
    rng = np.random.default_rng(1)
    mask = rng.random((2, 1, 20, 75)) < 0.5
    mask[0, 0, 3] = False
    bias = rng.standard_normal((4, 20, 75)).astype(dtype)
    return {
        "window": {"window": (20, 3), "q_start": [0, -7]},
        "lengths": {"q_lengths": [20, 11], "kv_lengths": [75, 40], "causal": True},
        "mask": {"mask": mask},
        "bias": {"bias": bias, "causal": True},
        "score": {"softcap": 3.0, "alibi": harken.alibi_slopes(4), "scale": [0.1, 0.2, 0.3, 0.4]},
        "cosine": {"score": "cosine", "scale": 5.0},
        "additive": {"score": "additive", "w": rng.standard_normal((4, 24)).astype(dtype)},
        "sinks": {"sinks": [0.5, -1.0, 3.0, 0.0], "kv_lengths": [75, 0]},
        "all": {
            "mask": mask, "bias": bias, "causal": True, "window": (60, None), "kv_lengths": [70, 75], "softcap": 4.0,
            "alibi": harken.alibi_slopes(4), "sinks": 0.25, "scale": 0.3,
        },
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", ["window", "lengths", "mask", "bias", "score", "cosine", "additive", "sinks", "all"])
def test_options(name: str, dtype: np.dtype[Any]) -> None:
    q, k, v = qkv(dtype, 20, 75, 24, 40, Hq=4, Hkv=2, batch=(2,))
    check(q, k, v, device="cuda", **options(dtype, name))


def test_lists() -> None:
    q, k, v = qkv(np.float32, 50, 120, 16, Hq=2, batch=(2,))
    ids = np.arange(120) // 30
    for mask in (
        masks.Documents(ids, ids[70:]),
        masks.Causal() & (masks.Window(9) | masks.Prefix(4)),
        masks.Blocks(np.eye(4, dtype=bool), 30),
        ~masks.Window(20, 20),
    ):
        check(q, k, v, device="cuda", mask=mask)


def test_lists_beside_arrays() -> None:
    q, k, v = qkv(np.float32, 30, 90, 16, Hq=2)
    dense = np.random.default_rng(0).random((30, 90)) < 0.7
    check(q, k, v, device="cuda", mask=(masks.Window(40) | masks.Prefix(3)) & masks.Dense(dense), causal=True)


@pytest.mark.parametrize("axes", [(-2, -1), (-1,), (-2,)])
def test_integers(axes: tuple[int, ...]) -> None:
    q, k, v = qkv(np.float32, 9, 70, 32, Hq=4, Hkv=2)
    (k8, ks), (v8, vs) = harken.quantize(k, axis=axes), harken.quantize(v, axis=axes)
    check(q, k8, v8, k_scale=ks, v_scale=vs, device="cuda", weights=False)
    check(q, k8, v8, k_scale=ks, v_scale=vs, device="cuda", weights=False, score="cosine")


def test_types_mix() -> None:
    q, k, v = qkv(np.float32, 9, 70, 32)
    check(q, k.astype(np.float16), v.astype(DTYPES["bfloat16"]), device="cuda")


def test_strides(dtype: np.dtype[Any]) -> None:
    """Views with gaps, turned around, repeated, and in the other order of axes; and out likewise."""
    q, k, v = qkv(dtype, 20, 45, 24, Hq=4, Hkv=2, batch=(3,))
    plain = harken.attention(q, k, v, device="cuda")
    for step in (1, 3, -1):
        np.testing.assert_array_equal(
            harken.attention(
                *(poisoned(x, step) if step > 0 else x[..., ::-1][..., ::-1] for x in (q, k, v)), device="cuda"
            ),
            plain,
        )
    out = poisoned(np.zeros_like(plain), 2)
    assert harken.attention(q, k, v, device="cuda", out=out) is out
    np.testing.assert_array_equal(out, plain)
    swapped = harken.attention(*(x.swapaxes(-2, -3) for x in (q, k, v)), device="cuda", head_axis=-2)
    np.testing.assert_array_equal(swapped.swapaxes(-2, -3), plain)
    one = np.broadcast_to(k[:1], k.shape)
    np.testing.assert_array_equal(
        harken.attention(q, one, v, device="cuda"), harken.attention(q, one.copy(), v, device="cuda")
    )


def test_what_is_hidden_is_not_read(dtype: np.dtype[Any]) -> None:
    q, k, v = qkv(dtype, 20, 75, 24, batch=(2,))
    clean = harken.attention(q, k, v, device="cuda", causal=True, kv_lengths=[75, 40], return_lse=True)
    k[1, :, 40:] = v[1, :, 40:] = np.nan
    q_last, v_last = harken.attention(q, k, v, device="cuda", causal=True, kv_lengths=[75, 40], return_lse=True)
    np.testing.assert_array_equal(q_last, clean[0])
    np.testing.assert_array_equal(v_last, clean[1])
    mask = np.ones((20, 75), bool)
    mask[:, 7] = False
    hidden = harken.attention(q[0], k[0], v[0], device="cuda", mask=mask)
    k[0, :, 7], v[0, :, 7] = np.inf, np.nan
    np.testing.assert_array_equal(harken.attention(q[0], k[0], v[0], device="cuda", mask=mask), hidden)
    assert np.isnan(harken.attention(q[0], k[0], v[0], device="cuda").astype(np.float64)).all()


def test_large_logits(dtype: np.dtype[Any]) -> None:
    q, k, v = qkv(dtype, 20, 75, 24)
    check(q, k, v, device="cuda", scale=100.0, weights=False)


def test_rows_do_not_know_their_neighbours() -> None:
    q, k, v = qkv(np.float32, 40, 150, 24, Hq=4, Hkv=2, batch=(2,))
    whole = harken.attention(q, k, v, device="cuda", causal=True)
    alone = harken.attention(q[1:, 2:3], k[1:, 1:], v[1:, 1:], device="cuda", causal=True)
    np.testing.assert_array_equal(whole[1:, 2:3], alone)


def test_merged_parts_are_the_whole() -> None:
    q, k, v = qkv(np.float32, 20, 200, 24)
    whole = harken.attention(q, k, v, device="cuda", return_lse=True)
    parts = [
        harken.attention(q, k[:, a:b], v[:, a:b], device="cuda", return_lse=True)
        for a, b in ((0, 7), (7, 120), (120, 200))
    ]
    merged = harken.merge(parts)
    naive, truth = harken.reference(q, k, v), harken.reference(q, k, v, dtype=np.float64)
    close("merged", merged[0], naive, truth)
    np.testing.assert_allclose(merged[1], whole[1], rtol=1e-6)
