"""Few queries and many bfloat16 keys: exact products of terms as tiles, where there is an engine for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, check, in_form, qkv, same_bits

import harken


def bf16(Lq: int, Lk: int, D: int, Dv: int, **shape: Any) -> tuple[Array, Array, Array]:
    """Of few queries, with as many keys as are multiplied as tiles."""
    return qkv(DTYPES["bfloat16"], Lq, Lk, D, Dv, **{"batch": (2,), **shape})


@pytest.mark.parametrize(("D", "Dv"), [(32, 32), (64, 96), (128, 128), (256, 64), (288, 64)])
@pytest.mark.parametrize("type", ["float32", "float16", "bfloat16"])
def test_many_keys_of_bfloat16(backend: str, type: str, D: int, Dv: int) -> None:
    for Lq, Lk, Hq in ((1, 1024, 8), (3, 1089, 2), (4, 1055, 6), (4, 131, 36)):
        q, k, v = bf16(Lq, Lk, D, Dv, Hq=Hq, Hkv=2)
        with in_form("decode"):
            check(q.astype(DTYPES[type]), k, v, causal=True, weights=False)
            check(
                q.astype(DTYPES[type]),
                k,
                v,
                scale=8.0,
                window=(700, None),
                kv_lengths=[Lk, min(1023, Lk - 1)],
                weights=False,
            )
            check((8 * q).astype(DTYPES[type]), k[..., ::-1, :], v, sinks=np.zeros(Hq), softcap=30.0, weights=False)


def test_terms_of_rows_and_keys_that_are_not_finite(backend: str) -> None:
    q, k, v = bf16(3, 1100, 64, 64, Hq=4, Hkv=2)
    with in_form("decode"):
        clean = harken.attention(q, k, v)
        for poison in (np.nan, np.inf, -np.inf, 3e38):
            for which in range(3):
                x = [q.copy(), k.copy(), v.copy()]
                x[which][1, 0, 1, 5] = poison
                out = harken.attention(*x)
                same_bits(out[0], clean[0])
                truth = harken.reference(*x, dtype=np.float64)[1]
                with np.errstate(over="ignore"):
                    truth = truth.astype(clean.dtype)
                assert (np.isnan(out[1]) == np.isnan(truth)).all()
                assert (np.isinf(out[1]) == np.isinf(truth)).all()
                if which > 0:  # hidden, it changes no bit
                    unseen = np.ones((2, 1, 1, 1100), bool)
                    unseen[1, ..., 1] = False
                    same_bits(harken.attention(*x, mask=unseen), harken.attention(q, k, v, mask=unseen))


def test_what_is_hidden_changes_no_bit_of_a_float(backend: str) -> None:
    q, k, v = bf16(4, 300, 64, 96, Hq=8, Hkv=2)
    seen = np.random.default_rng(0).random((2, 1, 4, 300)) < 0.7
    seen[..., ::7] = False
    with in_form("decode"):
        clean = harken.attention(q.astype(np.float32), k, v, mask=seen)
        for poison in (np.nan, np.inf):
            K, V = k.copy(), v.copy()
            K[..., ::7, 3] = V[..., ::7, 40] = poison
            same_bits(harken.attention(q.astype(np.float32), K, V, mask=seen), clean)
            V[:, 0, 10, 5] = poison  # and this one is seen by some
            out, sees = harken.attention(q.astype(np.float32), K, V, mask=seen), seen[:, :, :, 10]
            same_bits(out[:, :4], clean[:, :4], ~sees[..., None] & np.ones((2, 4, 4, 96), bool))
            assert (np.isfinite(out[:, :4, :, 5]) == ~sees).all()
            same_bits(out[:, 4:], clean[:, 4:])


def test_rows_of_terms_do_not_know_their_neighbours(backend: str) -> None:
    q, k, v = bf16(4, 1500, 128, 64, Hq=8, Hkv=1)  # 32 rows, each with terms of its own
    out = harken.attention(q, k, v)
    for h in range(8):
        same_bits(harken.attention(q[:, h : h + 1], k, v), out[:, h : h + 1])
    same_bits(harken.attention(q[1:], k[1:], v[1:], threads=1), out[1:])
