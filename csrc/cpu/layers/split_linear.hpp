// split_linear.hpp - y = f(x Wᵀ + b) on a matrix engine for some hundred rows: W becomes terms as it is read.
//
// x is packed as tiles of b, once; W lies as tiles of a do, so that its numbers need no turn: they are split, 32 inputs
// of 16 outputs at a time, among the products of those before, and again for every 32 rows. 16 numbers take 4 ns, which
// is the time of the other products of 13 rows, or of reading them from memory by two cores; without an eye on what is
// read next 20 % more, with all products after a split 10 % more for 16 rows, 20 % for 32.
#pragma once

#include "linear.hpp"
#include "six_products.hpp"

namespace harken {
namespace {

// 16 rows of x as pack_weight_on packs W.
template <class M>
void pack_beside_on(const Panels& p, int64_t tile) {
  const int64_t K = p.linear.inputs;
  pack_keys<3>(Sheet<float>{(const float*)p.linear.x, K, int(p.rows), nullptr}, int(tile * 16), K,
               p.x + tile * 16 * K * 6);
}

typedef uint16_t Halves __attribute__((vector_size(vector_bytes)));
constexpr uint16_t too_large = 0x5f80;  // 2^64 as bfloat16; what is not finite lies above
HARKEN_INLINE Halves larger(Halves a, Halves b) { return a > b ? a : b; }

// 16 outputs by 32 inputs of W as terms, [terms][16][32]; `cols` of the outputs are there. Terms are cut off, not
// rounded: 4 operations a register instead of 6, as exact, and products that are left out stay below 2^-24, because x
// is rounded. Returns the largest sizes, as bfloat16. beside(0 .. 15) is done on the way, and `soon` asked for.
template <class Beside>
HARKEN_INLINE Halves split_weights(const float* W, const float* soon, int64_t step, int cols, char* to, Beside beside) {
  Halves top = {};
  auto upper = [](F32 x) { return (F32)((Bits32)x & 0xffff0000u); };
#pragma GCC unroll 16
  for (int c = 0; c < 16; ++c, to += 64) {
    beside(c);
    const int64_t row = (c < cols ? c : cols - 1) * step;
    F32 x = take(W + row), y = take(W + row + 16);
    __builtin_prefetch(soon + row);
    __builtin_prefetch(soon + row + 16);
#pragma GCC unroll 3
    for (int t = 0; t < 3; ++t) {
      const F32 a = t < 2 ? upper(x) : x, b = t < 2 ? upper(y) : y;
      const Bits32 pair = ((Bits32)a >> 16) | (Bits32)b;
      put_words(to + t * tile_bytes, pair);
      if (t == 0) top = larger(top, (Halves)pair & 0x7fffu);
      x -= a;
      y -= b;
    }
  }
  return top;
}

// The six products of a step, one at a time, of 16 outputs with 16 rows, or with twice as many.
template <class M>
struct SplitProducts {
  static constexpr Register<2> wh = {};
  static constexpr Register<3> wm = {};
  static constexpr Register<4> wl = {};
  static constexpr Register<5> xh = {};
  static constexpr Register<6> xm = {};
  static constexpr Register<7> xl = {};

  static HARKEN_INLINE void take_weights(const char* w) {
    M::take(wh, w, 64);
    M::take(wm, w + tile_bytes, 64);
    M::take(wl, w + 2 * tile_bytes, 64);
  }
  template <int sum>
  static HARKEN_INLINE void product(int i, const char* x) {
    constexpr Register<sum> s;
    switch (i) {
      case 0: M::take(xl, x + 2 * tile_bytes, 64); return M::multiply(s, wh, xl);
      case 1: M::take(xm, x + tile_bytes, 64); return M::multiply(s, wm, xm);
      case 2: M::take(xh, x, 64); return M::multiply(s, wl, xh);
      case 3: return M::multiply(s, wh, xm);
      case 4: return M::multiply(s, wm, xh);
      case 5: return M::multiply(s, wh, xh);
    }
  }
};

template <class M>
void multiply_split_on(const Panels& p, int64_t task) {
  const Linear& linear = p.linear;
  const int64_t K = linear.inputs, of_16 = 16 * K * 6, col1 = least(linear.outputs, (task + 1) * p.wide);
  const float* bias = (const float*)linear.bias;
  alignas(64) char w[2][3 * tile_bytes];
  alignas(64) float S[2 * 256], part[2 * 256];
  M::configure();
  for (int64_t col = task * p.wide; col < col1; col += 16) {
    const int cols = int(least(16, col1 - col));
    const float* W = (const float*)linear.weight + col * K;
    for (int64_t row = 0; row < p.rows; row += 32) {
      const int64_t second = row + 16 < p.rows ? of_16 : 0;
      const char* x = p.x + row / 16 * of_16;
      Halves top = {};
      for (int64_t k = 0; k < K; k += chunk) {
        const int64_t steps = least(chunk, K - k) / 32;
        M::zero(Register<0>());
        M::zero(Register<1>());
        for (int64_t s = 0; s <= steps; ++s) {
          const int64_t at = k + 32 * s, ahead = at + 64;
          const float* soon = W + (ahead < K ? ahead : col + 32 <= linear.outputs ? 16 * K + ahead - K : 0);
          const char* before = w[(s + 1) % 2];
          auto multiply = [&](int i) __attribute__((always_inline)) {  // what the step before has split
            if (s == 0) return;
            if (i == 0) SplitProducts<M>::take_weights(before);
            if (i < 6) return SplitProducts<M>::template product<0>(i, x);
            if (second && i >= 8 && i < 14) SplitProducts<M>::template product<1>(i - 8, x + second);
          };
          if (s < steps) {
            top = larger(top, split_weights(W + at, soon, K, cols, w[s % 2], multiply));
          } else {
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) multiply(i);
          }
          if (s > 0) x += 3 * tile_bytes;
        }
        M::put(Register<0>(), k == 0 ? S : part, 64);
        M::put(Register<1>(), (k == 0 ? S : part) + 256, 64);
        for (int i = 0; k > 0 && i < 2 * 256; i += 16) put(S + i, take(S + i) + take(part + i));
      }
      const bool held = !any((Words32)(Halves)(top >= too_large) != Words32{});
      for (int64_t r0 = row; r0 < least(row + 32, p.rows); r0 += 16) {
        F32 y[16];
        take_transposed(S + (r0 - row) * 16, 16, 16, y);
        for (int64_t r = r0; r < least(r0 + 16, p.rows); ++r) {
          float* to = (float*)linear.y + r * linear.outputs + col;
          put(part, y[r - r0]);
          if (!held || any(y[r - r0] != y[r - r0])) {
            multiply_part<float>(linear, r, r + 1, col, col + cols);
          } else {
            apply(linear.activation, part, bias ? bias + col : nullptr, to, cols);
          }
        }
      }
    }
  }
  M::release();
}

template <class M = decltype(engine(0))>
void pack_beside(const Panels& p, int64_t tile) {
  FlushedSubnormals mode;
  if constexpr (M::exists) pack_beside_on<M>(p, tile);
}
template <class M = decltype(engine(0))>
void multiply_split(const Panels& p, int64_t task) {
  FlushedSubnormals mode;
  if constexpr (M::exists) multiply_split_on<M>(p, task);
}

}  // namespace
}  // namespace harken
