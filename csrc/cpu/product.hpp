// product.hpp - the two products, S = K Q and O += V P, in tiles of registers with queries along the lanes.
//
// One loop serves both: a register row of the left factor is read number by number and broadcast, the right factor lies
// with its queries in lanes. K and V are read in their natural layout; nothing is horizontal.
#pragma once

#include "lanes.hpp"

namespace harken {
namespace {

// sum[r][c] += sum_i a[r * row + i * step] b[i * width + c * apart],  i < n
//
// Three rows share a base pointer, ([b], [b + row], [b + 2 row] in x86 addressing): one base for all rows makes the
// compiler keep an address a row, and spill (84 to 90 % of the peak instead of 96 to 100 %).
template <class T, int R, int C>
HARKEN_INLINE void multiply(const T* a, int64_t row, int64_t step, const T* b, int64_t width, int64_t n,
                            Lanes<T> (&sum)[R][C], int64_t apart = lanes<T>) {
  constexpr int bases = (R + 2) / 3;
  const T* base[bases];
#pragma GCC unroll 8
  for (int i = 0; i < bases; ++i) base[i] = a + 3 * i * row;
#pragma GCC unroll 2
  for (int64_t i = 0; i < n; ++i) {
    Lanes<T> x[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) x[c] = take(b + c * apart);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Lanes<T> y = fill(base[r / 3][r % 3 * row]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] += y * x[c];
    }
    b += width;
#pragma GCC unroll 8
    for (int k = 0; k < bases; ++k) {
      base[k] += step;
      in_register(base[k]);  // 16 rows took 1.5 x as long
    }
  }
}

// Channels of a score that are summed in one chain; the sums of longer ones are taken apart and added. One chain of 512
// erred by 3.5 times as much as NumPy does.
constexpr int64_t chain = 128;

// As multiply, for S = K Q; what the chains before gave waits where S will stand.
template <class T, int R, int C>
HARKEN_INLINE void multiply_in_chains(const T* K, int64_t step, const T* Q, int64_t width, int64_t D,
                                      Lanes<T> (&sum)[R][C], T* S, int64_t S_width, int64_t Q_apart = lanes<T>,
                                      int64_t S_apart = lanes<T>) {
  for (bool first = true;; first = false) {
    multiply<T, R, C>(K, step, 1, Q, width, D < chain ? D : chain, sum, Q_apart);
    if (!first)
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[r][c] += take(S + r * S_width + c * S_apart);
    if (D <= chain) return;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        put(S + r * S_width + c * S_apart, sum[r][c]);
        sum[r][c] = Lanes<T>{};
      }
    K += chain;
    Q += chain * width;
    D -= chain;
  }
}

// S[k] = seed + sum_d K[k][d] Q[d] for R keys, and the running maximum of each column.
template <class T, int R, int C>
__attribute__((noinline)) void score_tile(const T* K, int64_t step, const T* Q, int64_t width, int64_t D, T* S,
                                          const T* seed, T* top) {
  Lanes<T> sum[R][C];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    Lanes<T> start = take(seed + c * lanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][c] = start;
  }
  multiply_in_chains<T, R, C>(K, step, Q, width, D, sum, S, width);
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    Lanes<T> m = take(top + c * lanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      m = max(m, sum[r][c]);
      put(S + r * width + c * lanes<T>, sum[r][c]);
    }
    put(top + c * lanes<T>, m);
  }
}

// O[d] += sum_k V[k][d] P[k] for R channels. A block is summed apart and then added: one long chain would lose the many
// small weights beside a large one, and its error grow with the number of keys (1e-4 where this leaves 4e-6, 4096
// keys).
template <class T, int R, int C>
__attribute__((noinline)) void value_tile(const T* V, int64_t step, const T* P, int64_t width, int64_t keys, T* O) {
  Lanes<T> sum[R][C] = {};
  multiply<T, R, C>(V, 1, step, P, width, keys, sum);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      T* at = O + r * width + c * lanes<T>;
      put(at, take(at) + sum[r][c]);
    }
}

template <int most, class Body>
HARKEN_INLINE void with_count(int64_t n, Body body) {
  if constexpr (most > 1) {
    if (n < most) return with_count<most - 1>(n, body);
  }
  body(Count<most>());
}

// n rows as tiles of nearly one height: 16 = 6 + 5 + 5, not 6 + 6 + 4, because a low tile waits for its
// multiplications.
template <int C, class Body>
HARKEN_INLINE void in_tiles(int64_t n, Body body) {
  constexpr int full = rows_for(C);
  int64_t tiles = (n + full - 1) / full;
  for (int64_t i = 0; i < n; --tiles) {
    int64_t height = (n - i + tiles - 1) / tiles;
    with_count<full>(height, [&](auto R) __attribute__((always_inline)) { body(i, R); });
    i += height;
  }
}

template <class Body>
HARKEN_INLINE void with_columns(int n, Body body) {
  if constexpr (columns == 4) {
    if (n == 4) return body(Count<4>());
    if (n == 3) return body(Count<3>());
  }
  if (n == 2) return body(Count<2>());
  body(Count<1>());
}

// Keys k .. k + n - 1 against `cols` registers of queries.
template <class T>
inline void scores(const T* K, int64_t step, int64_t n, const T* Q, int64_t width, int cols, int64_t D, T* S,
                   const T* seed, T* top) {
  with_columns(cols, [&](auto C) __attribute__((always_inline)) {
    in_tiles<C.value>(n, [&](int64_t i, auto R) __attribute__((always_inline)) {
      score_tile<T, R.value, C.value>(K + i * step, step, Q, width, D, S + i * width, seed, top);
    });
  });
}

template <class T>
inline void values(const T* V, int64_t step, int64_t n, const T* P, int64_t width, int cols, int64_t Dv, T* O) {
  with_columns(cols, [&](auto C) __attribute__((always_inline)) {
    in_tiles<C.value>(Dv, [&](int64_t d, auto R) __attribute__((always_inline)) {
      value_tile<T, R.value, C.value>(V + d, step, P, width, n, O + d * width);
    });
  });
}

// The same sums, in the same order, without ever multiplying a value that a query may not see: 0 times NaN is NaN.
// `seen` lies like P and is -inf where a key is hidden. For tiles whose result is not finite; speed does not matter.
template <class T>
inline void values_selected(const T* V, int64_t step, int64_t n, const T* P, const T* seen, int64_t width, int cols,
                            int64_t Dv, T* O) {
  for (int64_t d = 0; d < Dv; ++d)
    for (int c = 0; c < cols; ++c) {
      int64_t at = c * lanes<T>;
      Lanes<T> sum = {};
      for (int64_t k = 0; k < n; ++k) {
        Lanes<T> v = take(seen + k * width + at) == Lanes<T>{} ? fill(V[k * step + d]) : Lanes<T>{};
        sum += v * take(P + k * width + at);
      }
      put(O + d * width + at, take(O + d * width + at) + sum);
    }
}

}  // namespace
}  // namespace harken
