// matrix_linear.hpp - y = f(x Wᵀ + b) on a matrix engine: both operands as three terms of bfloat16 each, six products.
//
// Packing takes 6 operations a number and is done once; then two tiles of x meet two of W in four sums, because a sum
// is ready for its next product only after three others. Each step of 32 inputs takes 14 tile loads for 24 products,
// and 1.3 times as long as from the L1, where they do not fit. A float product by OpenBLAS takes 1.4 to 2.3 times as
// long as all of it (160 and 640 rows, one thread).
// What the terms do not hold comes out as NaN (planes.hpp), and a row with a NaN is computed again without the engine.
#pragma once

#include "../planes.hpp"
#include "linear.hpp"

namespace harken {
namespace {

// Inputs that are summed on the engine before they join a sum in registers: 1.5 to 3 times less error than all 1536 in
// one sum, half that of OpenBLAS, for 2 to 6 % of time; 128 would take 15 to 20 %.
constexpr int64_t chunk = 384;

// 16 rows of x, [steps][terms][16][32].
template <class M>
void pack_rows_on(const Panels& p, int64_t tile) {
  const int64_t K = p.linear.inputs;
  char* to = p.x + tile * 16 * K * 6;
  for (int r = 0; r < 16; ++r) {  // a row that is not there repeats the last
    const int64_t row = tile * 16 + r < p.rows ? tile * 16 + r : p.rows - 1;
    pack_row<3>((const float*)p.linear.x + (p.row0 + row) * K, 1.f, r, K, to);
  }
}

// 16 rows of W, [steps][terms][16 pairs of inputs][16 outputs].
template <class M>
void pack_weight_on(const Panels& p, int64_t tile) {
  const int64_t K = p.linear.inputs;
  const Sheet<float> W = {(const float*)p.linear.weight + p.col0 * K, K, int(p.cols), nullptr};
  pack_keys<3>(W, int(tile * 16), K, p.w + tile * 16 * K * 6);
}

// S[32][32] = 32 rows of x with 32 of W over n inputs; `other` is the bytes to the second tile of either.
template <class M>
HARKEN_INLINE void four_tiles(const char* x, const char* w, int64_t other, int64_t n, float* S) {
  constexpr Register<0> s00;
  constexpr Register<1> s01;
  constexpr Register<2> s10;
  constexpr Register<3> s11;
  constexpr Register<4> x0;
  constexpr Register<5> x1;
  constexpr Register<6> w0;
  constexpr Register<7> w1;
  M::zero(s00);
  M::zero(s01);
  M::zero(s10);
  M::zero(s11);
  for (int64_t k = 0; k < n; k += 32, x += 3 * tile_bytes, w += 3 * tile_bytes) {
    auto left = [&](int term) __attribute__((always_inline)) {
      M::take_past(x0, x + term * tile_bytes, 64);
      M::take_past(x1, x + other + term * tile_bytes, 64);
    };
    auto right = [&](int term) __attribute__((always_inline)) {
      M::take(w0, w + term * tile_bytes, 64);
      M::take(w1, w + other + term * tile_bytes, 64);
    };
    auto multiply = [&]() __attribute__((always_inline)) {
      M::multiply(s00, x0, w0);
      M::multiply(s01, x0, w1);
      M::multiply(s10, x1, w0);
      M::multiply(s11, x1, w1);
    };
    left(0), right(2), multiply();  // h l
    right(1), multiply();           // h m
    left(1), multiply();            // m m
    right(0), multiply();           // m h
    left(2), multiply();            // l h
    left(0), multiply();            // h h
  }
  M::put(s00, S, 128);
  M::put(s01, S + 16, 128);
  M::put(s10, S + 16 * 32, 128);
  M::put(s11, S + 16 * 32 + 16, 128);
}

template <class M>
void multiply_panels_on(const Panels& p, int64_t task) {
  const Linear& linear = p.linear;
  const int64_t row0 = task / p.across() * p.high, col = task % p.across() * p.wide, K = linear.inputs;
  const int64_t row1 = p.rows - row0 < p.high ? p.rows : row0 + p.high;
  const int64_t cols = p.cols - col < p.wide ? p.cols - col : p.wide;
  const int64_t to_col = p.col0 + col;
  const float* b = linear.bias ? (const float*)linear.bias + to_col : nullptr;
  float* Y = (float*)linear.y + to_col;
  alignas(64) float S[32 * 32];
  M::configure();
  for (int64_t k = 0; k < K; k += chunk) {
    const int64_t n = K - k < chunk ? K - k : chunk;
    for (int64_t row = row0; row < row1; row += 32) {
      four_tiles<M>(p.x + (row * K + k * 16) * 6, p.w + (col * K + k * 16) * 6, 16 * K * 6, n, S);
      for (int64_t r = 0; r < 32 && row + r < row1; ++r) {
        float *s = S + r * 32, *y = Y + (p.row0 + row + r) * linear.outputs;
        if (k > 0) each(s, y, s, cols, [](F32 x) { return x; });
        if (k + n < K) {
          each<float>(s, nullptr, y, cols, [](F32 x) { return x; });
          continue;
        }
        Words32 lost = {};
        for (int64_t c = 0; c < 32; c += lanes<float>) lost |= take(s + c) != take(s + c);
        if (any(lost)) {
          multiply_part<float>(linear, p.row0 + row + r, p.row0 + row + r + 1, to_col, to_col + cols);
        } else {
          apply(linear.activation, s, b, y, cols);
        }
      }
    }
  }
  M::release();
}

template <class M = decltype(engine(0))>
void pack_rows(const Panels& p, int64_t tile) {
  FlushedSubnormals mode;
  if constexpr (M::exists) pack_rows_on<M>(p, tile);
}
template <class M = decltype(engine(0))>
void pack_weight(const Panels& p, int64_t tile) {
  FlushedSubnormals mode;
  if constexpr (M::exists) pack_weight_on<M>(p, tile);
}
template <class M = decltype(engine(0))>
void multiply_panels(const Panels& p, int64_t task) {
  FlushedSubnormals mode;
  if constexpr (M::exists) multiply_panels_on<M>(p, task);
}

}  // namespace
}  // namespace harken
