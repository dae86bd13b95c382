"""Packed sequences give, bit for bit, what each of them gives alone."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from compare import Array, in_form, same_bits

import harken

LENGTHS = {
    "short": [(3, 3), (1, 1), (20, 20), (64, 64), (17, 17)],
    "mixed": [(1, 700), (130, 130), (0, 5), (40, 0), (300, 300), (5, 64), (0, 0), (2, 1100)],
    "ranges": [(1, 1300), (7, 600), (33, 33), (20, 4500), (1, 512), (600, 5000)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window, alibi, sinks": {"causal": True, "window": (50, None), "alibi": [0.1, 0.2, 0.3, 0.4], "sinks": np.ones(4)},
    "cosine, softcap": {"score": "cosine", "softcap": 3.0, "scale": [3.0, 4.0, 5.0, 6.0]},
}


def packed(lengths: list[tuple[int, int]], dtype: Any, D: int = 32, Dv: int = 48) -> tuple[Array, ...]:
    """q, k, v, cu_seqlens_q, cu_seqlens_k with four heads on two."""
    rng = np.random.default_rng(0)
    ends = np.cumsum([(0, 0), *lengths], axis=0).T
    shapes = (ends[0][-1], 4, D), (ends[1][-1], 2, D), (ends[1][-1], 2, Dv)
    return *(rng.standard_normal(shape).astype(dtype) for shape in shapes), *ends


def check(lengths: list[tuple[int, int]], dtype: Any, **options: Any) -> None:
    q, k, v, ends_q, ends_k = packed(lengths, dtype)
    out, lse = harken.attention_varlen(q, k, v, ends_q, ends_k, **options, return_lse=True)
    assert (out.shape, lse.shape) == ((len(q), 4, 48), (4, len(q)))
    for s in range(len(lengths)):
        rows, keys = slice(*ends_q[s : s + 2]), slice(*ends_k[s : s + 2])
        alone = harken.attention(q[rows], k[keys], v[keys], head_axis=-2, **options, return_lse=True)
        same_bits(out[rows], alone[0])
        same_bits(np.ascontiguousarray(lse[:, rows]), alone[1])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_each_as_if_alone(backend: str, lengths: str, options: str) -> None:
    check(LENGTHS[lengths], np.float32, **OPTIONS[options])


@pytest.mark.parametrize("lengths", LENGTHS)
def test_types(backend: str, dtype: np.dtype[Any], lengths: str) -> None:
    check(LENGTHS[lengths], dtype, causal=True)


@pytest.mark.parametrize("form", ["tiled", "brief", "decode", "matrix"])
def test_forms(backend: str, form: str) -> None:
    with in_form(form):
        check(LENGTHS["mixed"], np.float32)


def test_definition() -> None:
    q, k, v, ends_q, ends_k = packed(LENGTHS["mixed"], np.float64)
    out = harken.attention_varlen(q, k, v, ends_q, ends_k, causal=True)
    for s in range(len(ends_q) - 1):
        rows, keys = slice(*ends_q[s : s + 2]), slice(*ends_k[s : s + 2])
        exact = harken.reference(q[rows], k[keys], v[keys], head_axis=-2, causal=True)
        np.testing.assert_allclose(out[rows], exact, rtol=0, atol=1e-12)


def test_options_of_each_sequence() -> None:
    lengths = LENGTHS["mixed"]
    q, k, v, ends_q, ends_k = packed(lengths, np.float32)
    n, Lq, Lk = len(lengths), 300, 1100
    rng = np.random.default_rng(1)
    mask, bias = rng.random((n, 1, 1, Lk)) < 0.7, rng.standard_normal((4, Lq, Lk)).astype(np.float32)
    q_start, sinks = np.arange(n) * 5 - 3, rng.standard_normal((n, 4))
    out = harken.attention_varlen(
        q, k, v, ends_q, ends_k, mask=mask, bias=bias, q_start=q_start, sinks=sinks, causal=True
    )
    for s in range(n):
        rows, keys = slice(*ends_q[s : s + 2]), slice(*ends_k[s : s + 2])
        own: dict[str, Any] = {"mask": mask[s, ..., : lengths[s][1]], "q_start": q_start[s], "sinks": sinks[s]}
        own["bias"] = bias[:, : lengths[s][0], : lengths[s][1]]
        same_bits(out[rows], harken.attention(q[rows], k[keys], v[keys], head_axis=-2, causal=True, **own))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_show(threads: int) -> None:
    q, k, v, ends_q, ends_k = packed(LENGTHS["ranges"], np.float32)
    one = harken.attention_varlen(q, k, v, ends_q, ends_k, threads=1)
    same_bits(harken.attention_varlen(q, k, v, ends_q, ends_k, threads=threads), one)


def test_partials_come_in_waves() -> None:
    """More of them than memory is set aside for: 40 sequences of 2 MB each."""
    lengths = [(1000, 4200)] * 12 + [(7, 30000)] * 4 + [(50, 50)] * 9
    q, k, v, ends_q, ends_k = packed(lengths, np.float32, D=8, Dv=16)
    for form in ("tiled", "decode"):
        with in_form(form):
            if form == "decode":
                ends_q, q = np.arange(len(lengths) + 1) * 7, q[: 7 * len(lengths)]
            out = harken.attention_varlen(q, k, v, ends_q, ends_k, threads=3)
            for s in (0, 11, 12, 15, 16, 24):
                rows, keys = slice(*ends_q[s : s + 2]), slice(*ends_k[s : s + 2])
                same_bits(out[rows], harken.attention(q[rows], k[keys], v[keys], head_axis=-2))


def test_arrays() -> None:
    """Any strides, into `out`; lists in, lists out."""
    q, k, v, ends_q, ends_k = packed(LENGTHS["short"], np.float32)
    expected = harken.attention_varlen(q, k, v, ends_q.astype(np.int32), ends_k.tolist())
    same_bits(harken.attention_varlen(q, k, v, ends_q), expected)
    fused = np.zeros((len(q), 8, 32), np.float32)
    fused[:, :4], fused[:, 4:6] = q, k
    out = np.full((len(q), 4, 96), 7, np.float32)[..., ::2]
    assert harken.attention_varlen(fused[:, :4], fused[:, 4:6], v, ends_q, out=out) is out
    same_bits(np.ascontiguousarray(out), expected)
    lists = [np.split(x, ends_q[1:-1]) for x in (q, k, v)]
    parts, lses = harken.attention_varlen(*lists, return_lse=True)
    same_bits(np.concatenate(parts), expected)
    assert [(part.shape[0], lse.shape) for part, lse in zip(parts, lses, strict=True)] == [
        (n, (4, n)) for n, _ in LENGTHS["short"]
    ]
    assert harken.attention_varlen(q[:0], k[:0], v[:0], [0]).shape == (0, 4, 48)
    assert harken.attention_varlen(q[:0], k[:0], v[:0], [0, 0, 0]).shape == (0, 4, 48)


def test_wrong_calls() -> None:
    x = np.zeros((10, 2, 4), np.float32)
    for arguments, options, error, text in (
        ((x, x, x), {}, TypeError, "cu_seqlens_q is None: give where each sequence begins, or q, k and v as lists"),
        ((x[0], x, x, [0, 10]), {}, ValueError, r"q has shape \(2, 4\): wanted three axes"),
        ((x, x, x, [1, 10]), {}, ValueError, "cu_seqlens_q begins with 1: wanted 0"),
        ((x, x, x, [0, 7, 5, 10]), {}, ValueError, "cu_seqlens_q falls from 7 to 5: wanted sums of lengths"),
        ((x, x, x, [0, 9]), {}, ValueError, "cu_seqlens_q ends with 9, q has 10 rows: wanted the same"),
        ((x, x[:9], x[:9], [0, 10]), {}, ValueError, "cu_seqlens_k ends with 10, k has 9 rows"),
        ((x, x, x, [0.0, 10.0]), {}, TypeError, "cu_seqlens_q is float64: wanted integers"),
        ((x, x, x, [[0, 10]]), {}, ValueError, r"cu_seqlens_q has shape \(1, 2\): wanted \(n \+ 1,\)"),
        ((x, x, x, [0, 10], [0, 5, 10]), {}, ValueError, "cu_seqlens_k is for 2 sequences, cu_seqlens_q for 1"),
        ((x, x, x[:9], [0, 10]), {}, ValueError, "v has 9 rows, k has 10: keys and values come in pairs"),
        ((x, x, x.astype(float), [0, 10]), {}, TypeError, "q is float32, v is float64"),
        ((x, x, x, [0, 5, 10]), {"q_start": [1, 2, 3]}, ValueError, r"q_start has shape \(3,\): wanted one that broad"),
        ((x, x, x, [0, 5, 10]), {"mask": np.ones((5, 6), bool)}, ValueError, r"mask has shape .* to \(2, 2, 5, 5\)"),
        ((x, x, x, [0, 10]), {"out": x[:5]}, ValueError, r"out has shape \(5, 2, 4\), wanted \(10, 2, 4\)"),
        (([x], [x, x], [x]), {}, ValueError, "k has 2 sequences, q has 1"),
        (([x], [x], [x[:3]]), {}, ValueError, r"v\[0\] has 3 rows, k\[0\] has 10"),
        (([x, x[:, :1]], [x, x], [x, x]), {}, ValueError, r"q\[1\] is float32 \(10, 1, 4\), q\[0\] is"),
        (([x], x, [x]), {}, TypeError, "k is ndarray: wanted a list of arrays"),
        (([x], [x], [x]), {"out": x}, TypeError, "out is given with lists"),
    ):
        with pytest.raises(error, match=text):
            harken.attention_varlen(*arguments, **options)


def test_ctrl_c() -> None:
    x = np.zeros((60000, 1, 64))
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    began = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        harken.attention_varlen(x, x, x, [0, 20000, 60000])
    assert time.monotonic() - began < 2


MASKS = [
    harken.masks.Window(3, 1) | harken.masks.Prefix(2),
    ~harken.masks.Causal() | harken.masks.Window(1, None),
    harken.masks.Blocks(np.eye(9, dtype=bool), 8) & harken.masks.Causal(),
]


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_a_mask_stands_in_each_sequence_as_it_does_alone(backend: str, mask: harken.masks.Mask) -> None:
    rng = np.random.default_rng(5)
    of_q, of_k = [0, 5, 6, 40, 40], [0, 9, 29, 70, 75]
    q, k, v = (rng.standard_normal((n, 4, 32)).astype(np.float32) for n in (40, 75, 75))
    out = harken.attention_varlen(q, k, v, of_q, of_k, mask=mask)
    for a, b, c, d in zip(of_q[:-1], of_q[1:], of_k[:-1], of_k[1:], strict=True):
        alone = harken.attention(q[a:b], k[c:d], v[c:d], mask=mask, head_axis=-2)
        same_bits(np.ascontiguousarray(out[a:b]), np.ascontiguousarray(alone))


@pytest.mark.parametrize("shape", [(), (2, 1), (75, 1, 1), (75, 2, 1), (2, 32)])
def test_integers_come_with_their_factors(backend: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    of_q, of_k = [0, 1, 20], [0, 35, 75]
    q = rng.standard_normal((20, 4, 32)).astype(np.float32)
    k, v = (rng.integers(-127, 128, (75, 2, 32)).astype(np.int8) for _ in range(2))
    k_scale, v_scale = (rng.uniform(0.01, 0.02, shape).astype(np.float32) for _ in range(2))
    out = harken.attention_varlen(q, k, v, of_q, of_k, k_scale=k_scale, v_scale=v_scale)
    for a, b, c, d in zip(of_q[:-1], of_q[1:], of_k[:-1], of_k[1:], strict=True):
        scales = {"k_scale": k_scale[c:d] if len(k_scale.shape) == 3 else k_scale}
        scales["v_scale"] = v_scale[c:d] if len(v_scale.shape) == 3 else v_scale
        alone = harken.attention(q[a:b], k[c:d], v[c:d], head_axis=-2, **scales)
        same_bits(np.ascontiguousarray(out[a:b]), np.ascontiguousarray(alone))


def test_additive_scores_have_their_weights(backend: str) -> None:
    rng = np.random.default_rng(7)
    q, k, v = (rng.standard_normal((30, 2, 16)).astype(np.float32) for _ in range(3))
    w = rng.standard_normal((2, 16)).astype(np.float32)
    out = harken.attention_varlen(q, k, v, [0, 12, 30], score="additive", w=w)
    alone = harken.additive_attention(q[12:], k[12:], v[12:], w, head_axis=-2)
    same_bits(np.ascontiguousarray(out[12:]), np.ascontiguousarray(alone))
