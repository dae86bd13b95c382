// matrix_linear.hpp - y = f(x Wᵀ + b) on a matrix engine: both operands as three terms of bfloat16 each, six products.
//
// For many rows: some hundred are multiplied as split_linear.hpp does. Packing takes 6 operations a number and is done
// once. The products take 1.3 times as long as from the L1, where the panels do not fit. A float product by OpenBLAS
// takes 1.4 to 2.3 times as long as all of it (160 and 640 rows, one thread).
// What the terms do not hold comes out as NaN (planes.hpp), and a row with a NaN is computed again without the engine.
#pragma once

#include "linear.hpp"
#include "six_products.hpp"

namespace harken {
namespace {

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

// S[32][32] = 32 rows of x with 32 of W over n inputs; `second` is the bytes to the second tile of either.
template <class M>
HARKEN_INLINE void four_tiles(const char* x, const char* w, int64_t second, int64_t n, float* S) {
  SixProducts<M>::zero();
  for (int64_t k = 0; k < n; k += 32, x += 3 * tile_bytes, w += 3 * tile_bytes)
    SixProducts<M>::add({x, 64, tile_bytes, second}, w, second);
  SixProducts<M>::put(S);
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
        if (lost(s)) {
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
