"""The kernel of float32 on a matrix engine obeys the rule of accuracy of float32, which one product of tf32 breaks."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import emulated
import kernel_cases
import numpy as np
import pytest
from compare import DTYPES, Array, close, poisoned, qkv
from kernel_cases import obeys, options

import harken

pytestmark = emulated.needed
kernel = emulated.throughout("tf32")


@pytest.mark.parametrize(
    ("Lq", "Lk", "D", "Dv"),
    [
        (1, 1, 4, 4), (64, 64, 64, 64), (65, 129, 64, 64), (20, 75, 24, 40), (3, 70, 80, 8), (63, 40, 100, 128),
        (66, 70, 128, 128), (5, 100, 8, 200), (40, 33, 132, 256), (65, 17, 256, 68),
    ],
)  # fmt: skip
def test_shapes(Lq: int, Lk: int, D: int, Dv: int) -> None:
    q, k, v = qkv(np.float32, Lq, Lk, D, Dv, Hq=1)
    obeys(q, k, v)
    obeys(q, k, v, causal=True)


def test_many_keys() -> None:
    """Sums that a matrix engine would cut 1000 times; numbers of one sign, whose cuts add up."""
    q, k, v = qkv(np.float32, 20, 2000, 32, 64, Hq=1)
    obeys(q, k, v)
    obeys(q, np.abs(k), np.abs(v) + 1)


@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (3, 0, 16, 16), (3, 4, 16, 0)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    obeys(*qkv(np.float32, *shape))


@pytest.mark.parametrize(
    "name",
    ["window", "left", "lengths", "nothing", "mask", "bias", "one bias in a window", "score", "alibi", "sinks", "all"],
)
def test_options(name: str) -> None:
    obeys(*qkv(np.float32, 70, 150, 24, 40, Hq=4, Hkv=2, batch=(2,)), **options(np.float32, name))


def test_lists() -> None:
    q, k, v = qkv(np.float32, 100, 200, 16, Hq=1)
    for mask in kernel_cases.lists(100, 200, 45, first=100):
        obeys(q, k, v, mask=mask)


@pytest.mark.parametrize("D", [24, 128])
def test_large_logits(D: int) -> None:
    """Whose errors the softmax makes larger."""
    obeys(*qkv(np.float32, 20, 75, D), scale=100.0)


def rounded(x: Array, kept: int) -> Array:
    """x to so many bits after its first, to nearest."""
    bits, cut = np.ascontiguousarray(x, np.float32).view(np.uint32), 23 - kept
    return ((bits + np.uint32(1 << (cut - 1))) & np.uint32(2**32 - (1 << cut))).view(np.float32)


def by_one_product(q: Array, k: Array, v: Array, kept: int) -> Array:
    """Attention whose products take operands of so many bits and are exact otherwise."""
    s = rounded(q, kept).astype(np.float64) @ rounded(k, kept).astype(np.float64).swapaxes(-1, -2) * q.shape[-1] ** -0.5
    P = np.exp(s - s.max(-1, keepdims=True)).astype(np.float32)
    out = rounded(P, kept).astype(np.float64) @ rounded(v, kept).astype(np.float64) / P.sum(-1, keepdims=True)
    return out.astype(np.float32)


@pytest.mark.parametrize("D", [8, 64, 128, 256])
def test_one_product_breaks_the_rule(D: int) -> None:
    """Precision "medium" is one product of tf32: worse than the rule allows, better than bfloat16 would be."""
    q, k, v = qkv(np.float32, 40, 100, D, Hq=1)
    naive, truth = harken.reference(q, k, v), harken.reference(q, k, v, dtype=np.float64)
    medium = harken.attention(q, k, v, device="cuda", precision="medium")
    one, half = by_one_product(q, k, v, 10), by_one_product(q, k, v, 7)
    for inexact in (medium, one):
        with pytest.raises(AssertionError, match="times the allowed"):
            close("out", inexact, naive, truth)
    for precision in ("highest", "high"):
        obeys(q, k, v, precision=precision)
    errors = [np.abs(x - truth).max() for x in (one, medium, half)]
    assert errors[1] < 2 * errors[0] < errors[2] / 2, errors


def test_medium_takes_every_option() -> None:
    every = options(np.float32, "all")
    q, k, v = qkv(np.float32, 70, 150, 24, 40, Hq=4, Hkv=2, batch=(2,))
    out, lse = harken.attention(q, k, v, device="cuda", precision="medium", return_lse=True, **every)
    truth = harken.reference(q, k, v, return_lse=True, dtype=np.float64, **every)
    np.testing.assert_allclose(out, truth[0], atol=4e-3)
    np.testing.assert_allclose(lse, truth[1], atol=4e-3)


def test_strides() -> None:
    kernel_cases.layouts_do_not_matter(*qkv(np.float32, 20, 75, 20, Hq=4, Hkv=2, batch=(3,)))


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_what_is_hidden_is_not_read(precision: str) -> None:
    kernel_cases.hidden_is_not_read(*qkv(np.float32, 70, 150, 24, batch=(2,)), 80, precision=precision)


@pytest.mark.parametrize("hiding", kernel_cases.HIDING)
def test_special_values_reach_those_who_see_them(hiding: dict[str, Any]) -> None:
    kernel_cases.special_values_are_seen(np.float32, 70, 90, hiding)


@pytest.mark.parametrize("D", [16, 256])
def test_infinite_scores(D: int) -> None:
    """A key of -Inf weighs nothing for those whose score it makes -Inf; +Inf makes NaN, as NaN does."""
    q, k, v = qkv(np.float32, 70, 90, D, 16, Hq=1)
    q[0, :, 3], k[0, :, 3] = np.abs(q[0, :, 3]) + 0.5, 1
    k[0, [20, 85], 3] = -np.inf
    obeys(q, k, v)
    obeys(q, k, v, causal=True)
    q[0, 5, 3], q[0, 9, 7], k[0, 70, 2] = -1, np.inf, np.nan
    obeys(q, k, v, causal=True)
    obeys(q, k, v, q_lengths=40)  # rows that do not exist are 0 for all that


def test_the_largest_numbers() -> None:
    """What the first term would round to Inf: scores are made without terms, values are cut at 11 bits."""
    q, k, v = qkv(np.float32, 20, 70, 8, 8, Hq=1)
    largest = np.finfo(np.float32).max
    q[0, 4, 2], k[0, :, 2] = largest, k[0, :, 2] / largest
    k[0, 30], k[0, 30, 5] = 0, -largest
    q[0, :, 5] = np.abs(q[0, :, 5]) / largest
    obeys(q, k, v)
    v[0, 50, 1] = largest
    with np.errstate(over="ignore"):
        truth = harken.reference(q, k, v, dtype=np.float64)
    out = harken.attention(q, k, v, device="cuda")
    np.testing.assert_allclose(out[..., 1], truth[..., 1], rtol=2.0**-10)
    np.testing.assert_allclose(out[..., 2:], truth[..., 2:], atol=1e-6)


def test_rows_do_not_know_their_neighbours() -> None:
    kernel_cases.rows_do_not_know_their_neighbours(np.float32)


def test_what_it_lacks_is_said() -> None:
    q, k, v = qkv(np.float32, 8, 8, 16, Hq=1)
    own: list[Any] = [
        (qkv(DTYPES["float16"], 8, 8, 16), {}, "takes float32 alone"),
        ((q, k.astype(np.float16), v), {}, "takes q, k, v of one type"),
        ((q, k, v), {"score": "cosine"}, "takes dot products alone"),
        ((q, k, v), {"return_weights": True}, "gives no weights"),
        (qkv(np.float32, 8, 8, 260), {}, "takes at most 256 channels"),
        (qkv(np.float32, 8, 8, 18), {}, "takes channels in multiples of 4"),
        ((q, k, v), {"bias": np.zeros((8, 8))}, "takes a bias of float32"),
        ((poisoned(q, 3), k, v), {}, "takes rows at multiples of 16 bytes"),
    ]
    kernel_cases.lacks("tf32", own)


def test_it_is_chosen_before_the_plain_one() -> None:
    q, k, v = qkv(np.float32, 130, 10, 128, Hq=4, batch=(2,))
    assert emulated.KERNELS.index("tf32") < emulated.KERNELS.index("simple")
    plan = harken.explain(q, k, v, device="cuda")
    assert (plan.kernel, plan.blocks, plan.threads, plan.workspace_bytes) == ("tf32", 24, 128, 0)
    assert 4 * 32 * 512 < plan.shared_bytes < 82 << 10  # two blocks in the 164 KiB of an sm_80


ENGINE = """
#include "words.hpp"
using namespace harken;
namespace {
struct Numbers { const float* A; const float* B; float* C; };
HARKEN_KERNEL(32) one(HARKEN_CONSTANT Numbers to) {  // A 16x8 and B 8x8 in rows, to the lanes that PTX names
  const int g = lane() / 4, t = lane() % 4;
  uint32_t A[4];
  for (int n = 0; n < 4; ++n) A[n] = __builtin_bit_cast(uint32_t, to.A[(g + n % 2 * 8) * 8 + t + n / 2 * 4]);
  const uint32_t b0 = __builtin_bit_cast(uint32_t, to.B[t * 8 + g]);
  const uint32_t b1 = __builtin_bit_cast(uint32_t, to.B[(t + 4) * 8 + g]);
  float C[4];
  for (int n = 0; n < 4; ++n) C[n] = to.C[(g + n / 2 * 8) * 8 + 2 * t + n % 2];
  mma(tf32{}, C, A, b0, b1);
  for (int n = 0; n < 4; ++n) to.C[(g + n / 2 * 8) * 8 + 2 * t + n % 2] = C[n];
}
}  // namespace
extern "C" __attribute__((visibility("default"))) void run(const float* A, const float* B, float* C) {
  launch(one, Grid{1, 32, 0}, nullptr, Numbers{A, B, C});
}
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """C + A B as the emulator's matrix engine says it."""
    folder: Path = tmp_path_factory.mktemp("engine")
    source, target = folder / "engine.cpp", folder / "engine.so"
    source.write_text(ENGINE)
    command = ["g++", *emulated.FLAGS, "-I", emulated.CUDA, source, emulated.CUDA / "emulator.cpp", "-o", target]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(target)).run

    def product(A: Array, B: Array, C: Array) -> Array:
        result = C.copy()
        function(*(x.ctypes.data_as(ctypes.c_void_p) for x in (A, B, result)))
        return result

    return product


def test_the_engine(engine: Any) -> None:
    rng = np.random.default_rng(0)
    A, B, C = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    cut = [(x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (A, B)]
    got = engine(A, B, C)
    np.testing.assert_array_equal(got, engine(*cut, C))
    truth = cut[0].astype(np.float64) @ cut[1] + C
    assert 0 < np.abs(got - truth).max() < 5 * 2.0**-22
    whole = [np.round(8 * x).astype(np.float32) for x in (A, B, C)]
    np.testing.assert_array_equal(engine(*whole), whole[0] @ whole[1] + whole[2])
    # Cut towards zero at 2^-24 of the largest: of 1 + 3 2^-24 nothing is left, nor of -1 - 3 2^-24; 1 - 2^-25 is 1.
    A[...], B[...], C[...] = 0, 0, 0
    A[:, 0], B[0] = [1, -1, 1, 1] * 4, 1
    A[:, 1], B[1] = [3 * 2.0**-24, -3 * 2.0**-24, 2.0**-23, -(2.0**-25)] * 4, 1
    np.testing.assert_array_equal(engine(A, B, C)[:4, 0], [1 + 2.0**-23, -1 - 2.0**-23, 1 + 2.0**-23, 1])
    A[:, 1] = [2.0**-24, -(2.0**-24), 1, np.inf] * 4
    np.testing.assert_array_equal(engine(A, B, C)[:4, 0], [1, -1, 2, np.inf])
