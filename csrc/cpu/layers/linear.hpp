// linear.hpp - y = f(x Wᵀ + b) with the inputs along the lanes: both operands are read as they lie, nothing is packed.
//
// R rows of x meet four rows of W. Their R x 4 sums are held apart lane by lane over up to 2 KiB of inputs, then added
// across lanes together. The order of these additions is that of one output, so bits depend on nothing beside it.
#pragma once

#include "../../layers/linear.hpp"
#include "pointwise.hpp"

namespace harken {
namespace {

// 5 x 4 sums and 5 operands of 32 registers, 2 x 4 and 5 of 16. The addresses of 6 rows find no room in 16 registers.
constexpr int sum_rows = columns == 4 ? 5 : 2;
// A tile of fewer rows sums each output in the same order.
constexpr int most_rows(int rows) { return rows < sum_rows ? rows : sum_rows; }

// y[r][c] += x[r] . w[c] over n inputs, for R rows and the first `cols` of the tile; `first`: y is set instead. As many
// numbers from `coming` on are asked for into the L2: one line a step, without a loop, which cost 4 to 10 %.
template <class T, int R>
HARKEN_INLINE void tile_product(const T* const* x, const T* const* w, int64_t n, T* const* y, int cols, bool first,
                                const T* coming) {
  using F = Lanes<T>;
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
  for (; i + lanes<T> <= n; i += lanes<T>) {
    __builtin_prefetch(coming + i, 0, 2);
    step([&](const T* at) { return take(at + i); });
  }
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
  if (cols == 4) {
    typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(1), may_alias));
    for (int r = 0; r < R; ++r) {
      const Four sums_of_row = *(const Four*)(out + r * 4);
      *(Four*)y[r] = first ? sums_of_row : *(const Four*)y[r] + sums_of_row;
    }
  } else {
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < cols; ++c) y[r][c] = first ? out[r * 4 + c] : y[r][c] + out[r * 4 + c];
  }
}

// The outputs col0 .. col1 - 1 of the rows row0 .. row1 - 1, 16 outputs by up to 2 KiB of inputs at a time: this part
// of W, 32 KiB, is read once into the L1, and the next meanwhile into the L2, a row for each tile, in their order. 13
// rows take 30 % less so, and 25 % less where x and W begin at a multiple of 64 bytes. From beyond the L2, one row
// takes the time of reading W, 26 GB/s and core, 13 rows 1.6 times that; the products alone would be 1.2.
template <class T>
void multiply_part(const Linear& p, int64_t row0, int64_t row1, int64_t col0, int64_t col1) {
  constexpr int R = sum_rows;
  constexpr int64_t most = 2048 / sizeof(T), wide = 16;
  const T *X = (const T*)p.x, *W = (const T*)p.weight, *b = (const T*)p.bias;
  T* Y = (T*)p.y;

  const int64_t parts = (p.inputs + most - 1) / most;
  const int64_t part = parts ? ((p.inputs + parts - 1) / parts + lanes<T> - 1) / lanes<T> * lanes<T> : 1;
  const int64_t tiles = (row1 - row0 + R - 1) / R;
  for (int64_t begin = col0; begin < col1; begin += wide) {
    const int64_t end = col1 - begin < wide ? col1 : begin + wide;
    for (int64_t k = 0; k < p.inputs || k == 0; k += part) {
      const int64_t n = p.inputs - k < part ? p.inputs - k : part;
      const bool last = k + part >= p.inputs;
      const int64_t next_k = last ? 0 : k + part, next_begin = last ? begin + wide : begin;
      for (int64_t row = row0, tile = 0; row < row1; ++tile) {
        const int rows = int((row1 - row + tiles - tile - 1) / (tiles - tile));
        const T* x[R];
        T* y[R];
        for (int64_t col = begin; col < end; col += 4) {
          const int cols = end - col < 4 ? int(end - col) : 4;
          const T* w[4];
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            x[r] = X + (row + r) * p.inputs + k;
            y[r] = Y + (row + r) * p.outputs + col;
          }
#pragma GCC unroll 4
          for (int c = 0; c < 4; ++c)  // an output that is not there repeats the last
            w[c] = W + (col + (c < cols ? c : cols - 1)) * p.inputs + k;
          const int64_t ahead = next_begin + (tile < 4 ? tile : 3) * 4 + (col - begin) / 4, end_of_W = p.outputs - 1;
          const T* coming = W + (ahead < end_of_W ? ahead : end_of_W) * p.inputs + next_k;
          switch (rows) {
            case 1: tile_product<T, 1>(x, w, n, y, cols, k == 0, coming); break;
            case 2: tile_product<T, 2>(x, w, n, y, cols, k == 0, coming); break;
            case 3: tile_product<T, most_rows(3)>(x, w, n, y, cols, k == 0, coming); break;
            case 4: tile_product<T, most_rows(4)>(x, w, n, y, cols, k == 0, coming); break;
            case 5: tile_product<T, most_rows(5)>(x, w, n, y, cols, k == 0, coming); break;
          }
        }
        if (last && (b || p.activation != Activation::identity)) {
          for (int r = 0; r < rows; ++r) {
            T* at = Y + (row + r) * p.outputs + begin;
            apply(p.activation, at, b ? b + begin : b, at, end - begin);
          }
        }
        row += rows;
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
