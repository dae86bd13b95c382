"""The definition is right: it equals the equations in scalar loops, and PyTorch where PyTorch has the case."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compare import DTYPES, Array, poisoned, qkv, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import calls

import harken
from harken import reference


def loops(
    q: Array, k: Array, v: Array, *, mask: Any = None, bias: Any = None, causal: bool = False, window: Any = None,
    q_start: Any = None, q_lengths: Any = None, kv_lengths: Any = None, scale: Any = None, score: str = "dot",
    softcap: Any = None, alibi: Any = None, sinks: Any = None, precision: str = "highest", head_axis: int = -3,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Attention one number at a time: out (..., Hq, Lq, Dv), lse and weights."""
    one_head = q.ndim == 2
    q, k, v = (x.astype(np.float64)[None] if one_head else x.astype(np.float64) for x in (q, k, v))
    if head_axis == -2 and not one_head:
        q, k, v = (x.swapaxes(-3, -2) for x in (q, k, v))
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    q, k, v = (np.broadcast_to(x, batch + x.shape[-3:]) for x in (q, k, v))
    Hq, Lq, D = q.shape[-3:]
    Hkv, Lk, Dv = v.shape[-3:]
    mask = np.broadcast_to(True if mask is None else mask, (*batch, Hq, Lq, Lk))
    bias = np.broadcast_to(0 if bias is None else np.asarray(bias).astype(np.float64), mask.shape)
    default = 1.0 if score == "cosine" else 1 / math.sqrt(D)
    scale = np.broadcast_to(default if scale is None else scale, (*batch, Hq))
    slope = np.broadcast_to(0.0 if alibi is None else alibi, (*batch, Hq))
    sinks = np.broadcast_to(-math.inf if sinks is None else sinks, (*batch, Hq))
    left, right = (side if side is not None else math.inf for side in window or (None, None))
    out, lse, weights = np.zeros((*batch, Hq, Lq, Dv)), np.full((*batch, Hq, Lq), -np.inf), np.zeros(mask.shape)

    for b in np.ndindex(batch):
        q_length = int(np.broadcast_to(Lq if q_lengths is None else q_lengths, batch)[b])
        kv_length = int(np.broadcast_to(Lk if kv_lengths is None else kv_lengths, batch)[b])
        start = kv_length - q_length if q_start is None else int(np.broadcast_to(q_start, batch)[b])
        for h in range(Hq):
            head = (*b, h // (Hq // Hkv))
            for i in range(q_length):
                p = i + start
                logits = {}
                for j in range(kv_length):
                    if not mask[*b, h, i, j] or (causal and j > p) or not p - left <= j <= p + right:
                        continue
                    x, y = q[*b, h, i].tolist(), k[*head, j].tolist()
                    s = sum(x[d] * y[d] for d in range(D))
                    if score == "cosine":
                        nx, ny = (math.sqrt(sum(a * a for a in z)) for z in (x, y))
                        s = sum((x[d] / (nx or 1.0)) * (y[d] / (ny or 1.0)) for d in range(D))
                    s = float(scale[*b, h]) * s
                    if softcap is not None:
                        s = softcap * math.tanh(s / softcap)
                    s = s + float(bias[*b, h, i, j])
                    logits[j] = s if alibi is None else s - float(slope[*b, h]) * abs(p - j)
                sink = float(sinks[*b, h])
                every = [*logits.values(), sink]
                m = math.nan if any(map(math.isnan, every)) else max(every)
                shifted = 0.0 if m == -math.inf else m
                l = sum(math.exp(s - shifted) for s in every)
                lse[*b, h, i] = shifted + (math.log(l) if l != 0 else -math.inf)
                for j, s in logits.items():
                    weights[*b, h, i, j] = math.exp(s - shifted) / (l or 1.0)
                    for d in range(Dv):
                        out[*b, h, i, d] += float(weights[*b, h, i, j]) * float(v[*head, j, d])
    return out, lse, weights


@pytest.mark.parametrize("special", [False, True], ids=["numbers", "nan-and-infinity"])
@settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_equals_scalar_loops(special: bool, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(list(DTYPES.values())))
    sizes = st.integers(0, 6)
    q, k, v, options = data.draw(calls(dtype, sizes, sizes, st.integers(1, 3), special))
    with np.errstate(all="ignore"):
        out, lse, weights = loops(q, k, v, **options)
    got = reference(q, k, v, **options, return_lse=True, return_weights=True, dtype=np.float64)
    if q.ndim == 2:
        out, lse, weights = out[0], lse[0], weights[0]
    elif options["head_axis"] == -2:
        out = out.swapaxes(-3, -2)
    for actual, expected in zip(got, (out, lse, weights), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["plain", "causal", "mask", "bias", "scale", "grouped"])
def test_equals_torch(case: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    q, k, v = qkv(np.float64, 13, 17, D=8, Dv=5, Hq=6, Hkv=2 if case == "grouped" else 6, batch=(2,))
    options: dict[str, dict[str, Any]] = {
        "causal": {"causal": True, "q_start": 0},  # PyTorch aligns to the top left
        "mask": {"mask": rng.random((2, 1, 13, 17)) < 0.7},
        "bias": {"bias": rng.standard_normal((6, 13, 17))},
        "scale": {"scale": 0.7},
    }
    ours = options.get(case, {})
    theirs: dict[str, dict[str, Any]] = {
        "causal": {"is_causal": True},
        "mask": {"attn_mask": torch.tensor(options["mask"]["mask"])},
        "bias": {"attn_mask": torch.tensor(options["bias"]["bias"])},
        "scale": {"scale": 0.7},
        "grouped": {"enable_gqa": True},
    }
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.tensor, (q, k, v)), **theirs.get(case, {})
    ).numpy()
    np.testing.assert_allclose(reference(q, k, v, **ours), expected, rtol=1e-10, atol=1e-12)


def test_types(dtype: np.dtype[Any]) -> None:
    q, k, v = qkv(dtype, 5, 7)
    out, lse, weights = reference(q, k, v, return_lse=True, return_weights=True)
    assert (out.dtype, weights.dtype) == (dtype, dtype)
    assert lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
    exact = reference(q, k, v, return_lse=True, return_weights=True, dtype=np.float64)
    assert {x.dtype for x in exact} == {np.dtype(np.float64)}
    if dtype.itemsize == 2:  # computed in float32, rounded once
        wide = reference(*(x.astype(np.float32) for x in (q, k, v)))
        same_bits(out, wide.astype(dtype))


def test_returns_in_order() -> None:
    q, k, v = qkv(np.float32, 5, 7, Dv=3)
    out, lse, weights = reference(q, k, v, return_weights=True, return_lse=True)
    assert (out.shape, lse.shape, weights.shape) == ((2, 5, 3), (2, 5), (2, 5, 7))
    np.testing.assert_array_equal(reference(q, k, v), out)
    np.testing.assert_array_equal(reference(q, k, v, return_weights=True)[1], weights)


def test_integers_and_lists_become_float64() -> None:
    out = reference([[1, 0]], [[1, 0], [0, 1]], [[1], [2]], bias=[[0, 1]])
    assert out.dtype == np.float64
    s = np.exp([1 / math.sqrt(2), 1.0])
    np.testing.assert_allclose(out, [[s @ [1, 2] / s.sum()]])


def test_byte_order_is_converted() -> None:
    q, k, v = qkv(np.float32, 5, 7)
    out = reference(q.astype(">f4"), k, v.astype(">f4"))
    assert out.dtype.isnative
    np.testing.assert_array_equal(out, reference(q, k, v))


def test_out_is_written_and_given_back() -> None:
    q, k, v = qkv(np.float32, 5, 7)
    out = poisoned(np.zeros_like(q), step=2)
    assert reference(q, k, v, out=out) is out
    np.testing.assert_array_equal(out, reference(q, k, v))
    with pytest.raises(ValueError, match="out is float32"):
        reference(q, k, v, out=out[:1])


def test_no_warning_escapes() -> None:
    q, k, v = (1e5 * x for x in qkv(np.float32, 5, 7))
    v[:, 3] = np.inf
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        reference(q, k, v, kv_lengths=0, return_lse=True)
        reference(1e30 * q, 1e30 * k, v, return_lse=True)
        reference(*(x.astype(ml_dtypes.bfloat16) for x in (q, k, v)), scale=np.inf, softcap=1e-30, return_lse=True)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mask": np.ones((5, 7), int)}, TypeError, "mask != 0"),
        ({"bias": np.ones((5, 7), bool)}, TypeError, "bias is bool"),
        ({"window": (-1, 0)}, ValueError, "None for an unbounded side"),
        ({"score": "cos"}, ValueError, "'cosine'"),
        ({"softcap": 0}, ValueError, "above 0"),
        ({"head_axis": 1}, ValueError, "-3"),
        ({"kv_lengths": 8}, ValueError, "from 0 to 7"),
        ({"q_lengths": 1.5}, TypeError, "integers"),
    ],
)
def test_refuses(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        reference(*qkv(np.float32, 5, 7), **options)


def test_refuses_shapes_and_types() -> None:
    q, k, v = qkv(np.float32, 5, 7, Hq=8, Hkv=6)
    with pytest.raises(ValueError, match="k has 6 heads, q has 8: q's heads must be a multiple of k's"):
        reference(q, k, v)
    with pytest.raises(TypeError, match="float32, float64 and float32"):
        reference(q, k.astype(np.float64), v)
    for wrong in (np.ma.masked_array(q), q.astype(complex), q.astype(object), q.astype(np.longdouble)):
        with pytest.raises(TypeError, match="q is"):
            reference(wrong, k, v)


def test_stands_alone() -> None:
    path = Path(reference.__code__.co_filename)
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); assert not [m for m in sys.modules if 'harken' in m]"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert harken.reference is reference
