"""Every wrong call says which argument, what was given, what was wanted and how to mend it, and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, forced

import harken

BFLOAT16 = DTYPES["bfloat16"]


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


def qkv(**options: Any) -> dict[str, Any]:
    """A right call, for options that are wrong."""
    return {"q": zeros(2, 8, 5, 64), "k": zeros(2, 2, 10, 64), "v": zeros(2, 2, 10, 32), **options}


def read_only() -> Array:
    out = zeros(2, 8, 5, 32)
    out.flags.writeable = False
    return out


overlapping = np.lib.stride_tricks.as_strided(zeros(200), (2, 8, 5, 32), (0, 16, 4, 4))
repeated = np.broadcast_to(zeros(5, 32), (2, 8, 5, 32))
many, more = np.broadcast_to(zeros(2, 8), (2**30, 1, 1, 2, 8)), np.broadcast_to(zeros(2, 8), (2**30, 1, 2, 8))

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    # types
    (qkv(k=zeros(2, 2, 10, 64, dtype=float)), TypeError,
     "q is float32, k is float64: give both the same dtype, for example k.astype(np.float32)"),
    (qkv(q=zeros(2, 8, 5, 64, dtype=BFLOAT16), k=zeros(2, 2, 10, 64, dtype=float)), TypeError,
     "q is bfloat16, k is float64: give both the same dtype, for example k.astype(ml_dtypes.bfloat16)"),
    (qkv(k=zeros(2, 2, 10, 64).tolist()), TypeError,
     "q is float32, k is float64: give both the same dtype, for example np.asarray(k, np.float32)"),
    (qkv(q=zeros(2, 8, 5, 64, dtype=complex)), TypeError,
     "q is complex128: wanted float64, float32, float16 or bfloat16, for example q.astype(np.float32)"),
    (qkv(k=zeros(2, 2, 10, 64, dtype=object)), TypeError,
     "k is object: wanted float64, float32, float16 or bfloat16, for example k.astype(np.float32)"),
    (qkv(v=zeros(2, 2, 10, 32, dtype=np.longdouble)), TypeError,
     f"v is {np.dtype(np.longdouble)}: wanted float64, float32, float16 or bfloat16, for example v.astype(np.float32)"),
    (qkv(q="attention"), TypeError,
     "q is <U9: wanted float64, float32, float16 or bfloat16, for example q.astype(np.float32)"),
    (qkv(q=None), TypeError, "q is None: wanted an array"),
    (qkv(q=[[1.0, 2.0], [3.0]]), ValueError, "q cannot be read as an array: setting an array element with a sequence."),
    (qkv(k=np.ma.masked_array(zeros(2, 2, 10, 64))), TypeError,
     "k is a masked array, whose mask would be lost: give np.asarray(k), and mask= for what may be looked at"),
    # shapes
    (qkv(q=zeros(64)), ValueError, "q has shape (64,): wanted at least two axes, (length, channels)"),
    (qkv(v=np.float32(1.5)), ValueError, "v has shape (): wanted at least two axes, (length, channels)"),
    (qkv(k=zeros(2, 2, 10, 32)), ValueError,
     "q has 64 channels, k has 32: a query and a key need the same number"),
    (qkv(v=zeros(2, 2, 11, 32)), ValueError, "v has 11 rows, k has 10: keys and values come in pairs"),
    (qkv(v=zeros(2, 4, 10, 32)), ValueError, "v has 4 heads, k has 2: keys and values come in pairs"),
    (qkv(q=zeros(2, 6, 5, 64), k=zeros(2, 4, 10, 64), v=zeros(2, 4, 10, 32)), ValueError,
     "k has 4 heads, q has 6: q's heads must be a multiple of k's"),
    (qkv(k=zeros(2, 0, 10, 64), v=zeros(2, 0, 10, 32)), ValueError,
     "k has 0 heads, q has 8: q's heads must be a multiple of k's"),
    (qkv(q=zeros(3, 8, 5, 64)), ValueError,
     "the leading axes of q (3,), k (2,) and v (2,) do not broadcast: they must be equal, or 1, or missing"),
    ({"q": many, "k": more, "v": more}, ValueError,
     f"q {many.shape}, k {more.shape} and v {more.shape} make a problem of more than 2**63 bytes: "
     "nothing can hold or compute it"),
    (qkv(head_axis=-1), ValueError, "head_axis is -1: wanted -3 for (..., H, L, D) or -2 for (..., L, H, D)"),
    (qkv(head_axis=10**30), ValueError,
     f"head_axis is {10**30}: wanted -3 for (..., H, L, D) or -2 for (..., L, H, D)"),
    (qkv(head_axis="heads"), TypeError,
     "head_axis is 'heads': wanted -3 for (..., H, L, D) or -2 for (..., L, H, D)"),
    # what is added, and who may look
    (qkv(mask=np.ones((5, 10), int)), TypeError,
     "mask is int64: wanted bool, True where a query may look; give mask != 0, or bias= for numbers that are added to "
     "the scores"),
    (qkv(mask=zeros(5, 10)), TypeError,
     "mask is float32: wanted bool, True where a query may look; give mask != 0, or bias= for numbers that are added "
     "to the scores"),
    (qkv(mask=np.ones((5, 11), bool)), ValueError,
     "mask has shape (5, 11): wanted one that broadcasts to (2, 8, 5, 10), (..., Hq, Lq, Lk)"),
    (qkv(mask=np.ones((1, 2, 8, 5, 10), bool)), ValueError,
     "mask has shape (1, 2, 8, 5, 10): wanted one that broadcasts to (2, 8, 5, 10), (..., Hq, Lq, Lk)"),
    (qkv(bias=zeros(3, 1, 5, 10)), ValueError,
     "bias has shape (3, 1, 5, 10): wanted one that broadcasts to (2, 8, 5, 10), (..., Hq, Lq, Lk)"),
    (qkv(bias=np.ones((5, 10), bool)), TypeError,
     "bias is bool: numbers are added to the scores; give mask= for who may look"),
    (qkv(bias=zeros(5, 10, dtype=complex)), TypeError,
     "bias is complex128: wanted float64, float32, float16 or bfloat16, for example bias.astype(np.float32)"),
    (qkv(bias=np.ma.masked_array(zeros(5, 10))), TypeError,
     "bias is a masked array, whose mask would be lost: give np.asarray(bias), and mask= for what may be looked at"),
    (qkv(causal=1), TypeError, "causal is 1: wanted True or False"),
    (qkv(causal=None), TypeError, "causal is None: wanted True or False"),
    (qkv(window=5), TypeError,
     "window is 5: wanted (left, right), the keys seen on each side, for example window=(5, 5)"),
    (qkv(window="all"), TypeError, "window is 'all': wanted (left, right), the keys seen on each side"),
    (qkv(window=(1, 2, 3)), ValueError, "window is (1, 2, 3): wanted two sides, (left, right)"),
    (qkv(window=(-1, 0)), ValueError,
     "window is (-1, 0): a side counts keys, 0 or more; None is unbounded"),
    (qkv(window=(None, -(10**30))), ValueError,
     f"window is (None, -{10**30}): a side counts keys, 0 or more; None is unbounded"),
    (qkv(window=(0.5, 1)), TypeError,
     "window is (0.5, 1): each side is an integer, or None for an unbounded one"),
    (qkv(window=(True, 1)), TypeError,
     "window is (True, 1): each side is an integer, or None for an unbounded one"),
    # positions and lengths
    (qkv(q_start=1.5), TypeError,
     "q_start is float64: wanted integers, one for all or one for each of the leading axes"),
    (qkv(q_start=True), TypeError,
     "q_start is bool: wanted integers, one for all or one for each of the leading axes"),
    (qkv(q_start=[1, 2, 3]), ValueError,
     "q_start has shape (3,): wanted one that broadcasts to (2,), the leading axes"),
    (qkv(q_lengths=6), ValueError, "q_lengths is 6: wanted 0 to 5, the queries in q"),
    (qkv(kv_lengths=-1), ValueError, "kv_lengths is -1: wanted 0 to 10, the keys in k"),
    (qkv(kv_lengths=10**30), ValueError, f"kv_lengths is {10**30}: wanted 0 to 10, the keys in k"),
    (qkv(kv_lengths=[3, 12]), ValueError, "kv_lengths holds 12: wanted 0 to 10, the keys in k"),
    (qkv(kv_lengths=np.array([3, 2**64 - 1], np.uint64)), ValueError,
     f"kv_lengths holds {2**63 - 1}: wanted 0 to 10, the keys in k"),
    (qkv(kv_lengths=[3.0, 4.0]), TypeError,
     "kv_lengths is float64: wanted integers, one for all or one for each of the leading axes"),
    (qkv(kv_lengths=[3, 4, 5]), ValueError,
     "kv_lengths has shape (3,): wanted one that broadcasts to (2,), the leading axes"),
    # scores
    (qkv(scale=True), TypeError, "scale is True: wanted a number, or None for the default"),
    (qkv(scale=float("nan")), ValueError, "scale is nan: wanted a finite number"),
    (qkv(scale=10**400), ValueError, f"scale is {10**400}: wanted a finite number"),
    (qkv(scale="big"), TypeError, "scale is <U3: wanted numbers, one for all heads or one for each"),
    (qkv(scale=[1.0, 2.0]), ValueError, "scale has shape (2,): wanted one that broadcasts to (2, 8), (..., Hq)"),
    (qkv(scale=1j), TypeError, "scale is complex128: wanted numbers, one for all heads or one for each"),
    (qkv(score="cos"), ValueError, "score is 'cos': wanted 'dot', 'cosine' or 'additive'"),
    (qkv(score=None), TypeError, "score is None: wanted 'dot', 'cosine' or 'additive'"),
    (qkv(softcap=0), ValueError, "softcap is 0: wanted a finite number above 0, or None for no cap"),
    (qkv(softcap=-3.5), ValueError, "softcap is -3.5: wanted a finite number above 0, or None for no cap"),
    (qkv(softcap=float("inf")), ValueError, "softcap is inf: wanted a finite number above 0, or None for no cap"),
    (qkv(softcap="30"), TypeError, "softcap is '30': wanted a number above 0, or None for no cap"),
    (qkv(alibi=zeros(3)), ValueError, "alibi has shape (3,): wanted one that broadcasts to (2, 8), (..., Hq)"),
    (qkv(sinks=zeros(8, 1)), ValueError, "sinks has shape (8, 1): wanted one that broadcasts to (2, 8), (..., Hq)"),
    (qkv(sinks=np.ones(8, bool)), TypeError, "sinks is bool: wanted numbers, one for all heads or one for each"),
    (qkv(precision="low"), ValueError, "precision is 'low': wanted 'highest', 'high' or 'medium'"),
    # results
    (qkv(return_lse="yes"), TypeError, "return_lse is 'yes': wanted True or False"),
    (qkv(return_weights=1.0), TypeError, "return_weights is 1.0: wanted True or False"),
    (qkv(out=zeros(2, 8, 5, 64)), ValueError, "out has shape (2, 8, 5, 64), wanted (2, 8, 5, 32)"),
    (qkv(out=zeros(8, 5, 32)), ValueError, "out has shape (8, 5, 32), wanted (2, 8, 5, 32)"),
    ({**{n: x.swapaxes(1, 2) for n, x in qkv().items()}, "head_axis": -2, "out": zeros(2, 8, 5, 32)}, ValueError,
     "out has shape (2, 8, 5, 32), wanted (2, 5, 8, 32)"),
    (qkv(out=zeros(2, 8, 5, 32, dtype=float)), TypeError, "out is float64, wanted float32, the dtype of q"),
    (qkv(out=[0.0]), TypeError, "out is list: wanted a NumPy array that the result is written to"),
    (qkv(out=read_only()), ValueError, "out is read-only: wanted an array that can be written to"),
    (qkv(out=repeated), ValueError, "out is read-only: wanted an array that can be written to"),
    (qkv(out=overlapping), ValueError,
     "out has strides (0, 16, 4, 4) for shape (2, 8, 5, 32), so that elements share memory: wanted one place for each"),
    (qkv(out=np.ma.masked_array(zeros(2, 8, 5, 32))), TypeError,
     "out is a masked array, whose mask would be lost: give np.asarray(out), and mask= for what may be looked at"),
    # where
    (qkv(threads=0), ValueError, "threads is 0: wanted 1 or more, or None for the default"),
    (qkv(threads=-(10**30)), ValueError, f"threads is -{10**30}: wanted 1 or more, or None for the default"),
    (qkv(threads=1.0), TypeError, "threads is 1.0: wanted an integer, 1 or more"),
    (qkv(threads=True), TypeError, "threads is True: wanted an integer, 1 or more"),
    (qkv(device="tpu"), ValueError, "device is 'tpu': wanted None, 'cpu', 'cuda' or 'cuda:1'"),
    (qkv(device=0), TypeError, "device is 0: wanted None, 'cpu' or 'cuda'"),
]  # fmt: skip


@pytest.mark.parametrize("function", [harken.attention, harken.explain], ids=["attention", "explain"])
@pytest.mark.parametrize(("call", "error", "text"), WRONG, ids=[text[:50] for _, _, text in WRONG])
def test_text(function: Any, call: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        function(**call)
    assert type(caught.value) is error
    assert str(caught.value).startswith(text)
    if "cannot be read" not in text:
        assert str(caught.value) == text


def test_matrix() -> None:
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix(zeros(5, 64))
    with pytest.raises(TypeError, match=r"^v is a numpy\.matrix, .*: give np\.asarray\(v\)$"):
        harken.attention(zeros(5, 64), zeros(5, 64), matrix)


@pytest.mark.parametrize(("call", "error", "text"), WRONG, ids=[text[:50] for _, _, text in WRONG])
def test_nothing_is_written(call: dict[str, Any], error: type[Exception], text: str) -> None:
    out = np.full((2, 8, 5, 32), 7, np.float32)
    with pytest.raises(error):
        harken.attention(**({"out": out} | call))
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("args", "names", "text"),
    [
        ((), {}, "attention() missing 3 required positional arguments: 'q', 'k', and 'v'"),
        ((1,), {}, "attention() missing 2 required positional arguments: 'k' and 'v'"),
        ((1,), {"v": 1}, "attention() missing 1 required positional argument: 'k'"),
        ((1, 2, 3, 4), {}, "attention() takes 3 positional arguments but 4 were given"),
        ((1, 2, 3), {"k": 2}, "attention() got multiple values for argument 'k'"),
        ((1, 2, 3), {"is_causal": True},
         "attention() got an unexpected keyword argument 'is_causal'. Did you mean 'causal'?"),
        ((1, 2, 3), {"attn_mask": None},
         "attention() got an unexpected keyword argument 'attn_mask'. Did you mean 'mask'?"),
        ((1, 2, 3), {"xyz": 1}, "attention() got an unexpected keyword argument 'xyz'"),
    ],
)  # fmt: skip
def test_call_that_does_not_fit_the_signature(args: tuple[Any, ...], names: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError) as caught:
        harken.attention(*args, **names)
    assert str(caught.value) == text


def test_backend_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"^there is no backend 'mmx' in this build: wanted one of ") as caught:
        harken.set_backend("mmx")
    assert str(caught.value).endswith(", ".join(harken.backends()))
    with pytest.raises(TypeError, match=r"^name is 512: wanted one of "):
        harken.set_backend(512)  # type: ignore[arg-type]


def test_backend_from_the_environment() -> None:
    def name_of(backend: str) -> subprocess.CompletedProcess[str]:
        code = "import harken; print(harken.get_backend(), harken.info()['cpu']['why'], sep='|')"
        environment = {**os.environ, "HARKEN_BACKEND": backend}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    for backend in harken.backends():
        with forced(backend):
            assert harken.get_backend() == backend
        assert (
            name_of(backend).stdout.strip() == f"{backend}|chosen by HARKEN_BACKEND, of {', '.join(harken.backends())}"
        )
    assert name_of("").stdout.startswith(f"{harken.backends()[0]}|the best")
    wrong = name_of("mmx")
    assert wrong.returncode == 1
    assert wrong.stderr.rstrip().endswith(
        "ImportError: HARKEN_BACKEND: there is no backend 'mmx' in this build: wanted one of "
        + ", ".join(harken.backends())
    )


@pytest.mark.parametrize("count", [0, -1, 2**40, 10**30])
def test_number_of_threads_out_of_range(count: int) -> None:
    with pytest.raises(ValueError, match=rf"^count is {count}: wanted 1 or more, or None for the default$"):
        harken.set_num_threads(count)


@pytest.mark.parametrize("count", [1.0, True, "2"])
def test_number_of_threads_is_no_integer(count: Any) -> None:
    with pytest.raises(TypeError, match=r"^count is .*: wanted an integer, 1 or more, or None for the default$"):
        harken.set_num_threads(count)


def test_out_of_memory() -> None:
    q = np.broadcast_to(zeros(1, 16), (2**22, 2**22, 16))  # 2**50 bytes of out: more than there are addresses
    with pytest.raises(MemoryError):
        harken.attention(q, q[:, :1], q[:, :1])
