// brief_product.hpp - the two products where all keys of a query are at hand, P = 2^(K Q) and O = P V / l.
//
// P is made in the registers that hold the scores, with queries along the lanes. The second product then reads its
// queries number by number and has channels along the lanes: V and O as they lie, nothing transposed, and not one query
// too many.
#pragma once

#include "product.hpp"

namespace harken {
namespace {

// A register that is a cache line lies in a panel of its own, [column][row][lanes]: a product that reads one column
// runs through memory in order. 1 % over [row][columns][lanes], which beyond 192 rows exceeds the sets of the L1 cache.
constexpr bool panels_apart = vector_bytes == 64;

// A matrix with queries in lanes: row k of column c lies at `at + k * width + c * apart`.
template <class T>
struct Panels {
  T* at;
  int64_t width, apart;

  T* operator()(int64_t row, int64_t column) const { return at + row * width + column * apart; }
};

template <class T>
inline Panels<T> panels(T* at, int64_t rows, int columns_used) {
  if constexpr (panels_apart) return {at, lanes<T>, rows * lanes<T>};
  return {at, columns_used * lanes<T>, lanes<T>};
}

// The interval of keys that each lane sees, counted like `key`, the first of a tile; first == nullptr: all see all.
template <class T>
struct Bounds {
  const T *first, *end;  // [width]
};

// P[k] = 2^(K[k] Q) for R keys, l += P; l == nullptr: the scores themselves.
template <class T, int R, int C>
__attribute__((noinline)) void weight_tile(const T* K, int64_t step, const Panels<T>& Q, int64_t D, const Panels<T>& P,
                                           T* l, const Bounds<T>& bounds, int64_t key) {
  const int64_t width = P.width, apart = P.apart;
  Lanes<T> s[R][C] = {};
  multiply_in_chains<T, R, C>(K, step, Q.at, Q.width, D, s, P.at, width, Q.apart, apart);
  if (bounds.first) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Lanes<T> j = fill(T(key)), first = take(bounds.first + c * lanes<T>), end = take(bounds.end + c * lanes<T>);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) s[r][c] = hidden_outside(s[r][c], j + T(r), first, end);
    }
  }
  T* to = P.at;
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c, to += apart) {
    if (!l) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) put(to + r * width, s[r][c]);
      continue;
    }
    Lanes<T> sum = take(l + c * lanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Lanes<T> x = exp2_of_any(s[r][c]);
      put(to + r * width, x);
      sum += x;
    }
    put(l + c * lanes<T>, sum);
  }
}

// O[r] = factor[r] sum_k P[k][r] V[k] for R queries and C registers of channels. False: something is not finite.
template <class T, int R, int C>
__attribute__((noinline)) bool output_tile(const T* P, int64_t width, const T* V, int64_t step, int64_t keys,
                                           const T* factor, T* O, int64_t O_step) {
  Lanes<T> sum[R][C] = {}, zero[C] = {};
  multiply<T, R, C>(P, 1, width, V, step, keys, sum);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    Lanes<T> by = fill(factor[r]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Lanes<T> o = sum[r][c] * by;
      put(O + r * O_step + c * lanes<T>, o);
      zero[c] += o * T(0);
    }
  }
#pragma GCC unroll 4
  for (int c = 1; c < C; ++c) zero[0] += zero[c];
  return !any(zero[0] != zero[0]);
}

// n keys against `cols` columns.
template <class T, class Between>
inline void weights(const T* K, int64_t step, int64_t n, const Panels<T>& Q, int cols, int64_t D, const Panels<T>& P,
                    T* l, const Bounds<T>& bounds, int64_t key, Between between) {
  with_columns(cols, [&](auto C) __attribute__((always_inline)) {
    in_tiles<C.value>(n, [&](int64_t i, auto R) __attribute__((always_inline)) {
      between();
      weight_tile<T, R.value, C.value>(K + i * step, step, Q, D, {P(i, 0), P.width, P.apart}, l, bounds, key + i);
    });
  });
}

// n queries against `channels` registers of channels, in slices of nearly one width: 5 = 3 + 2. Calls tile(r, R, d, C)
// for R queries from r and C registers from channel d.
template <class T, class Tile>
inline void in_slices(int64_t n, int64_t channels, int64_t together, Tile tile) {
  int64_t slices = (channels + columns - 1) / columns;
  for (int64_t x = 0; x < channels; --slices) {
    int64_t wide = (channels - x + slices - 1) / slices;
    with_columns(int(wide), [&](auto C) __attribute__((always_inline)) {
      for (int64_t r = 0; r < n; r += together)
        in_tiles<C.value>(n - r < together ? n - r : together,
                          [&](int64_t i, auto R) __attribute__((always_inline)) { tile(r + i, R, x * lanes<T>, C); });
    });
    x += wide;
  }
}

}  // namespace
}  // namespace harken
