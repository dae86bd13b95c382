"""The emulator's engines copy and multiply as a card's do, as late as may be, and say what a card does not forgive."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emulated
import numpy as np
import pytest
from compare import DTYPES

pytestmark = emulated.needed

Array = np.ndarray[Any, Any]

KERNELS = """
#include <cstdio>
#include "engines.hpp"
#include "fragments.hpp"
using namespace harken;
namespace {
constexpr int slab = 128 * slab_row_bytes;
struct Given { float* to; TensorMap map; int which; };

HARKEN_WORD Barrier& full() { return *(Barrier*)(shared_memory() + 4 * slab); }
// Two slabs of 128 rows from row `row` on, waited for by all, or by nobody.
HARKEN_WORD void bring(const Given& given, int row, bool waits) {
  if (thread() == 0) prepare(full(), 1), prepared();
  barrier();
  if (thread() == 0) {
    arrive_expecting(full(), 2 * slab);
    for (int n = 0; n < 2; ++n) copy_box(shared_memory() + n * slab, given.map, {64 * n, row, 0, 0, 0}, full());
  }
  if (waits) wait_for(full(), 0);
}
HARKEN_WORD void put(const Given& given, float (&C)[16][4]) {
  for (int n = 0; n < 64; ++n) {
    const Cell cell = cell_of(lane(), n % 4);
    given.to[(warp() * 16 + cell.row) * 128 + n / 4 * 8 + cell.col] = C[n / 4][n % 4];
  }
}
// C = X Y^T, X the first 64 rows of the tile, Y all of them; over 128 channels, or over 128 rows.
HARKEN_LONE_KERNEL(128) products(HARKEN_CONSTANT Given given) {
  const bool late = given.which == 1, askew = given.which == 2, over = given.which == 3, unread = given.which == 4;
  bring(given, given.which == 5 ? 100 : 0, !unread);
  float C[16][4];
  const uint64_t X = descriptor(shared_address(shared_memory()), 0);
  if (!askew) begin_products(C);
  for (int step = 0; step < 8; ++step) {
    const int on = channels_on(step, slab);
    product(bf16{}, C, X + on, X + on, step > 0);
  }
  commit_products();
  if (over && thread() == 0) copy_box(shared_memory(), given.map, {0, 0, 0, 0, 0}, full());
  if (!late) wait_products<0>(C);
  put(given, C);
  if (late) wait_products<0>(C);
  if (unread) wait_for(full(), 0);
}
// C = W X, W 64 x 128 in registers: row i is 1 at 2 i, X the tile as it lies.
HARKEN_LONE_KERNEL(128) from_registers(HARKEN_CONSTANT Given given) {
  bring(given, 0, true);
  if (given.which > 0 && thread() == 0) {
    *(uint16_t*)shared_memory() = 0x4000;  // 2
    if (given.which == 2) show_engines();
  }
  barrier();
  float C[16][4] = {};
  uint32_t W[8][4];
  for (int n = 0; n < 32; ++n) {
    const int row = warp() * 16 + lane() / 4 + n % 2 * 8, col = n / 4 * 16 + n % 4 / 2 * 8 + lane() % 4 * 2;
    W[n / 4][n % 4] = packed(bf16{}, float(col == 2 * row), float(col + 1 == 2 * row));
  }
  begin_products(C, W);
  const uint64_t X = descriptor(shared_address(shared_memory()), slab);
  for (int step = 0; step < 8; ++step) product(bf16{}, C, W[step], X + rows_on(step));
  commit_products();
  if (given.which == 3) W[0][0] ^= 1;
  wait_products<0>(C);
  put(given, C);
}
// Groups that take turns, and one that is counted and goes on.
HARKEN_LONE_KERNEL(256) turns(HARKEN_CONSTANT Given given) {
  const int group = warp() / 4;
  int& count = *(int*)shared_memory();
  if (thread() == 0) count = 0;
  barrier();
  if (group == 1) come(1, 256);
  for (int n = 0; n < 5; ++n) {
    meet(1 + group, 256);
    if (thread() % 128 == 0) given.to[count++] = float(group);
    come(2 - group, 256);
  }
  if (group == 0) meet(1, 256);
  const bool any = any_of(3 + group, 128, group == 1 && thread() == 200);
  if (thread() % 128 == 7) given.to[20 + group] = any;
}
HARKEN_LONE_KERNEL(384) registers(HARKEN_CONSTANT Given given) {
  if (warp() / 4 == 2) {
    if (given.which == 0) give_registers<24>();
  } else {
    take_registers<240>();
  }
  if (lane() == 0) given.to[warp()] = 1;
}
HARKEN_LONE_KERNEL(32) never_full(HARKEN_CONSTANT Given given) {
  if (thread() == 0) prepare(full(), 2), arrive(full());
  if (given.which == 0) barrier();
  wait_for(full(), 0);
}
HARKEN_LONE_KERNEL(32) no_barrier(HARKEN_CONSTANT Given) { arrive(full()); }
HARKEN_LONE_KERNEL(32) low(HARKEN_CONSTANT Given given) {
  prepare(full(), 1);
  copy_box(shared_memory() + 512, given.map, {0, 0, 0, 0, 0}, full());
}
}  // namespace

extern "C" __attribute__((visibility("default"))) int run(int kernel, int which, char* from, float* to, char* text) {
  void (*const kernels[])(Given) = {products, from_registers, turns, registers, never_full, no_barrier, low};
  const int threads[] = {128, 128, 256, 384, 32, 32, 32};
  try {
    const Given given = {to, map_of({from, Type::bf16, {120, 130, 1, 1, 1}, {256, 16, 16, 16}}, 128), which};
    launch(kernels[kernel], Grid{1, threads[kernel], 4 * slab + 64}, nullptr, given);
  } catch (const Fault& fault) {
    snprintf(text, 400, "%s", fault.text.c_str());
    return 1;
  }
  return 0;
}
"""

PRODUCTS, FROM_REGISTERS, TURNS, REGISTERS, NEVER_FULL, NO_BARRIER, LOW = range(7)
Run = Callable[[int, int], tuple[Array, str]]


@pytest.fixture(scope="module")
def tile() -> Array:
    """130 rows in memory, of which the map has 120 columns."""
    return np.random.default_rng(0).standard_normal((130, 128)).astype(DTYPES["bfloat16"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tile: Array) -> Run:
    """What a kernel writes, (64, 128), and what is said of it."""
    folder: Path = tmp_path_factory.mktemp("engines")
    source, target = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(KERNELS)
    texts = [emulated.CUDA / name for name in ("emulator.cpp", "emulated_engines.cpp")]
    subprocess.run(["g++", *emulated.FLAGS, "-I", emulated.CUDA, source, *texts, "-o", target], check=True)
    function = ctypes.CDLL(str(target)).run

    def call(kernel: int, which: int = 0) -> tuple[Array, str]:
        numbers, text = np.zeros((64, 128), np.float32), ctypes.create_string_buffer(400)
        function(kernel, which, ctypes.c_void_p(tile.ctypes.data), ctypes.c_void_p(numbers.ctypes.data), text)
        return numbers, text.value.decode()

    return call


def seen(tile: Array, first: int = 0) -> Array:
    """128 rows from `first` on, as the map shows them: of 130 rows and 120 columns, zeros beyond."""
    rows = np.zeros((128, 128))
    rows[: 130 - first, :120] = tile[first : first + 128, :120]
    return rows


@pytest.mark.parametrize(("which", "first"), [(0, 0), (5, 100)])
def test_products_of_what_the_copy_engine_brought(run: Run, tile: Array, which: int, first: int) -> None:
    numbers, said = run(PRODUCTS, which)
    assert said == ""
    rows = seen(tile, first)
    np.testing.assert_allclose(numbers, rows[:64] @ rows.T, rtol=1e-5, atol=1e-4)


def test_products_of_registers(run: Run, tile: Array) -> None:
    numbers, said = run(FROM_REGISTERS, 0)
    assert said == ""
    np.testing.assert_array_equal(numbers, seen(tile)[::2])


def test_a_product_is_there_when_it_was_waited_for(run: Run) -> None:
    assert np.isnan(run(PRODUCTS, 1)[0]).all()


def test_a_copy_is_there_when_it_was_waited_for(run: Run) -> None:
    numbers, said = run(PRODUCTS, 4)
    assert np.isnan(numbers).any() or "overwrites what is being multiplied" in said


def test_engines_see_what_they_are_shown(run: Run, tile: Array) -> None:
    assert run(FROM_REGISTERS, 1)[0][0, 0] == tile[0, 0]
    assert run(FROM_REGISTERS, 2)[0][0, 0] == 2


def test_turns(run: Run) -> None:
    numbers, said = run(TURNS, 0)
    assert said == ""
    assert list(numbers[0, :10]) == [0, 1] * 5
    assert list(numbers[0, 20:22]) == [0, 1]


@pytest.mark.parametrize(
    ("kernel", "which", "words"),
    [
        (PRODUCTS, 2, "multiplies with registers that it did not show to the engine"),
        (PRODUCTS, 3, "overwrites what is being multiplied"),
        (FROM_REGISTERS, 3, "changes what is being multiplied"),
        (REGISTERS, 1, "does not get on"),
        (NEVER_FULL, 0, "does not get on"),
        (NO_BARRIER, 0, "arrives or waits at what is no barrier"),
        (LOW, 0, "copies a swizzled box to an address that is no multiple of 1024"),
    ],
)
def test_faults(run: Run, kernel: int, which: int, words: str) -> None:
    assert words in run(kernel, which)[1]


def test_registers_are_handed_over(run: Run) -> None:
    numbers, said = run(REGISTERS, 0)
    assert said == ""
    assert numbers[0, :12].all()
