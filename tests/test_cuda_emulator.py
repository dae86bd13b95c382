"""The emulator does what a card does with the words of a kernel, and says what a card would hang or corrupt on."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import emulated
import pytest

pytestmark = emulated.needed

KERNELS = """
#include <cstdio>
#include "fault.hpp"
#include "words.hpp"
using namespace harken;
namespace {
struct To { float* at; };

// Each thread adds its neighbour's number to what the warp before left.
HARKEN_KERNEL(64) right(HARKEN_CONSTANT To to) {
  float* shared = (float*)shared_memory();
  shared[thread()] = float(thread());
  barrier();
  const float other = shared[(thread() + 32) % 64];
  to.at[block() * 64 + thread()] = other + from_neighbour(float(lane()), 1) + over_lanes(1.0f, Sum{}) +
                                   from_lane(float(lane()), 5) + float(ballot(lane() < 3));
}
HARKEN_KERNEL(64) no_barrier(HARKEN_CONSTANT To to) {
  float* shared = (float*)shared_memory();
  shared[thread()] = float(thread());
  to.at[block() * 64 + thread()] = shared[(thread() + 32) % 64];
}
HARKEN_KERNEL(64) half_a_barrier(HARKEN_CONSTANT To) {
  if (warp() == 1) barrier();
}
HARKEN_KERNEL(64) half_an_exchange(HARKEN_CONSTANT To to) {
  if (lane() < 16) to.at[0] = from_neighbour(1.0f, 1);
}
// A row of the shared memory in two halves, each copied, the second after the first has been read.
HARKEN_KERNEL(64) copies(HARKEN_CONSTANT To to) {
  char* shared = shared_memory();
  if (thread() < 8) {
    copy_async(shared + 16 * thread(), (char*)(to.at + 192 + 4 * thread()), 16);
    commit();
    copy_async(shared + 128 + 16 * thread(), (char*)(to.at + 192 + 4 * thread()), 4);
    commit();
    wait<1>();
  }
  barrier();
  to.at[block() * 64 + lane()] = ((float*)shared)[lane()];
  to.at[block() * 64 + 32 + lane()] = ((float*)shared)[32 + lane()];
  if (block() == 0) return;
  if (thread() < 8) wait<0>();
  barrier();
  to.at[block() * 64 + 32 + lane()] = ((float*)shared)[32 + lane()];
}
HARKEN_KERNEL(64) askew(HARKEN_CONSTANT To to) { copy_async(shared_memory() + 8, (char*)to.at, 16); }
HARKEN_KERNEL(64) too_far(HARKEN_CONSTANT To) { ((float*)shared_memory())[64 + thread()] = 1; }
}  // namespace

extern "C" __attribute__((visibility("default"))) int run(int which, float* at, char* text) {
  void (*const kernels[])(To) = {right, no_barrier, half_a_barrier, half_an_exchange, too_far, copies, askew};
  try {
    launch(kernels[which], Grid{3, 64, 256}, nullptr, To{at});
  } catch (const Fault& fault) {
    snprintf(text, 400, "%s", fault.text.c_str());
    return 1;
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[list[float], str]]:
    """What kernel n writes, and what is said of it."""
    folder: Path = tmp_path_factory.mktemp("emulator")
    source, target = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(KERNELS)
    command = ["g++", *emulated.FLAGS, "-I", emulated.CUDA, source, emulated.CUDA / "emulator.cpp", "-o", target]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(target), use_errno=False)

    def call(which: int) -> tuple[list[float], str]:
        numbers, text = (ctypes.c_float * 224)(*range(224)), ctypes.create_string_buffer(400)
        function.run(which, numbers, text)
        return list(numbers), text.value.decode()

    return call


def test_words(run: Callable[[int], tuple[list[float], str]]) -> None:
    numbers, said = run(0)
    assert said == ""
    block = [(thread + 32) % 64 + (thread % 32 ^ 1) + 32 + 5 + 7 for thread in range(64)]
    assert numbers[:192] == block * 3


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (2, "block 0 does not get on: 32 threads wait at a barrier"),
        (3, "16 in an exchange of warp 1"),
        (4, "block 0 writes past its shared memory"),
        (6, "block 0 copies or loads from an address that is no multiple of 16"),
    ],
)
def test_faults(run: Callable[[int], tuple[list[float], str]], which: int, words: str) -> None:
    assert words in run(which)[1]


def test_a_missing_barrier_shows(run: Callable[[int], tuple[list[float], str]]) -> None:
    numbers, _ = run(1)
    assert any(number != number for number in numbers)


def test_a_copy_is_there_when_it_was_waited_for(run: Callable[[int], tuple[list[float], str]]) -> None:
    numbers, said = run(5)
    assert said == ""
    assert numbers[:32] == numbers[192:]
    assert all(number != number for number in numbers[32:64])  # not waited for
    assert numbers[96:128] == [number if n % 4 == 0 else 0 for n, number in enumerate(numbers[192:])]
