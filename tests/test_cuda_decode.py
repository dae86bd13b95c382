"""The kernel for few queries and many keys, its very text run by the emulator, obeys the rule of accuracy."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from ctypes import c_int64
from pathlib import Path
from typing import Any

import emulated
import kernel_cases
import numpy as np
import pytest
from compare import DTYPES, qkv, same_bits
from kernel_cases import obeys

import harken
from harken import masks
from harken.cuda import cards

pytestmark = emulated.needed
kernel = emulated.throughout("decode")


@pytest.mark.parametrize(
    ("Lq", "Lk", "D", "Dv", "heads"),
    [
        (1, 1, 16, 16, 1), (1, 70, 64, 64, 8), (1, 300, 128, 128, 8), (2, 257, 64, 128, 4), (3, 513, 80, 8, 1),
        (1, 256, 128, 64, 16), (1, 600, 96, 128, 17), (16, 129, 64, 64, 2), (64, 300, 128, 128, 1),
        (7, 290, 256, 256, 9), (5, 100, 8, 200, 1), (1, 70, 192, 256, 3), (20, 270, 256, 256, 1), (1, 4200, 8, 8, 2),
    ],
)  # fmt: skip
def test_shapes(Lq: int, Lk: int, D: int, Dv: int, heads: int, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, Lq, Lk, D, Dv, Hq=heads, Hkv=1)
    obeys(q, k, v)
    if Lq > 1:
        obeys(q, k, v, causal=True)


@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (3, 0, 16, 16), (3, 4, 16, 0), (3, 600, 16, 0)])
def test_empty(shape: tuple[int, int, int, int], half: np.dtype[Any]) -> None:
    obeys(*qkv(half, *shape))


LQ, LK = 5, 600  # three ranges


def options(dtype: np.dtype[Any], name: str) -> dict[str, Any]:
    """One set of options for 4 query heads, 2 key heads, 2 batch rows."""
    rng = np.random.default_rng(1)
    mask = rng.random((2, 4, LQ, LK)) < 0.5
    mask[0, :, 3] = False
    bias = rng.standard_normal((4, LQ, LK)).astype(dtype)
    return {
        "window": {"window": (20, 3), "q_start": [100, -7]},
        "left": {"window": (300, None), "q_start": [560, 900]},
        "lengths": {"q_lengths": [LQ, 2], "kv_lengths": [LK, 40], "causal": True},
        "nothing": {"q_lengths": [0, LQ], "kv_lengths": [LK, 0], "sinks": [0.5, -1.0, 3.0, 0.0]},
        "mask": {"mask": mask},
        "bias": {"bias": bias, "causal": True},
        "float bias": {"bias": bias.astype(np.float32).swapaxes(-1, -2).copy().swapaxes(-1, -2), "window": (300, 5)},
        "one bias": {"bias": bias[:1, :, :1]},
        "score": {"softcap": 3.0, "alibi": harken.alibi_slopes(4), "scale": [0.1, -0.2, 0.0, 0.4]},
        "scales": {"scale": [0.1, -0.2, 0.0, 0.4]},
        "alibi": {"alibi": harken.alibi_slopes(4), "causal": True},
        "sinks": {"sinks": [0.5, -1.0, 3.0, -np.inf], "kv_lengths": [LK, 256]},
        "large": {"scale": 100.0},
        "all": {
            "mask": mask, "bias": bias, "causal": True, "window": (500, None), "kv_lengths": [590, LK],
            "softcap": 4.0, "alibi": harken.alibi_slopes(4), "sinks": [0.25, 1, 2, 3], "scale": [0.3, 0.1, 0.2, 0.3],
        },
    }[name]  # fmt: skip


NAMES = [
    "window", "left", "lengths", "nothing", "mask", "bias", "float bias", "one bias", "score", "scales", "alibi",
    "sinks", "large", "all",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_options(name: str, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, LQ, LK, 24, 40, Hq=4, Hkv=2, batch=(2,))
    obeys(q, k, v, **options(half, name))


@pytest.mark.parametrize("group", [1, 4, 16])  # one strip of rows, two, four
def test_lists(group: int, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 4, 700, 16, Hq=2 * group, Hkv=2)
    of_heads = masks.Blocks(np.random.default_rng(1).random((2 * group, 22, 22)) < 0.3, 32)
    for mask in (*kernel_cases.lists(4, 700, 45, first=300), of_heads):
        obeys(q, k, v, mask=mask)


def test_one_visible_key(half: np.dtype[Any]) -> None:
    """Wherever it is: the other ranges see nothing."""
    q, k, v = qkv(half, 1, 1100, 16, Hq=2)
    for at in (0, 255, 256, 600, 1099):
        out = harken.attention(q, k, v, device="cuda", window=(0, 0), q_start=at)
        np.testing.assert_array_equal(out, v[:, at : at + 1])


def test_strides(half: np.dtype[Any]) -> None:
    kernel_cases.layouts_do_not_matter(*qkv(half, 3, 300, 24, Hq=4, Hkv=2, batch=(3,)))


def test_what_is_hidden_is_not_read(half: np.dtype[Any]) -> None:
    kernel_cases.hidden_is_not_read(*qkv(half, LQ, LK, 24, batch=(2,)), 280)


@pytest.mark.parametrize("hiding", [{"causal": True}, {"window": (5, 300)}, {"mask": True}, {}])
def test_special_values_reach_those_who_see_them(hiding: dict[str, Any], half: np.dtype[Any]) -> None:
    kernel_cases.special_values_are_seen(half, 40, 590, hiding)


@pytest.mark.parametrize("Lk", [200, 590])
def test_special_queries_and_keys(Lk: int, half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 3, Lk, 16, Hq=4, Hkv=2)
    q[1, 1, 3], q[2, 0, 0], k[1, 150, 2] = np.nan, np.inf, -np.inf
    out = harken.attention(q, k, v, device="cuda")
    with np.errstate(all="ignore"):
        truth = harken.reference(q, k, v, dtype=np.float64)
    np.testing.assert_array_equal(np.isnan(out.astype(np.float64)), np.isnan(truth))


@pytest.mark.parametrize("rows", [16, 64])
def test_pages(rows: int, half: np.dtype[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in pages of a pool, in no order, whose tables only the library's own interface passes on so far."""
    monkeypatch.syspath_prepend(str(emulated.CUDA.parents[1] / "bench"))
    before = set(sys.modules)
    from card import check as of_card
    from card.device import Card, interface

    interface.load.cache_clear()
    options = {"batch": (2,), "options": "lengths", "layout": f"pages of {rows}"}
    case = of_card.Case((half.name,) * 3, 2, 300, 64, 64, Hq=4, Hkv=2, **options)
    assert of_card.check(Card(), "decode", case, 0) == (True, None)
    for name in set(sys.modules) - before:
        if name.split(".")[0].split("_")[0] == "card":
            del sys.modules[name]


# --- the bits of a row ---


@pytest.mark.parametrize("name", ["lengths", "mask", "all"])
def test_rows_do_not_know_their_neighbours(name: str, half: np.dtype[Any]) -> None:
    """Nor the other heads of their group, nor the batch, nor the room that is there for keys."""
    q, k, v = qkv(half, LQ, LK, 24, Hq=4, Hkv=2, batch=(2,))
    given = options(half, name)
    whole = harken.attention(q, k, v, device="cuda", return_lse=True, **given)
    part: dict[str, Any] = {
        "mask": lambda x: x[1, 2:3], "bias": lambda x: x[2:3], "kv_lengths": lambda x: x[1],
        "q_lengths": lambda x: x[1], "alibi": lambda x: x[2:3], "sinks": lambda x: x[2:3], "scale": lambda x: x[2:3],
    }  # fmt: skip
    own = {key: part.get(key, lambda x: x)(x) for key, x in given.items()}
    alone = harken.attention(q[1, 2:3], k[1, 1:], v[1, 1:], device="cuda", return_lse=True, **own)
    for actual, expected in zip(alone, whole, strict=True):
        same_bits(actual, expected[1, 2:3])


def test_what_others_have_does_not_show(half: np.dtype[Any]) -> None:
    """A short row of a batch is cut as if it were alone, whatever the longest has."""
    q, k, v = qkv(half, 1, 9000, 8, Hq=2, batch=(3,))
    lengths = [200, 4100, 9000]
    whole = harken.attention(q, k, v, device="cuda", kv_lengths=lengths, return_lse=True)
    for b, n in enumerate(lengths):
        alone = harken.attention(q[b], k[b, :, :n], v[b, :, :n], device="cuda", return_lse=True)
        for actual, expected in zip(alone, whole, strict=True):
            same_bits(actual, expected[b])


def test_ranges_add_up_to_the_whole() -> None:
    """Each range by itself, merged by `harken.merge`, is what the kernel gives of all."""
    q, k, v = qkv(DTYPES["float16"], 2, 1100, 24, Hq=4, Hkv=1)
    whole = harken.attention(q, k, v, device="cuda", return_lse=True)
    parts = [
        harken.attention(q, k[:, a : a + 256], v[:, a : a + 256], device="cuda", return_lse=True)
        for a in range(0, 1100, 256)
    ]
    merged = harken.merge(parts)
    np.testing.assert_allclose(merged[0].astype(float), whole[0].astype(float), atol=1e-3)
    np.testing.assert_allclose(merged[1], whole[1], rtol=1e-6)


# --- how it is cut ---


def test_plan(half: np.dtype[Any]) -> None:
    q, k, v = qkv(half, 2, 1000, 128, Hq=8, Hkv=2, batch=(3,))
    plan = harken.explain(q, k, v, device="cuda")
    assert (plan.kernel, plan.blocks, plan.threads) == ("decode", 3 * 2 * 4, 128)
    assert plan.workspace_bytes == 3 * 2 * 4 * 8 * (128 + 2) * 4
    assert 64 << 10 < plan.shared_bytes < (228 << 10) // 3 - 1024
    few = harken.explain(q, k[:, :, :256], v[:, :, :256], device="cuda")
    assert (few.blocks, few.workspace_bytes) == (6, 0)
    wide = qkv(half, 64, 100, 256, Hq=1)
    assert harken.explain(*wide, device="cuda").shared_bytes <= 99 << 10  # what a block of an sm_86 may have


SOURCE = """
#include "ranges.hpp"
using namespace harken;
extern "C" {
int64_t size(int64_t keys) { return keys_of_range(keys); }
int64_t count(int64_t keys) { return ranges_of(keys); }
int64_t most_of(int64_t keys) { return most_ranges(keys); }
void at(int64_t keys, int64_t n, Interval* to) { *to = range_at(keys, n); }
}
"""


def test_ranges_cover_the_keys_once(tmp_path: Path) -> None:
    source, target = tmp_path / "ranges.cpp", tmp_path / "ranges.so"
    source.write_text(SOURCE)
    flags = [flag for flag in emulated.FLAGS if flag != "-fvisibility=hidden"]
    subprocess.run(["g++", *flags, "-Wno-unused-function", "-I", emulated.CUDA, source, "-o", target], check=True)
    host, to = ctypes.CDLL(str(target)), (c_int64 * 2)()
    for function in (host.size, host.count, host.most_of):
        function.restype, function.argtypes = c_int64, [c_int64]
    host.at.argtypes = [c_int64, c_int64, ctypes.c_void_p]
    so_far, sizes = 0, (*range(0, 9000, 7), *range(9000, 300000, 997), 65536, 65537, 131072, 131073, 1 << 20, 1 << 30)
    for keys in sorted({*sizes, 255, 256, 257, 4096, 4097}):
        count, size = host.count(keys), host.size(keys)
        so_far = max(so_far, count)
        assert so_far <= host.most_of(keys) <= 128
        assert size % 128 == 0
        assert size >= 256
        end = 0
        for n in range(count):
            host.at(keys, n, to)
            assert to[0] == end
            assert to[1] - to[0] == min(size, keys - end)
            end = to[1]
        assert end == keys
        host.at(keys, count, to)
        assert to[0] >= to[1] or keys == 0


def test_what_it_lacks_is_said() -> None:
    half, words = DTYPES["float16"], "takes at most 64 queries of all heads that share keys"
    own: list[Any] = [(qkv(half, 65, 8, 16, Hq=1), {}, words), (qkv(half, 13, 8, 16, Hq=5, Hkv=1), {}, words)]
    kernel_cases.lacks("decode", kernel_cases.lacks_of_halves() + own)


def test_who_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"source": "emulated", "card": "emulator", "capability": "9.0", "driver": "", "date": "2026-01-01"}
    monkeypatch.setattr(cards, "records", lambda: [record | {"kernel": name} for name in emulated.KERNELS])
    half = DTYPES["bfloat16"]
    with emulated.card(None):
        for Lq, heads, chosen in [(1, 8, "decode"), (8, 8, "decode"), (9, 8, "hopper"), (64, 1, "decode")]:
            q, k, v = qkv(half, Lq, 100, 64, Hq=heads, Hkv=1)
            plan = harken.explain(q, k, v, device="cuda")
            assert plan.kernel == chosen
            assert ("decode: takes at most 64 queries" in plan.why) == (chosen != "decode")
