// emulated.hpp - the words of a kernel as the emulator understands them: a thread is a fiber, a warp meets to exchange.
//
// A word that a whole warp says together (a shuffle, later a matrix product) is one exchange(): every lane leaves what
// it holds, and when all 32 have, each reads what it needs of the others and computes its own part. Words that wait for
// one another across warps are meetings of their own; who waits gives way to the next thread. A warp runs as far as it
// gets without the others, in an order that is drawn anew for every block, and shared memory begins as NaN, so that a
// barrier that is missing shows.
#pragma once

#include <string.h>

#include <functional>

#include "number.hpp"

#define HARKEN_WORD inline
#define HARKEN_KERNEL(threads) void
#define HARKEN_CONSTANT const

namespace harken {
namespace emulator {

constexpr int slot_bytes = 64;  // what a lane can leave at once: an A, a B and a C fragment of a product

struct Place {
  int thread;
  int64_t block, blocks;
  char* shared;
};
extern Place here;  // of the thread that runs

void meet_block();
const char* exchange(const void* mine, int bytes);  // [32][slot_bytes]: what the lanes of this warp left

// body(context) once for every thread of every block. Throws a Fault if threads wait for each other forever, or write
// past their shared memory.
void run(const Grid& grid, void (*body)(const void* context), const void* context);

// Who decides when what is launched on a stream is run: null, at once.
extern void (*launched)(void* stream, std::function<void()> work);

}  // namespace emulator

namespace {

HARKEN_WORD int thread() { return emulator::here.thread; }
HARKEN_WORD int warp() { return thread() / lanes_of_warp; }
HARKEN_WORD int lane() { return thread() % lanes_of_warp; }
HARKEN_WORD int64_t block() { return emulator::here.block; }
HARKEN_WORD int64_t blocks() { return emulator::here.blocks; }
HARKEN_WORD void barrier() { emulator::meet_block(); }
HARKEN_WORD char* shared_memory() { return emulator::here.shared; }

template <class F>
HARKEN_WORD F from_lane(F x, int n) {
  static_assert(sizeof(F) <= emulator::slot_bytes);
  memcpy(&x, emulator::exchange(&x, sizeof(F)) + n * emulator::slot_bytes, sizeof(F));
  return x;
}
template <class F>
HARKEN_WORD F from_neighbour(F x, int n) {
  return from_lane(x, lane() ^ n);
}
HARKEN_WORD uint32_t ballot(bool truth) {
  const char* all = emulator::exchange(&truth, sizeof truth);
  uint32_t bits = 0;
  for (int n = 0; n < lanes_of_warp; ++n) bits |= uint32_t(all[n * emulator::slot_bytes] != 0) << n;
  return bits;
}

template <class Kernel, class Argument>
void launch(Kernel kernel, const Grid& grid, void* stream, const Argument& argument) {
  struct Call {
    Kernel kernel;
    Argument argument;
  };
  const auto work = [call = Call{kernel, argument}, grid] {
    emulator::run(
        grid,
        [](const void* context) {
          const Call& call = *static_cast<const Call*>(context);
          call.kernel(call.argument);
        },
        &call);
  };
  emulator::launched ? emulator::launched(stream, work) : work();
}

}  // namespace
}  // namespace harken
