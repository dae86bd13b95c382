// product.hpp - the two products, S = K Q and O += V P, in tiles of registers with queries along the lanes.
//
// One loop serves both: a register row of the left factor is read number by number and broadcast, the right factor lies
// with its queries in lanes. K and V are read in their natural layout; nothing is horizontal.
#pragma once

#include "lanes.hpp"

namespace harken {
namespace {

// sum[r][c] += sum_i a[r * row + i * step] b[i * width + c * lanes],  i < n
//
// Three rows share a base pointer, ([b], [b + row], [b + 2 row] in x86 addressing): one base for all rows makes the
// compiler keep an address a row, and spill (84 to 90 % of the peak instead of 96 to 100 %).
template <class T, int R, int C>
HARKEN_INLINE void multiply(const T* a, int64_t row, int64_t step, const T* b, int64_t width, int64_t n,
                            Lanes<T> (&sum)[R][C]) {
  constexpr int bases = (R + 2) / 3;
  const T* base[bases];
  for (int i = 0; i < bases; ++i) base[i] = a + 3 * i * row;
#pragma GCC unroll 2
  for (int64_t i = 0; i < n; ++i) {
    Lanes<T> x[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) x[c] = take(b + c * lanes<T>);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      Lanes<T> y = fill(base[r / 3][r % 3 * row]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] += y * x[c];
    }
    b += width;
#pragma GCC unroll 4
    for (int k = 0; k < bases; ++k) base[k] += step;
  }
}

// S[k] = seed + sum_d K[k][d] Q[d] for R keys, and the running maximum of each column.
template <class T, int R, int C>
__attribute__((noinline)) void score_tile(const T* K, int64_t step, const T* Q, int64_t width, int64_t D, T* S, const T* seed,
                                          T* top) {
  Lanes<T> sum[R][C];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    Lanes<T> start = take(seed + c * lanes<T>);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sum[r][c] = start;
  }
  multiply<T, R, C>(K, step, 1, Q, width, D, sum);
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    Lanes<T> m = take(top + c * lanes<T>);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      m = max(m, sum[r][c]);
      put(S + r * width + c * lanes<T>, sum[r][c]);
    }
    put(top + c * lanes<T>, m);
  }
}

// O[d] += sum_k V[k][d] P[k] for R channels.
template <class T, int R, int C>
__attribute__((noinline)) void value_tile(const T* V, int64_t step, const T* P, int64_t width, int64_t keys, T* O) {
  Lanes<T> sum[R][C];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sum[r][c] = take(O + r * width + c * lanes<T>);
  multiply<T, R, C>(V, 1, step, P, width, keys, sum);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) put(O + r * width + c * lanes<T>, sum[r][c]);
}

template <int n>
struct Count {
  static constexpr int value = n;
};

// n rows as tiles of the full height, then of a height that leaves no tile of one or two rows where it can be helped:
// a tile of one row waits for each multiplication.
template <int C, class Body>
HARKEN_INLINE void in_tiles(int64_t n, Body body) {
  constexpr int full = rows_for(C);
  int64_t i = 0;
  for (; n - i >= full && !(full == 6 && (n - i == 7 || n - i == 8)); i += full) body(i, Count<full>());
  if constexpr (full > 8)
    for (; n - i >= 8; i += 8) body(i, Count<8>());
  for (; n - i >= 4; i += 4) body(i, Count<4>());
  if (n - i == 3) return body(i, Count<3>());
  if (n - i == 2) return body(i, Count<2>());
  if (n - i == 1) return body(i, Count<1>());
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
inline void scores(const T* K, int64_t step, int64_t n, const T* Q, int64_t width, int cols, int64_t D, T* S, const T* seed,
                   T* top) {
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

// The same sums, in the same order, without ever multiplying a value that a query may not see: 0 times NaN is NaN. `seen`
// lies like P and is -inf where a key is hidden. For tiles whose result is not finite; speed does not matter.
template <class T>
inline void values_selected(const T* V, int64_t step, int64_t n, const T* P, const T* seen, int64_t width, int cols, int64_t Dv,
                            T* O) {
  for (int64_t d = 0; d < Dv; ++d)
    for (int c = 0; c < cols; ++c) {
      int64_t at = c * lanes<T>;
      Lanes<T> sum = take(O + d * width + at);
      for (int64_t k = 0; k < n; ++k) {
        Lanes<T> v = take(seen + k * width + at) == Lanes<T>{} ? fill(V[k * step + d]) : Lanes<T>{};
        sum += v * take(P + k * width + at);
      }
      put(O + d * width + at, sum);
    }
}

}  // namespace
}  // namespace harken
