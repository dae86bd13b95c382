// linear.hpp - y = f(x Wᵀ + b) with the inputs along the lanes: both operands are read as they lie, nothing is packed.
//
// R rows of x meet four rows of W. Their R x 4 sums are held apart lane by lane over up to 2 KiB of inputs, then added
// across lanes together. The order of these additions is that of one output, so bits depend on nothing beside it.
#pragma once

#include "../../layers/linear.hpp"
#include "pointwise.hpp"

namespace harken {
namespace {

constexpr int sum_rows = columns == 4 ? 4 : 2;  // 4 x 4 sums and 8 operands of 32 registers, 2 x 4 and 5 of 16

// y[r][c] += x[r] . w[c] over n inputs, for the first `rows` and `cols` of the tile; `first`: y is set instead.
template <class T>
HARKEN_INLINE void tile_product(const T* const* x, const T* const* w, int64_t n, T* const* y, int rows, int cols,
                                bool first) {
  using F = Lanes<T>;
  constexpr int R = sum_rows;
  F sum[R * 4] = {};
  auto step = [&](auto load) __attribute__((always_inline)) {
    F right[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) right[c] = load(w[c]);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F left = load(x[r]);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) sum[r * 4 + c] += left * right[c];
    }
  };
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) step([&](const T* at) { return take(at + i); });
  if (i < n) step([&](const T* at) { return take_some(at + i, n - i); });

  constexpr int count = R * 4, groups = (count + lanes<T> - 1) / lanes<T>;
  T out[groups * lanes<T>];
#pragma GCC unroll 8
  for (int g = 0; g < groups; ++g) {
    F part[lanes<T>] = {};
#pragma GCC unroll 16
    for (int j = 0; j < lanes<T>; ++j)
      if (g * lanes<T> + j < count) part[j] = sum[g * lanes<T> + j];
    put(out + g * lanes<T>, sums(part));
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c)
      if (r < rows && c < cols) y[r][c] = first ? out[r * 4 + c] : y[r][c] + out[r * 4 + c];
}

// The outputs col0 .. col1 - 1 of the rows row0 .. row1 - 1.
template <class T>
void multiply_part(const Linear& p, int64_t row0, int64_t row1, int64_t col0, int64_t col1) {
  constexpr int R = sum_rows;
  constexpr int64_t most = 2048 / sizeof(T);
  const T *X = (const T*)p.x, *W = (const T*)p.weight, *b = (const T*)p.bias;
  T* Y = (T*)p.y;

  const int64_t parts = (p.inputs + most - 1) / most;
  const int64_t part = parts ? ((p.inputs + parts - 1) / parts + lanes<T> - 1) / lanes<T> * lanes<T> : 1;
  for (int64_t k = 0; k < p.inputs || k == 0; k += part) {
    const int64_t n = p.inputs - k < part ? p.inputs - k : part;
    for (int64_t row = row0; row < row1; row += R) {
      const int rows = row1 - row < R ? int(row1 - row) : R;
      const T* x[R];
      T* y[R];
      for (int64_t col = col0; col < col1; col += 4) {
        const int cols = col1 - col < 4 ? int(col1 - col) : 4;
        const T* w[4];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {  // a row that is not there repeats the last
          const int64_t at = row + (r < rows ? r : rows - 1);
          x[r] = X + at * p.inputs + k;
          y[r] = Y + at * p.outputs + col;
        }
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) w[c] = W + (col + (c < cols ? c : cols - 1)) * p.inputs + k;
        tile_product<T>(x, w, n, y, rows, cols, k == 0);
      }
      if (k + part >= p.inputs && (b || p.activation != Activation::identity)) {
        for (int r = 0; r < rows; ++r) {
          T* at = Y + (row + r) * p.outputs + col0;
          apply(p.activation, at, b ? b + col0 : b, at, col1 - col0);
        }
      }
    }
  }
}

void multiply(const Linear& p, int64_t task) {
  FlushedSubnormals mode;
  const int64_t row0 = task / p.across() * p.high, col0 = task % p.across() * p.wide;
  const int64_t row1 = p.rows - row0 < p.high ? p.rows : row0 + p.high;
  const int64_t col1 = p.outputs - col0 < p.wide ? p.outputs : col0 + p.wide;
  p.in_double ? multiply_part<double>(p, row0, row1, col0, col1) : multiply_part<float>(p, row0, row1, col0, col1);
}

}  // namespace
}  // namespace harken
