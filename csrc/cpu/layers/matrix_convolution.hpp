// matrix_convolution.hpp - y = b + W x over windows of rows on a matrix engine: x and W as three terms of bfloat16.
//
// A tile of x is 16 windows side by side at one tap and 32 channels: rows of the packed stretch, `stride` apart. The
// next tap of the same channels moves it on by `dilation` positions, most of which are in the L1 by then; so the taps
// of a step follow one another. Each output is one sum in one order, wherever its window lies.
//
// What the terms do not hold comes out as NaN (planes.hpp); those outputs are computed again without the engine, as a
// linear map of their window.
#pragma once

#include "linear.hpp"
#include "six_products.hpp"
#include "windows.hpp"

namespace harken {
namespace {

// Where the windows of a stretch belong.
struct Belonging {
  const Stretch& s;
  int64_t apart;

  explicit Belonging(const Stretch& s) : s(s), apart(s.apart()) {}

  // The row of y that window n of all gives, or -1.
  int64_t row_of(int64_t n) const {
    const int64_t b = n / apart, q = n % apart;
    return b < s.convolution.B && q < s.convolution.out ? b * s.convolution.out + q : -1;
  }
};

// Positions of the stretch as rows of tiles of a, [steps][terms][positions][32 channels].
template <class M>
void pack_positions_on(const Stretch& s, int64_t piece) {
  const Convolution& p = s.convolution;
  const int64_t positions = s.positions(s.rows), term = positions * 64, inputs = s.inputs();
  const int64_t period = s.apart() * p.stride,
                end = (piece + 1) * s.piece < positions ? (piece + 1) * s.piece : positions;
  for (int64_t n = piece * s.piece; n < end; ++n) {
    const int64_t at = s.row0 * p.stride + n, b = at / period, l = at % period - p.left;
    char* to = s.x + n * 64;
    if (b >= p.B || l < 0 || l >= p.length(b)) {
      for (int64_t i = 0; i < 3 * s.steps(); ++i, to += term) put_words(to, Bits32{});
      continue;
    }
    const float* from = (const float*)p.x + b * p.x_batch + l * p.x_step + s.group * inputs;
    put_terms(from, inputs, to, term);
  }
}

// 16 outputs as tiles of b, [steps][taps][terms][16 pairs of channels][16 outputs].
template <class M>
void pack_taps_on(const Stretch& s, int64_t tile) {
  const Convolution& p = s.convolution;
  const int64_t inputs = s.inputs(), D = inputs * p.K, left = s.cols - tile * 16;
  const int64_t outputs = left < 1 ? 1 : left < 16 ? left : 16;  // what is not there repeats what is
  const int64_t first = s.col0 + (left < 1 ? s.cols - 1 : tile * 16);
  const float* W = (const float*)p.weight + (s.group * p.channels() + first) * D;
  char* to = s.w + tile * s.w_tile_bytes();
  alignas(64) float turned[32 * Stretch::most_taps][16];  // [32 channels][taps][outputs]
  for (int64_t c = 0; c < inputs; c += 32) {
    const int64_t there = (inputs - c < 32 ? inputs - c : 32) * p.K, all = 32 * p.K;
    for (int64_t i = 0; i < there; i += 16) {  // the last 16 of a row, if it ends here, begin earlier
      const int64_t begin = c * p.K + i + 16 <= D ? i : D - 16 - c * p.K;
      F32 x[16];
      take_transposed(W + c * p.K + begin, D, int(outputs), x);
      for (int64_t j = i - begin; j < 16; ++j) put(turned[begin + j], x[j]);
    }
    for (int64_t i = there; i < all; ++i) put(turned[i], F32{});
    for (int64_t k = 0; k < p.K; ++k, to += 3 * tile_bytes)
      for (int i = 0; i < tile_rows; ++i) {
        F32 low[3], high[3];
        split_or_nan<3>(take(turned[i * p.K + k]), low);
        split_or_nan<3>(take(turned[(i + 16) * p.K + k]), high);
#pragma GCC unroll 3
        for (int n = 0; n < 3; ++n) put_words(to + n * tile_bytes + i * 64, pairs(low[n], high[n]));
      }
  }
}

// y of one window and some outputs, as a linear map of its numbers in the order of the weights.
template <class M>
__attribute__((noinline)) void convolve_window(const Stretch& s, int64_t row, int64_t col, int64_t cols,
                                               float* window) {
  const Convolution& p = s.convolution;
  const int64_t b = row / p.out, l = row % p.out * p.stride - p.left, inputs = s.inputs(), D = inputs * p.K;
  const float* x = (const float*)p.x + b * p.x_batch + s.group * inputs;
  for (int64_t c = 0; c < inputs; ++c)
    for (int64_t k = 0; k < p.K; ++k) {
      const int64_t at = l + k * p.dilation;
      window[c * p.K + k] = at < 0 || at >= p.length(b) ? 0.f : x[at * p.x_step + c];
    }
  const Linear linear = {Activation::identity,
                         false,
                         window,
                         (const float*)p.weight + col * D,
                         p.bias ? (const float*)p.bias + col : nullptr,
                         (float*)p.y + row * p.O + col,
                         1,
                         D,
                         cols};
  multiply_part<float>(linear, 0, 1, 0, cols);
}

template <class M>
void convolve_stretch_on(const Stretch& s, int64_t task, char* scratch) {
  const Convolution& p = s.convolution;
  const Belonging belonging(s);
  const int64_t row0 = task / s.across() * s.high, col = task % s.across() * s.wide;
  const int64_t row1 = s.rows - row0 < s.high ? s.rows : row0 + s.high;
  const int64_t cols = s.cols - col < s.wide ? s.cols - col : s.wide;
  const int64_t output = s.group * p.channels() + s.col0 + col;
  const int64_t term = s.positions(s.rows) * 64, second = s.w_tile_bytes(), products = s.steps() * p.K;
  const float* b = p.bias ? (const float*)p.bias + output : nullptr;
  const char* w = s.w + col / 16 * second;
  alignas(64) float S[32 * 32];
  M::configure();
  for (int64_t i = 0; i < products; i += chunk / 32) {
    const int64_t n = products - i < chunk / 32 ? products - i : chunk / 32;
    for (int64_t row = row0; row < row1; row += 32) {
      const char* x = s.x + row * p.stride * 64;
      int64_t step = i / p.K, k = i % p.K;
      SixProducts<M>::zero();
      for (int64_t j = i; j < i + n; ++j) {
        const Rows32 windows = {x + step * 3 * term + k * p.dilation * 64, p.stride * 64, term, 16 * p.stride * 64};
        SixProducts<M>::add(windows, w + j * 3 * tile_bytes, second);
        if (++k == p.K) k = 0, ++step;
      }
      SixProducts<M>::put(S);
      for (int64_t r = 0; r < 32 && row + r < row1; ++r) {
        const int64_t to = belonging.row_of(s.row0 + row + r);
        if (to < 0) continue;
        float *sum = S + r * 32, *y = (float*)p.y + to * p.O + output;
        auto as_it_is = [](F32 x) { return x; };
        if (i > 0) each(sum, y, sum, cols, as_it_is);
        if (i + n < products) {
          each<float>(sum, nullptr, y, cols, as_it_is);
        } else if (p.lengths && to % p.out >= p.outputs(p.length(to / p.out))) {
          for (int64_t c = 0; c < cols; ++c) y[c] = 0;
        } else if (lost(sum)) {
          convolve_window<M>(s, to, output, cols, (float*)scratch);
        } else {
          each(sum, b, y, cols, as_it_is);
        }
      }
    }
  }
  M::release();
}

template <class M = decltype(engine(0))>
void pack_positions(const Stretch& s, int64_t piece, char*) {
  FlushedSubnormals mode;
  if constexpr (M::exists) pack_positions_on<M>(s, piece);
}
template <class M = decltype(engine(0))>
void pack_taps(const Stretch& s, int64_t tile, char*) {
  FlushedSubnormals mode;
  if constexpr (M::exists) pack_taps_on<M>(s, tile);
}
template <class M = decltype(engine(0))>
void convolve_stretch(const Stretch& s, int64_t task, char* scratch) {
  FlushedSubnormals mode;
  if constexpr (M::exists) convolve_stretch_on<M>(s, task, scratch);
}

}  // namespace
}  // namespace harken
