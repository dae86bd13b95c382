"""The index arithmetic of tiles, by a plain C++ compiler: what lies where, who reads it, what is visited."""

from __future__ import annotations

import ctypes
import subprocess
from ctypes import c_int, c_int64, c_uint64
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import emulated
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not emulated.able(), reason="no g++ to compile it with")

SOURCE = """
#include "layout.hpp"
#include "order.hpp"
#include "schedule.hpp"
#include "slabs.hpp"
using namespace harken;
extern "C" {
#define PAIR(name, call) void name(int n, int* to) { auto at = call; to[0] = at.row, to[1] = at.chunk; }
PAIR(rows, of_rows(n))
PAIR(columns, of_columns(n))
void cell(int lane, int n, int* to) { auto at = cell_of(lane, n); to[0] = at.row, to[1] = at.col; }
void copy(int width, int n, int* to) { auto at = copied(width, n); to[0] = at.row, to[1] = at.chunk; }
int offset(int width, int row, int chunk) { return offset_of(width, row, chunk); }
int moved(int offset, int chunks) { return along(offset, chunks); }
uint32_t place(uint32_t address) { return swizzled(address); }
uint64_t operand(uint32_t address, uint32_t leading) { return descriptor(address, leading); }
int channels(int step, int slab) { return channels_on(step, slab); }
int down(int step) { return rows_on(step); }
void turn(int64_t tiles, int64_t heads, int64_t group, int64_t bytes, int n, int* to) {
  auto at = turn_at(order_of(tiles, heads, group, bytes), n);
  to[0] = at.head, to[1] = at.tile;
}
int holder(int lane, int col) { return holder_of(lane, col); }
int pair_offset(int halves, int lane, int parity, int n) { return along(offset_of_pair(halves, lane, parity), 4 * n); }
int pair_channel(int lane, int n, int col) { return channel_of_pair(lane, n, col); }

static Sight sight_of(const int64_t* s, const int64_t* number, const int64_t* begin, const Interval* intervals) {
  return {s[0], s[1], s[2], s[3], {(const char*)number, 8, begin, intervals}};
}
int visits(const int64_t* s, const int64_t* number, const int64_t* begin, const Interval* intervals, int64_t i0,
           int64_t i1, int keys, int64_t* to) {
  const Sight sight = sight_of(s, number, begin, intervals);
  Walk walk = walk_of(sight, i0, i1, keys);
  int count = 0;
  for (Visit v; v = next_visit(sight, walk, keys), v.any; ++count) to[2 * count] = v.k0, to[2 * count + 1] = v.whole;
  return count;
}
uint64_t bits(const int64_t* s, const int64_t* number, const int64_t* begin, const Interval* intervals, int64_t i,
              int64_t k0) {
  return seen_bits(sight_of(s, number, begin, intervals), i, k0);
}
void next(const int64_t* s, const int64_t* number, const int64_t* begin, const Interval* intervals, int64_t i,
          int64_t k, Interval* to) {
  *to = next_seen(sight_of(s, number, begin, intervals), i, k);
}
}
"""

WIDTHS = 64, 128, 256, 512
LANES = range(32)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The functions of the headers."""
    folder: Path = tmp_path_factory.mktemp("layout")
    source, target = folder / "layout.cpp", folder / "layout.so"
    source.write_text(SOURCE)
    flags = [flag for flag in emulated.FLAGS if flag != "-fvisibility=hidden"]
    subprocess.run(["g++", *flags, "-Wno-unused-function", "-I", emulated.CUDA, source, "-o", target], check=True)
    library = ctypes.CDLL(str(target))
    library.bits.restype = c_uint64
    return library


def pair(function: Any, *arguments: int) -> tuple[int, int]:
    to = (c_int * 2)()
    function(*arguments, to)
    return to[0], to[1]


def banks(offsets: list[int], size: int) -> list[int]:
    """The banks of 4 bytes that a phase of accesses of `size` bytes meets."""
    return sorted(offset // 4 % 32 + n for offset in offsets for n in range(size // 4))


@pytest.mark.parametrize("width", WIDTHS)
def test_swizzled_rows_are_a_permutation(host: Any, width: int) -> None:
    chunks = width // 8
    offsets = [host.offset(width, row, chunk) for row, chunk in product(range(64), range(chunks))]
    assert sorted(offsets) == list(range(0, 64 * width * 2, 16))
    assert all(offset // (2 * width) == n // chunks for n, offset in enumerate(offsets))
    for row, chunk, more in product(range(64), (0, 1), range(0, chunks, 2)):
        assert host.moved(host.offset(width, row, chunk), more) == host.offset(width, row, chunk + more)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_phase_meets_every_bank_once(host: Any, width: int) -> None:
    every = list(range(32))
    for spots, phase, step in product((host.rows, host.columns), range(4), range(width // 16)):
        named = [pair(spots, lane) for lane in range(8 * phase, 8 * phase + 8)]
        assert banks([host.moved(host.offset(width, *spot), 2 * step) for spot in named], 16) == every
    for first in range(0, 64 * width // 8, 8):
        assert banks([host.offset(width, *pair(host.copy, width, n)) for n in range(first, first + 8)], 16) == every
    for half, n in product((0, 2), range(width // 8)):  # results on their way out
        rows = [pair(host.cell, lane, half)[0] for lane in LANES]
        assert banks([host.offset(width, rows[lane], n) + lane % 4 * 4 for lane in LANES], 4) == every


@pytest.mark.parametrize("width", WIDTHS)
def test_copies_bring_every_chunk_once(host: Any, width: int) -> None:
    chunks = width // 8
    assert [pair(host.copy, width, n) for n in range(32 * chunks)] == list(product(range(32), range(chunks)))


def loaded(host: Any, spots: Any, turned: bool) -> Any:
    """(lane, number, [row, column]) of what the lanes hold of 16 rows of 16 numbers, by PTX's word on ldmatrix."""
    held = np.empty((32, 8, 2), int)
    named = [pair(spots, lane) for lane in LANES]
    for lane, n, half in product(LANES, range(4), range(2)):
        row, column = (2 * (lane % 4) + half, lane // 4) if turned else (lane // 4, 2 * (lane % 4) + half)
        at = named[8 * n + row]
        held[lane, 2 * n + half] = at[0], 8 * at[1] + column
    return held


def test_fragments_are_those_of_the_product(host: Any) -> None:
    """PTX, matrix fragments of mma.m16n8k16: groups of 4 lanes, two numbers a word."""
    A, K, V = loaded(host, host.rows, False), loaded(host, host.columns, False), loaded(host, host.rows, True)
    for lane in LANES:
        group, member = lane // 4, lane % 4
        for i in range(8):
            row = group if i in (0, 1, 4, 5) else group + 8
            assert tuple(A[lane, i]) == (row, member * 2 + i % 2 + (8 if i >= 4 else 0))
        for i, product_of in product(range(4), range(2)):
            k, n = member * 2 + i % 2 + (8 if i >= 2 else 0), group + 8 * product_of
            assert tuple(K[lane, i + 4 * product_of]) == (n, k)  # rows are columns of B
            assert tuple(V[lane, i + 4 * product_of]) == (k, n)
        for i in range(4):
            assert pair(host.cell, lane, i) == (group + (8 if i >= 2 else 0), member * 2 + i % 2)
    for held in (A, K, V):
        assert len({tuple(at) for at in held.reshape(-1, 2)}) == 256
    assert len({pair(host.cell, lane, i) for lane in LANES for i in range(4)}) == 128
    for lane, col in product(LANES, range(64)):
        holder = host.holder(lane, col)
        assert (holder // 4, col % 8) in [(lane // 4, pair(host.cell, holder, i)[1]) for i in (0, 1)]


# --- numbers of 4 bytes ---


def test_fragments_of_float(host: Any) -> None:
    """PTX, matrix fragments of mma.m16n8k8 of tf32: a word is a number, the lane says which of the 4 of a chunk."""
    for lane in LANES:
        group, member = lane // 4, lane % 4
        for n in range(4):
            row, chunk = pair(host.rows, 8 * n + group)  # lanes 8n .. 8n + 7 name the rows of matrix n
            assert (row, 4 * chunk + member) == (group + n % 2 * 8, member + n // 2 * 4)  # number n of A
            row, chunk = pair(host.columns, 8 * n + group)
            assert (row, 4 * chunk + member) == (group + n // 2 * 8, member + n % 2 * 4)  # number n % 2 of B


@pytest.mark.parametrize("width", [64, 128, 256])
def test_values_lie_where_their_keys_are(host: Any, width: int) -> None:
    """What a lane reads of V belongs to the keys that it holds in P, and C's columns are channels, each once."""
    at = {
        (row, channel): host.offset(2 * width, row, channel // 4) + channel % 4 * 4
        for row, channel in product(range(8), range(width))
    }
    for lane, parity, n in product(LANES, (0, 1), range(width // 16)):
        key = pair(host.cell, lane, parity)[1]  # which P has in word `parity` of C, and A in its column t + 4 parity
        for second in (0, 1):  # word of the 8 bytes: product 2n + second, column lane / 4 of B
            column = lane // 4
            channel = host.pair_channel(column // 2, 2 * n + second, column % 2)
            assert host.pair_offset(2 * width, lane, parity, n) + 4 * second == at[key, channel]
    channels = sorted(host.pair_channel(lane, n, col) for lane, n, col in product(range(4), range(width // 8), (0, 1)))
    assert channels == list(range(width))
    for lane, n in product(LANES, range(width // 16)):  # as they leave, 16 bytes a lane
        four = [host.pair_channel(lane, 2 * n + second, col) for col, second in product((0, 1), (0, 1))]
        assert four == list(range(16 * n + 4 * (lane % 4), 16 * n + 4 * (lane % 4) + 4))


@pytest.mark.parametrize("width", [64, 128, 256])
def test_every_phase_of_floats_meets_every_bank_once(host: Any, width: int) -> None:
    for half, parity, n in product((0, 16), (0, 1), range(width // 16)):
        offsets = [host.pair_offset(2 * width, lane, parity, n) for lane in range(half, half + 16)]
        assert banks(offsets, 8) == list(range(32))


def drawn(rng: np.random.Generator, listed: bool) -> tuple[list[Any], Any]:
    """A sight as arguments, and what it shows as an array (queries, keys)."""
    queries, keys = int(rng.integers(1, 200)), int(rng.integers(0, 300))
    start, ends = int(rng.integers(-150, 300)), [2**48, 0, *rng.integers(0, 120, 2)]
    left, right = int(rng.choice([2**48, *rng.integers(0, 120, 3)])), int(rng.choice(ends))
    p, j = np.arange(queries)[:, None] + start, np.arange(keys)
    shown = (j >= p - left) & (j <= p + right)
    sight = (c_int64 * 4)(start, keys, left, right)
    if not listed:
        return [sight, None, None, None], shown
    edges = [np.unique(rng.integers(0, keys + 1, 2 * int(rng.integers(0, 5)))) for _ in range(3)]
    lists = [list(pairwise(of))[::2] for of in edges]
    number = np.sort(rng.integers(0, 3, queries))
    begin = np.cumsum([0, *map(len, lists)])
    flat = np.array([end for of in lists for ends in of for end in ends], np.int64)
    in_list = np.array([[any(a <= key < b for a, b in lists[n]) for key in range(keys)] for n in number], bool)
    arrays = [(c_int64 * max(1, len(of)))(*map(int, of)) for of in (number, begin, flat)]
    return [sight, *arrays], shown & in_list.reshape(shown.shape)


@pytest.mark.parametrize("listed", [False, True])
def test_visits_are_what_masks_show(host: Any, listed: bool) -> None:
    rng = np.random.default_rng(3)
    to = (c_int64 * 100)()
    for _ in range(150):
        arguments, shown = drawn(rng, listed)
        queries, keys = shown.shape
        for tile, i0 in product((32, 64), range(0, queries, 64)):
            i1 = min(i0 + 64, queries)
            count = host.visits(*arguments, c_int64(i0), c_int64(i1), tile, to)
            visits = {to[2 * n]: bool(to[2 * n + 1]) for n in range(count)}
            assert list(visits) == sorted(visits)
            for k0 in range(0, keys, tile):
                part = shown[i0:i1, k0 : k0 + tile]
                assert part.any() <= (k0 in visits)
                assert listed or (k0 in visits) <= part.any() or not shown[i0:i1].any(1).all()
                assert visits.get(k0, False) <= (part.all() and part.shape[1] == tile)
                assert listed or (part.all() and part.shape[1] == tile) <= visits.get(k0, False)
            for i, k0 in product((i0, i1 - 1), range(0, keys, tile)):
                bits = host.bits(*arguments, c_int64(i), c_int64(k0))
                here = shown[i, k0 : k0 + 64]
                assert bits == sum(int(seen) << n for n, seen in enumerate(here))


@pytest.mark.parametrize("listed", [False, True])
def test_the_next_keys_are_what_masks_show(host: Any, listed: bool) -> None:
    rng = np.random.default_rng(4)
    to = (c_int64 * 2)()
    for _ in range(150):
        arguments, shown = drawn(rng, listed)
        for i, k in zip(rng.integers(0, len(shown), 20), rng.integers(0, shown.shape[1] + 1, 20), strict=True):
            host.next(*arguments, c_int64(i), c_int64(k), to)
            ahead = np.flatnonzero(shown[i, k:]) + k
            if len(ahead) == 0:
                assert tuple(to) == (2**48, 2**48)
                continue
            gap = np.flatnonzero(~shown[i, ahead[0] :])
            assert tuple(to) == (ahead[0], ahead[0] + (gap[0] if len(gap) else len(shown[i]) - ahead[0]))


def test_slabs_are_swizzled_as_the_copy_engine_does(host: Any) -> None:
    """128-byte swizzle: chunk c of row r of 8 at place c ^ r, blocks of 8 rows apart."""
    for row, chunk in product(range(64), range(8)):
        assert host.place(128 * row + 16 * chunk) == 128 * row + 16 * (chunk ^ row % 8) == host.offset(64, row, chunk)


def test_descriptors_are_those_of_the_manual(host: Any) -> None:
    """PTX, matrix descriptor: address, leading and stride distance in 16 bytes, mode 1 (128-byte swizzle) on top."""
    host.operand.restype = c_uint64
    assert host.operand(0x400, 0) == 0x4000004000000040
    assert host.operand(0x18000, 0x4000) == 0x4000004004001800
    assert host.operand(0x38000 - 0x400, 0x8000) == 0x40000040080037C0
    for step in range(16):  # 32 bytes on in a row, after 4 steps the next slab; or 16 rows
        address = 0x400 + step // 4 * 0x4000 + step % 4 * 32
        assert host.operand(address, 0) == host.operand(0x400, 0) + host.channels(step, 0x4000)
        assert host.operand(0x400 + 16 * 128 * step, 0) == host.operand(0x400, 0) + host.down(step)


@pytest.mark.parametrize(
    ("tiles", "heads", "group", "size"),
    [(1, 1, 1, 0), (5, 6, 2, 1 << 20), (4, 64, 8, 20 << 20), (7, 10, 1, 8 << 20), (3, 12, 4, 1 << 40)],
)
def test_tiles_are_taken_once_and_the_longest_first(host: Any, tiles: int, heads: int, group: int, size: int) -> None:
    def turn(n: int) -> tuple[int, int]:
        return pair(host.turn, c_int64(tiles), c_int64(heads), c_int64(group), c_int64(size), n)

    order = [turn(n) for n in range(tiles * heads)]
    assert sorted(order) == list(product(range(heads), range(tiles)))
    section = min(heads, group * max(1, (25 << 20) // max(1, size)))
    for first in range(0, heads, section):
        part = order[first * tiles : min(first + section, heads) * tiles]
        assert {head for head, _ in part} == set(range(first, min(first + section, heads)))
        assert [tile for _, tile in part] == sorted((tile for _, tile in part), reverse=True)
