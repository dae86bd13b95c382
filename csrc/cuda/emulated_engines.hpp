// emulated_engines.hpp - the words of compute capability 9.0 as the emulator understands them: engines that are late.
//
// A box is destroyed when its copy is begun and written at any time until somebody waits in vain for it. A product
// turns C into NaN until it is waited for; its operands are read through their descriptors when it is begun, and must
// be the same when it is waited for. Engines see shared memory as they wrote it themselves, or as it was when a thread
// last showed it to them. Registers of a processor are counted. Who says words in a wrong order is at fault.
#pragma once

#include "fault.hpp"

#define HARKEN_LONE_KERNEL(threads) void

namespace harken {

struct Barrier {
  uint64_t state;
};

struct TensorMap {
  Boxed array;
  int rows;
};

namespace emulator {

constexpr int processors = 3;

void prepare(Barrier& barrier, int count);
void arrive(Barrier& barrier, int bytes);
void wait_for(Barrier& barrier, uint32_t parity);
void copy_box(char* to, const TensorMap& map, const int (&at)[map_axes], Barrier& barrier);
bool meet(int n, int count, bool truth);
void come(int n, int count);
void show_engines();
void registers(int count, bool more);

// Number (i, k) of an operand whose 16 channels are summed over, or of one whose 16 rows are.
uint16_t of_channels(uint64_t descriptor, int i, int k);
uint16_t of_rows(uint64_t descriptor, int i, int k);

void begin_products();
// Where this thread sums up what will be C, `count` numbers, when it is waited for. C is NaN until then.
float* sum_of(float* C, int count, bool add);
// Operands of the product: shared memory, and registers.
void watch(uint64_t descriptor, int size, bool turned);
void watch(const uint32_t (&A)[4]);
void commit_products();
void wait_products(int groups);

}  // namespace emulator

namespace {

HARKEN_WORD void prepare(Barrier& barrier, int count) { emulator::prepare(barrier, count); }
HARKEN_WORD void prepared() {}
HARKEN_WORD void arrive(Barrier& barrier) { emulator::arrive(barrier, 0); }
HARKEN_WORD void arrive_expecting(Barrier& barrier, int bytes) { emulator::arrive(barrier, bytes); }
HARKEN_WORD void wait_for(Barrier& barrier, uint32_t parity) { emulator::wait_for(barrier, parity); }
HARKEN_WORD void copy_box(char* to, const TensorMap& map, const int (&at)[map_axes], Barrier& barrier) {
  emulator::copy_box(to, map, at, barrier);
}

HARKEN_WORD void warp_together() { emulator::exchange(nullptr, 0); }
HARKEN_WORD void meet(int n, int count) { emulator::meet(n, count, false); }
HARKEN_WORD void come(int n, int count) { emulator::come(n, count); }
HARKEN_WORD bool any_of(int n, int count, bool truth) { return emulator::meet(n, count, truth); }

HARKEN_WORD void show_engines() { emulator::show_engines(); }
template <int n>
HARKEN_WORD void take_registers() {
  emulator::registers(n, true);
}
template <int n>
HARKEN_WORD void give_registers() {
  emulator::registers(n, false);
}
HARKEN_WORD int take_number(int* at) { return (*at)++; }

HARKEN_WORD uint32_t shared_address(const char* at) { return uint32_t(at - emulator::here.shared); }

template <class Registers>
HARKEN_WORD void pin(Registers&) {}
template <class... Registers>
HARKEN_WORD void begin_products(Registers&...) {
  emulator::begin_products();
}
HARKEN_WORD void commit_products() { emulator::commit_products(); }
template <int n, class... Registers>
HARKEN_WORD void wait_products(Registers&...) {
  emulator::wait_products(n);
}

// C of this lane: rows of C by columns of B. row(r, k) is number k of row lane / 4 + 8 r of the warp's A.
template <class S, int n8, class Row, class Column>
HARKEN_WORD void sum_up(S, float (&C)[n8][4], bool add, Row row, Column column) {
  float rows[2][16];
  for (int n = 0; n < 32; ++n) rows[n / 16][n % 16] = widen<float, uint32_t>(S{}, row(n / 16, n % 16));
  float* sum = emulator::sum_of(&C[0][0], 4 * n8, add);
  for (int n = 0; n < n8; ++n)
    for (int c = 0; c < 2; ++c)
      for (int k = 0; k < 16; ++k) {
        const float x = widen<float, uint32_t>(S{}, column(8 * n + 2 * (lane() % 4) + c, k));
        for (int r = 0; r < 2; ++r) sum[4 * n + 2 * r + c] += rows[r][k] * x;
      }
}

template <class S, int n8>
HARKEN_WORD void product(S, float (&C)[n8][4], uint64_t A, uint64_t B, bool add) {
  emulator::watch(A, 64, false);
  emulator::watch(B, 8 * n8, false);
  sum_up(
      S{}, C, add, [&](int r, int k) { return emulator::of_channels(A, warp() % 4 * 16 + lane() / 4 + 8 * r, k); },
      [&](int n, int k) { return emulator::of_channels(B, n, k); });
}
template <class S, int n8>
HARKEN_WORD void product(S, float (&C)[n8][4], const uint32_t (&A)[4], uint64_t B) {
  emulator::watch(B, 8 * n8, true);
  emulator::watch(A);
  const char* all = emulator::exchange(A, sizeof A);
  uint32_t rows[2][16];
  for (int n = 0; n < 32; ++n) {  // as mma has it
    const int r = n / 16, k = n % 16;
    rows[r][k] = half_of(all, lane() / 4 * 4 + k % 8 / 2, k % 2 + 2 * r + k / 8 * 4);
  }
  sum_up(
      S{}, C, true, [&](int r, int k) { return rows[r][k]; }, [&](int n, int k) { return emulator::of_rows(B, n, k); });
}

// --- the host's side ---

inline int processors() { return emulator::processors; }

inline void clear(void* at, size_t bytes, void* stream) {
  const auto work = [=] { memset(at, 0, bytes); };
  emulator::launched ? emulator::launched(stream, work) : work();
}

inline TensorMap map_of(const Boxed& array, int rows) {
  bool good = reinterpret_cast<uintptr_t>(array.data) % 16 == 0 && rows >= 1 && rows <= 256;
  for (const int64_t size : array.sizes) good = good && size >= 1 && size <= int64_t(1) << 32;
  for (const int64_t stride : array.strides) good = good && stride % 16 == 0 && stride > 0 && stride < int64_t(1) << 40;
  if (!good) throw Fault{HARKEN_FAILED, "the emulator makes no map of an array for the copy engine"};
  return {array, rows};
}

}  // namespace
}  // namespace harken
