// peaks.cpp - the limits of this machine: work that is nothing but multiply-adds, tile products, or reading.
//
// peaks.py compiles it with the flags of one instruction set; BYTES is the width of its registers.
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Work is handed out in chunks of about 2 us from a counter, so that all threads end together.
constexpr int steps = 1000;

// The caller is the first of the threads. Waking another costs 20 us, of calls that last 4 ms.
template <class Work>
void on(int threads, Work work) {
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(work, t);
  work(0);
  for (auto& helper : team) helper.join();
}

// 12 chains cover two units of latency 4; with a and b they fit into 16 registers.
template <class T>
void multiply_add(long chunks, int threads) {
  typedef T F __attribute__((vector_size(BYTES)));
  std::atomic<long> next{0};
  on(threads, [&](int) {
    F x[12], a = F{} + T(0.75), b = F{} + T(0.3125);
    for (int i = 0; i < 12; ++i) x[i] = F{} + T(i);
    while (next++ < chunks)
      for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) x[i] = x[i] * a + b;
      }
    for (F& y : x) asm volatile("" ::"x"(y));
  });
}

}  // namespace

extern "C" {

// 24 x steps x lanes operations a chunk.
void multiply_add_float32(long chunks, int threads) { multiply_add<float>(chunks, threads); }
void multiply_add_float64(long chunks, int threads) { multiply_add<double>(chunks, threads); }

// Thread t of n reads the t-th n-th of two arrays, from end to end, so many times.
void stream(const char* one, const char* other, int64_t bytes, long passes, int threads) {
  typedef int64_t I __attribute__((vector_size(BYTES)));
  constexpr int64_t line = 8 * BYTES;
  on(threads, [=](int t) {
    I x[8] = {};
    for (long pass = 0; pass < passes; ++pass)
      for (const char* array : {one, other}) {
        const char* aligned = array + (-uintptr_t(array) & 63);
        const int64_t lines = (bytes - 64) / line, end = lines * (t + 1) / threads;
        for (int64_t i = lines * t / threads; i < end; ++i) {
          const I* p = reinterpret_cast<const I*>(aligned + i * line);
#pragma GCC unroll 8
          for (int j = 0; j < 8; ++j) x[j] |= p[j];
        }
        asm volatile("" ::: "memory");
      }
    for (I& y : x) asm volatile("" ::"x"(y));
  });
}

#ifdef __AMX_BF16__

// Linux gives a process the tiles when it asks: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
bool allow_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// 4 x steps products of (16, 32) by (32, 16) a chunk, 16384 operations each, on tiles that stay in their registers.
void tile_products(long chunks, int threads) {
  std::atomic<long> next{0};
  on(threads, [&](int) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // bytes
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    alignas(64) uint16_t numbers[512];
    for (uint16_t& x : numbers) x = 0x3dcd;  // 0.1
    _tile_loadconfig(&shape);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, numbers, 64);
    _tile_loadd(5, numbers, 64);
    _tile_loadd(6, numbers, 64);
    _tile_loadd(7, numbers, 64);
    while (next++ < chunks)
      for (int step = 0; step < steps; ++step) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    _tile_release();
  });
}

#endif
}
