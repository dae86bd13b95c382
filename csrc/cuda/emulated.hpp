// emulated.hpp - the words of a kernel as the emulator understands them: a thread is a fiber, a warp meets to exchange.
//
// A word that a whole warp says together (a shuffle, later a matrix product) is one exchange(): every lane leaves what
// it holds, and when all 32 have, each reads what it needs of the others and computes its own part. Words that wait for
// one another across warps are meetings of their own; who waits gives way to the next thread. A warp runs as far as it
// gets without the others, in an order that is drawn anew for every block, and shared memory begins as NaN, so that a
// barrier that is missing shows. An asynchronous copy destroys what it will write at once, and writes when it is waited
// for: where a wait is missing, or a barrier before the copy, that shows, too.
#pragma once

#include <string.h>

#include <functional>

#include "number.hpp"

#define HARKEN_WORD inline
#define HARKEN_KERNEL(...) void
#define HARKEN_CONSTANT const

namespace harken {
namespace emulator {

constexpr int slot_bytes = 64;  // what a lane can leave at once: an A, a B and a C fragment of a product

struct Place {
  int thread;
  int64_t block, blocks;
  char* shared;
  int shared_bytes;
};
extern Place here;  // of the thread that runs

void meet_block();
const char* exchange(const void* mine, int bytes);  // [32][slot_bytes]: what the lanes of this warp left

// A thread that waits: it gives way until another got on, or is at fault.
void give_way();
void got_on();
[[noreturn]] void faulty(const char* text);

// What goes on beside the threads of a block (emulated_engines.cpp). step(idle): true, something was done.
struct Engines {
  void (*begin_block)(int threads);
  bool (*step)(bool idle);
};
extern Engines engines;

float read_tf32(const char* at);                       // what a matrix engine reads of a float
float added(float c, const float* a, const float* b);  // c + four products, as it adds them
void check_aligned(const char* at);                    // to 16 bytes
void copy_async(char* to, const char* from, int bytes);
void commit();
void wait(int groups);  // until no more than so many of this thread's groups are under way

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

// What lane n left of 16 bytes, as two 16-bit numbers a word.
HARKEN_WORD uint32_t half_of(const char* all, int lane, int half) {
  uint16_t bits;
  memcpy(&bits, all + lane * emulator::slot_bytes + 2 * half, sizeof bits);
  return bits;
}

// PTX, ldmatrix: lanes 8n .. 8n + 7 name the rows of matrix n; lane l gets numbers 2(l % 4) and 2(l % 4) + 1 of its
// row l / 4.
HARKEN_WORD void load_matrix(uint32_t (&A)[4], const char* at) {
  emulator::check_aligned(at);
  const char* all = emulator::exchange(at, 16);
  for (int n = 0; n < 4; ++n) memcpy(&A[n], all + (8 * n + lane() / 4) * emulator::slot_bytes + lane() % 4 * 4, 4);
}
// ... .trans: numbers l / 4 of rows 2(l % 4) and 2(l % 4) + 1.
HARKEN_WORD void load_turned(uint32_t (&A)[4], const char* at) {
  emulator::check_aligned(at);
  const char* all = emulator::exchange(at, 16);
  const int row = 2 * (lane() % 4), col = lane() / 4;
  for (int n = 0; n < 4; ++n) A[n] = half_of(all, 8 * n + row, col) | half_of(all, 8 * n + row + 1, col) << 16;
}

// PTX, mma.m16n8k16, with g = lane / 4 and t = lane % 4, numbered as they lie in the words:
//   A  number n is row g + 8 if n is 2, 3, 6 or 7, column 2t + n % 2, and 8 more from n = 4 on
//   B  number n is row 2t + n % 2, and 8 more from n = 2 on, column g
//   C  number n is row g, and 8 more from n = 2 on, column 2t + n % 2
template <class S>
HARKEN_WORD void mma(S, float (&C)[4], const uint32_t (&A)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {A[0], A[1], A[2], A[3], b0, b1};
  const char* all = emulator::exchange(mine, sizeof mine);
  float rows[2][16], columns[2][16];
  for (int r = 0; r < 2; ++r) {
    for (int k = 0; k < 16; ++k) {
      const int of_a = lane() / 4 * 4 + k % 8 / 2, number_of_a = k % 2 + 2 * r + k / 8 * 4;
      const int of_b = (2 * (lane() % 4) + r) * 4 + k % 8 / 2, number_of_b = k % 2 + k / 8 * 2;
      rows[r][k] = widen<float, uint32_t>(S{}, half_of(all, of_a, number_of_a));
      columns[r][k] = widen<float, uint32_t>(S{}, half_of(all, of_b, 8 + number_of_b));
    }
  }
  for (int n = 0; n < 4; ++n)
    for (int k = 0; k < 16; ++k) C[n] += rows[n / 2][k] * columns[n % 2][k];
}

// PTX, mma.m16n8k8 of tf32, g and t as above:
//   A  number n is row g, and 8 more if n is odd, column t, and 4 more from n = 2 on
//   B  number n is row t + 4n, column g
//   C  as above
HARKEN_WORD void mma(tf32, float (&C)[4], const uint32_t (&A)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {A[0], A[1], A[2], A[3], b0, b1};
  const char* all = emulator::exchange(mine, sizeof mine);
  float rows[2][8], columns[2][8];
  for (int r = 0; r < 2; ++r) {
    for (int k = 0; k < 8; ++k) {
      const int of_a = lane() / 4 * 4 + k % 4, of_b = (2 * (lane() % 4) + r) * 4 + k % 4;
      rows[r][k] = emulator::read_tf32(all + of_a * emulator::slot_bytes + 4 * (r + k / 4 * 2));
      columns[r][k] = emulator::read_tf32(all + of_b * emulator::slot_bytes + 4 * (4 + k / 4));
    }
  }
  for (int n = 0; n < 4; ++n)
    for (int k = 0; k < 8; k += 4) C[n] = emulator::added(C[n], rows[n / 2] + k, columns[n % 2] + k);
}

template <class S>
HARKEN_WORD uint32_t packed(S, float a, float b) {
  return narrow<float, uint32_t>(S{}, a) | narrow<float, uint32_t>(S{}, b) << 16;
}
HARKEN_WORD uint32_t fresh(uint32_t x) { return x; }

// Off by what PTX allows ex2.approx.ftz, 2^-22 of 2^x, one way or the other by the bits of x.
HARKEN_WORD float quick_exp2(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const float power = exp2(x) * (1 + (bits * 2654435761u >> 31 ? 0x1p-22f : -0x1p-22f));
  return power < 0x1p-126f ? 0.0f : power;
}

HARKEN_WORD void copy_async(char* to, const char* from, int bytes) { emulator::copy_async(to, from, bytes); }
HARKEN_WORD void commit() { emulator::commit(); }
template <int n>
HARKEN_WORD void wait() {
  emulator::wait(n);
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
