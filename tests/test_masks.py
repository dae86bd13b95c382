"""Masks by what they mean: the same as their boolean arrays, at the cost of what is visible."""

from __future__ import annotations

import contextlib
import sys
import time
import tracemalloc
from functools import reduce
from operator import and_, or_
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import DTYPES, Array, check, in_form, qkv, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import harken
from harken.masks import Blocks, Causal, Dense, Documents, Lengths, Mask, Prefix, Window
from harken.masks.frame import Frame
from harken.masks.intervals import Intervals

FLOAT = np.dtype(np.float32)
B, H = 2, 4

bounded = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def some_masks(Lq: int, Lk: int) -> list[Mask]:
    """Of every kind, in every combination that has a path of its own, for two batch rows and four heads."""
    r, L = rng(Lq, Lk), max(Lq, Lk) + 40
    blocks = L // 16 + 1
    grid = r.random((H, blocks, blocks)) < 0.3
    return [
        Causal() | Prefix(37),
        Causal() & (Window(30, 0) | Prefix(3)),
        ~Window(20, 5),
        Documents(np.repeat(np.arange(L), 23)[:L]) & Causal(),
        Documents(np.sort(r.integers(0, 6, (B, L)))) & ~Window(2, 2),
        Documents(r.integers(0, 4, L)) | Lengths([5, Lk // 2]),
        Blocks(grid[0], 16),
        Blocks(grid, (16, 16)) & Window([[0], [40]], [3, 30, 300, 0]),
        Dense(r.random((H, Lq, Lk)) < 0.6) & Documents(np.arange(L) // 50),
        Dense(r.random((Lq, Lk)) < 0.05) | Prefix(1),
        Lengths([0, Lk]) & Dense(r.random((B, 1, 1, Lk)) < 0.5) & Dense(r.random((H, Lq, 1)) < 0.7),
    ]


# --- the algebra ---


def expanded(of: Intervals, lead: tuple[int, ...], Lq: int) -> Array:
    """The lists as a boolean array, which must be as lists are: sorted, and neither empty nor touching."""
    number = np.broadcast_to(of.number, (*lead, Lq))
    seen = np.zeros((*lead, Lq, of.keys), bool)
    assert of.begin[0] == 0
    assert of.begin[-1] == len(of.ends)
    for at in np.ndindex(*number.shape):
        list_ = of.ends[of.begin[number[at]] : of.begin[number[at] + 1]]
        assert (np.diff(list_.ravel(), prepend=-1)[0:] > 0).all()
        for first, end in list_:
            seen[at][first:end] = True
    return seen


@st.composite
def expressions(draw: st.DrawFn, Lq: int, Lk: int, depth: int = 3, lead: bool = True) -> Mask:
    r, L = rng(draw(st.integers(0, 2**32))), max(Lq, Lk) + 3
    if depth and draw(st.booleans()):
        parts = [draw(expressions(Lq, Lk, depth - 1, lead)) for _ in range(draw(st.integers(1, 3)))]
        return ~parts[0] if len(parts) == 1 else reduce(draw(st.sampled_from([and_, or_])), parts)
    some = draw(st.sampled_from([0.1, 0.5, 0.9]))
    by_row = draw(st.sampled_from([(), (B,), (1,)])) if lead else ()
    by_head = draw(st.sampled_from([(), (H,), (B, 1), (B, H)])) if lead else ()
    size = draw(st.sampled_from([(1, 1), (3, 2), (4, 4)]))
    grid = r.random((*by_head, -(-L // size[0]), -(-L // size[1]))) < some
    rows = [np.flatnonzero(row) for row in grid.reshape(-1, *grid.shape[-2:])[0]]
    kinds = {
        "causal": lambda: Causal(),
        "window": lambda: Window(int(r.integers(0, L)) if some > 0.2 else None, r.integers(0, L, by_head)),
        "lengths": lambda: Lengths(r.integers(0, L, by_row)),
        "prefix": lambda: Prefix(int(r.integers(0, L))),
        "documents": lambda: Documents(r.integers(0, 3, (*by_row, L))),
        "packed": lambda: Documents(np.sort(r.integers(-3, 3, (*by_row, L)))),
        "cross": lambda: Documents(r.integers(0, 3, L), r.integers(0, 4, (*by_row, Lq))),
        "blocks": lambda: Blocks(grid, size),
        "csr": lambda: Blocks((np.cumsum([0, *map(len, rows)]), np.concatenate(rows)), size),
        "dense": lambda: Dense(r.random((*by_head, Lq, Lk)) < some),
        "row": lambda: Dense(r.random(Lk) < some),
        "column": lambda: Dense(r.random((Lq, 1)) < some),
    }
    return kinds[draw(st.sampled_from(list(kinds)))]()


@settings(bounded, max_examples=100)
@given(st.data(), st.sampled_from([(1, 1), (1, 9), (7, 7), (5, 12), (12, 12), (0, 4), (4, 0)]))
def test_lists_are_the_array(data: st.DataObject, sizes: tuple[int, int]) -> None:
    """Every expression, as lists and as its equation in NumPy; tiles and density are counted from the lists."""
    Lq, Lk = sizes
    a, b = data.draw(expressions(Lq, Lk)), data.draw(expressions(Lq, Lk, 1))
    start = data.draw(st.sampled_from([0, 2, [1, 0]]))  # positions lie in 0 .. max(Lq, Lk) + 2
    frame = Frame.of_call(Lq, Lk, start)
    truth, other = (np.broadcast_to(x.dense(Lq, Lk, q_start=start), (B, H, Lq, Lk)) for x in (a, b))
    lists, others = a._intervals(frame), b._intervals(frame)
    for made, wanted in (
        (lists, truth),
        (~lists, ~truth),
        (~~lists, truth),
        (lists & others, truth & other),
        (lists | others, truth | other),
        (~(~lists | ~others), truth & other),
    ):
        np.testing.assert_array_equal(expanded(made, (B, H), Lq), wanted)
    share = a.density(Lq, Lk, q_start=start)
    assert share == pytest.approx(truth.mean() if truth.size else 0)
    tall, wide = data.draw(st.sampled_from([(1, 1), (2, 3), (5, 5), (100, 7)]))
    tiles = np.broadcast_to(a.tiles(Lq, Lk, (tall, wide), q_start=start), (B, H, -(-Lq // tall), -(-Lk // wide)))
    for r, c in np.ndindex(*tiles.shape[-2:]):
        tile = truth[..., r * tall : (r + 1) * tall, c * wide : (c + 1) * wide]
        wanted = tile.any(axis=(-1, -2)).astype(int) + tile.all(axis=(-1, -2))
        np.testing.assert_array_equal(tiles[..., r, c], wanted)


def test_a_hundred_thousand_queries() -> None:
    """Time and memory by queries and intervals, not by pairs, of which there are ten thousand million."""
    L = 100_000
    ids = np.sort(rng(0).integers(0, 50, L))
    tracemalloc.start()
    for mask in (
        Causal() | Prefix(L // 2),
        (Window(256, 0) | Prefix(4)) & Documents(ids),
        ~Window(100, 100) & Causal(),
        Blocks(rng(1).random((L // 500, L // 500)) < 0.05, 500) | Window(64, 0),
    ):
        frame = Frame.of_call(L, L, None)
        tracemalloc.reset_peak()
        began = time.process_time()
        lists = mask._intervals(frame)
        assert time.process_time() - began < 1.5  # 10 to 60 ms where the machine is free
        assert tracemalloc.get_traced_memory()[1] < 400 * (L + len(lists.ends))
    tracemalloc.stop()


# --- the kernels ---


@pytest.mark.parametrize("form", ["tiled", "brief", "decode", "matrix"])
def test_every_form(backend: str, dtype: Any, form: str) -> None:
    every = 1 if dtype == FLOAT else 3
    for Lq in (2, 21) if form == "decode" else (70,):
        q, k, v = qkv(dtype, Lq, 130, D=32, Hq=H, Hkv=2, batch=(B,))
        with in_form(form):
            for mask in some_masks(Lq, 130)[::every]:
                check(q, k, v, mask=mask, weights=form == "tiled" and dtype == FLOAT)


def test_several_blocks_of_keys(backend: str) -> None:
    """With blocks to skip before, between and after what is seen, ranges that are merged, and modified scores."""
    for Lq, Lk in ((3, 1400), (270, 700), (600, 600)):
        q, k, v = qkv(FLOAT, Lq, Lk, D=32, Hq=2, Hkv=1)
        far = np.zeros((9, 9), bool)
        far[:, 1] = far[::2, 3] = far[8, 7] = True
        for mask, options in (
            (Blocks(far, (Lk // 9 + 1, 160)), {}),
            (Blocks(far, (Lk // 9 + 1, 160)) & Causal(), {"alibi": np.array([0.01, 0.1])}),
            (Causal() & (Window(40, 0) | Prefix(5)), {"softcap": 5.0, "sinks": np.array([1.0, -1.0])}),
            (Documents(np.arange(Lk) // 90), {"bias": np.linspace(0, 1, Lk)}),
            (Window([9, 300], 9), {"window": (200, None)}),
        ):
            check(q, k, v, mask=mask, weights=False, **options)


@settings(bounded, max_examples=40)
@given(st.data(), st.sampled_from(["float32", "bfloat16", "float64"]))
def test_beside_other_options(data: st.DataObject, name: str) -> None:
    from strategies import calls

    q, k, v, options = data.draw(calls(DTYPES[name], st.integers(1, 40), st.integers(1, 70), st.sampled_from([3, 16])))
    axis = -2 if q.ndim == 2 or options["head_axis"] == -3 else -3
    Lq, Lk = q.shape[axis], k.shape[axis]
    options |= {"mask": data.draw(expressions(Lq, Lk, 2, lead=False)), "q_start": 0}
    check(q, k, v, weights=False, **options)


def test_a_mask_is_its_array(backend: str, dtype: Any) -> None:
    """The bits, where a tile is summed up in the same pieces; elsewhere another order of sums, no other terms."""
    Lq = Lk = 200
    q, k, v = qkv(dtype, Lq, Lk, D=32, Hq=H, Hkv=2, batch=(B,))
    tolerance = {"float64": 1e-13, "float32": 2e-5}.get(dtype.name, 2e-2)
    for mask in some_masks(Lq, Lk)[1::2]:
        by_mask = harken.attention(q, k, v, mask=mask).astype(float)
        by_array = harken.attention(q, k, v, mask=mask.dense(Lq, Lk)).astype(float)
        np.testing.assert_allclose(by_mask, by_array, rtol=tolerance, atol=tolerance)
    for form in ("tiled", "brief", "decode", "matrix"):
        with in_form(form):
            for options in ({"causal": True}, {"window": (50, 3)}, {"window": (None, 7)}):
                left, right = (None, 0) if "causal" in options else options["window"]
                plain = harken.attention(q, k, v, **options)
                same_bits(harken.attention(q, k, v, mask=Window(left, right)), plain)
                same_bits(harken.attention(q, k, v, mask=Window(left, right) | Window(left, right)), plain)
    same_bits(harken.attention(q, k, v, mask=Causal() & Window(50)), harken.attention(q, k, v, window=(50, 0)))
    array = rng(5).random((Lq, Lk)) < 0.5
    same_bits(harken.attention(q, k, v, mask=Dense(array)), harken.attention(q, k, v, mask=array))


def test_what_is_hidden_is_not_read(backend: str, dtype: Any) -> None:
    """NaN in keys, values and bias that nobody sees changes no bit; seen by one query it reaches this one alone."""
    for form, Lq, Lk in (("tiled", 150, 300), ("brief", 150, 200), ("decode", 5, 300), ("matrix", 150, 300)):
        q, k, v = qkv(dtype, Lq, Lk, D=32, Hq=2)
        for mask in (Documents(np.arange(400) // 60) & ~Documents(np.arange(400) // 7 % 3), ~Window(9, 20) & Causal()):
            seen = mask.dense(Lq, Lk)
            with in_form(form):
                clean = harken.attention(q, k, v, mask=mask)
                K, V = k.copy(), v.copy()
                K[:, ~seen.any(axis=0)] = V[:, ~seen.any(axis=0)] = np.nan
                bias = np.where(seen, 0, np.nan).astype(np.float32)
                same_bits(harken.attention(q, K, V, mask=mask), clean)
                check(q, K, V, mask=mask, bias=bias, weights=False)
                one = int(np.flatnonzero(seen.any(axis=0))[3])
                V[:, one] = np.nan
                out = harken.attention(q, K, V, mask=mask)
                np.testing.assert_array_equal(np.isnan(out).all(axis=(0, 2)), seen[:, one])
                assert not np.isnan(out[:, ~seen[:, one]]).any()


def test_who_sees_nobody(backend: str) -> None:
    for form, Lq in (("tiled", 90), ("brief", 90), ("decode", 6), ("matrix", 90)):
        q, k, v = qkv(FLOAT, Lq, 120, D=32, Hq=H)
        lonely = np.arange(Lq) % 7 == 3
        ids = np.where(lonely, 1, 0)
        for mask in (Documents(np.zeros(120, int), ids), Lengths(0), ~(Window() | Causal())):
            with in_form(form):
                out, lse = harken.attention(q, k, v, mask=mask, return_lse=True)
                none = ~mask.dense(Lq, 120).any(axis=-1)
                assert not out[:, none].any()
                np.testing.assert_array_equal(lse == -np.inf, np.broadcast_to(none, lse.shape))
                check(q, k, v, mask=mask, sinks=np.arange(4.0), weights=False)


def test_a_row_is_its_own_problem() -> None:
    """What other batch rows and heads see changes no bit, also where heads share keys and skip blocks together."""
    sides = np.array([[0, 3, 500, 70], [900, 20, 1, 5]])
    for dtype in DTYPES.values():
        for Lq in (3, 300):
            q, k, v = qkv(dtype, Lq, 900, D=32, Hq=H, Hkv=2, batch=(B,))
            together = harken.attention(q, k, v, mask=Causal() & (Window(sides, 0) | Prefix(2)))
            for b, h in np.ndindex(B, H):
                mask = Causal() & (Window(int(sides[b, h]), 0) | Prefix(2))
                alone = harken.attention(q[b], k[b], v[b], mask=mask)
                same_bits(together[b, h], alone[h])


def test_the_cost_is_the_visible_part() -> None:
    q, k, v = qkv(FLOAT, 8192, 8192, D=16, Hq=1)

    def seconds(mask: Mask) -> float:
        def once() -> float:
            began = time.process_time()
            harken.attention(q, k, v, mask=mask, threads=1)
            return time.process_time() - began

        return min(once() for _ in range(3))

    whole = seconds(Lengths(8192))
    for mask in (Window(64, 0) | Prefix(4), Documents(np.arange(8192) // 64), Blocks(np.eye(64, dtype=bool), 128)):
        assert seconds(mask) < whole / 5, mask  # of 1 / 64 to 1 / 128


# --- around the call ---


def test_positions_are_those_of_the_call() -> None:
    q, k, v = qkv(FLOAT, 20, 50, D=8, Hq=2, batch=(3,))
    mask = Documents(np.arange(60) // 9) & (Causal() | Prefix(4))
    for options in (
        {},
        {"q_start": 0},
        {"q_start": [0, 40, 7]},
        {"kv_lengths": [50, 30, 20]},
        {"kv_lengths": [50, 3, 0], "q_lengths": [20, 3, 0]},
        {"kv_lengths": 33, "q_start": 13, "causal": True, "window": (9, 9)},
    ):
        out = check(q, k, v, mask=mask, **options)  # the same object: what it keeps of one call is not for another
        given = {n: np.asarray(x) for n, x in options.items() if n in ("q_start", "kv_lengths", "q_lengths")}
        start = given.get("q_start", given.get("kv_lengths", np.array(50)) - given.get("q_lengths", np.array(20)))
        if "q_lengths" not in options:
            dense = mask.dense(20, 50, q_start=start)
            np.testing.assert_allclose(out, harken.attention(q, k, v, **options | {"mask": dense}), atol=1e-5)
    assert harken.explain(q, k, v, mask=mask).tasks > 0


def test_equal_hash_repr() -> None:
    one, other = Causal() & Documents([1, 2]) | ~Window(3), Causal() & Documents(np.array([1, 2])) | ~Window(3, None)
    assert one == other
    assert hash(one) == hash(other)
    assert one != (Causal() & Documents([1, 3]) | ~Window(3))
    assert Prefix(3) != Lengths(3)
    assert Window(np.array([3])) != Window(3)
    assert ~~one is one
    assert repr(one) == "Causal() & Documents(<int64 (2,)>, None) | ~Window(3, None)"
    assert repr(Lengths(3)) == "Lengths(3)"
    assert repr((Causal() | Prefix(3)) & ~(Causal() | Window(1))).count("(Causal() | ") == 2
    array = np.eye(3, dtype=bool)
    assert array & Causal() == Dense(array) & Causal()
    np.testing.assert_array_equal((array | ~Causal()).dense(3, 3), np.triu(np.ones((3, 3), bool)))
    ids = np.array([1, 1, 2])
    mask = Documents(ids)
    ids[:] = 5
    assert mask == Documents([1, 1, 2])


def test_plot(tmp_path: Path) -> None:
    for mask in (Causal() | Prefix(300), Window([3, 40, 5], 0), Lengths(0)):
        mask.plot(tmp_path / "mask.png", 700, 1200)
        assert (tmp_path / "mask.png").stat().st_size > 5000


WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: Window(-1), ValueError, "left holds -1: wanted 0 or more"),
    (lambda: Window(0.5), TypeError, "left is float64: wanted integers"),
    (lambda: Lengths(True), TypeError, "n is bool: wanted integers"),
    (lambda: Documents(3), ValueError, "ids is a single number: wanted one for each position, (..., L)"),
    (lambda: Dense(np.ones((2, 2))), TypeError, "array is float64: wanted bool, True where a query may look"),
    (lambda: Blocks([[1, 0]], 4), TypeError, "grid is int64: wanted bool, or (begin, columns) of integers"),
    (lambda: Blocks([[True]], 0), ValueError, "block_size holds 0: wanted 1 or more"),
    (lambda: Blocks(([0, 3], [1, 2]), 4), ValueError, "wanted CSR, begin from 0 up to len(columns)"),
    (lambda: Causal() and Window(1), TypeError, "a mask is neither true nor false"),
    (lambda: Causal() & [1, 2], TypeError, "array is int64: wanted bool"),
    (lambda: Causal().tiles(4, 4, 0), ValueError, "size is 0"),
    (lambda: call(Documents([1] * 19)), ValueError, "Documents has 19 ids, there are 20 keys: wanted one for each"),
    (lambda: call(Documents([1] * 20), q_start=15), ValueError, "queries stand outside of them, at positions 20 to 24"),
    (lambda: call(Documents([1] * 20, [1, 2])), ValueError, "Documents has 2 ids of queries, there are 10 queries"),
    (lambda: call(Blocks([[True]], 16)), ValueError, "Blocks has 1 columns of 16 keys, there are 20 keys"),
    (lambda: call(Blocks([[True]], 20), q_start=11), ValueError, "Blocks has 1 rows of 20 queries, and queries stand"),
    (lambda: call(Lengths([1, 2, 3])), ValueError, "with leading axes (3, 1): wanted ones that broadcast to (2, 4)"),
    (lambda: call(Dense(np.ones((9, 20), bool)) | Causal()), ValueError, "mask has shape (9, 20): wanted one that"),
    (lambda: call(Dense(np.ones((9, 20), bool))), ValueError, "mask has shape (9, 20): wanted one that"),
]


def call(mask: Mask, **options: Any) -> None:
    q, k, v = qkv(FLOAT, 10, 20, Hq=H, batch=(B,))
    out = np.full_like(q, 7)
    try:
        harken.attention(q, k, v, mask=mask, out=out, **options)
    finally:
        assert (out == 7).all()


@pytest.mark.parametrize(("wrong", "kind", "text"), WRONG, ids=[text[:40] for _, _, text in WRONG])
def test_mistakes(wrong: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        wrong()
    assert text in str(error.value)


def test_references() -> None:
    q, k, v = qkv(FLOAT, 10, 20, Hq=H, batch=(B,))
    mask = (Causal() | Prefix(3)) & Dense(np.ones((10, 20), bool))
    harken.attention(q, k, v, mask=mask)
    assert mask._compiled is not None
    _, _, array, lists = mask._compiled[1]
    assert lists is not None
    held = [mask, array, *lists]
    before = [sys.getrefcount(x) for x in held]
    for options in ({}, {"return_weights": True}, {"threads": 0}, {"out": q[:1]}):
        for _ in range(5):
            with contextlib.suppress(ValueError):
                harken.attention(q, k, v, mask=mask, **options)
    assert [sys.getrefcount(x) for x in held] == before
