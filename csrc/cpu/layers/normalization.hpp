// normalization.hpp - layer and RMS normalization: three passes, or two, over a row that stays in the L1 cache.
//
//   s = x + residual,                m = mean s
//   e = mean (s - m),                v = mean (s - m)^2 - e^2        m is rounded; e is what it lacks
//   y = ((s - m) - e) / sqrt(v + eps) w + b                        without the mean, m = e = 0
//
// s - m is exact where the mean is large, so that an offset of 1e4 costs no more digits than it has taken from x.
#pragma once

#include "../../layers/normalization.hpp"
#include "pointwise.hpp"

namespace harken {
namespace {

template <class F>
HARKEN_INLINE double across(F x) {
  Number<F> parts[lanes<Number<F>>];
  put(parts, x);
#pragma GCC unroll 5
  for (int n = lanes<Number<F>> / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) parts[i] += parts[i + n];
  return parts[0];
}

// Sums of term(at + i, a) over a row, for as many terms as it adds to a[]: four registers of each, which go into the
// total every 256 registers, so that a long row errs no more than a pairwise sum. Past the end of a row terms are 0.
template <class T, int count, class Term>
HARKEN_INLINE void add_up(int64_t C, double* result, Term term) {
  using F = Lanes<T>;
  constexpr int64_t together = 4 * lanes<T>, chunk = 64 * together;
  F total[count] = {};
  int64_t i = 0;
  while (i + lanes<T> <= C) {
    F part[4][count] = {};
    const int64_t end = C - i < chunk ? C : i + chunk;
    for (; i + together <= end; i += together) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) term(i + u * lanes<T>, lanes<T>, part[u]);
    }
    for (; i + lanes<T> <= end; i += lanes<T>) term(i, lanes<T>, part[0]);
#pragma GCC unroll 2
    for (int j = 0; j < count; ++j) total[j] += (part[0][j] + part[1][j]) + (part[2][j] + part[3][j]);
  }
  if (i < C) {
    F part[count] = {};
    term(i, C - i, part);
#pragma GCC unroll 2
    for (int j = 0; j < count; ++j) {
      F last = {};
      put_some((T*)&last, part[j], C - i);
      total[j] += last;
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < count; ++j) result[j] = across(total[j]);
}

template <class T>
void normalize_row(const Normalization& p, int64_t row) {
  using F = Lanes<T>;
  const int64_t C = p.C, from = row * C;
  const T *x = (const T*)p.x + from, *residual = p.residual ? (const T*)p.residual + from : nullptr;
  const T *w = (const T*)p.weight, *b = (const T*)p.bias;
  T *y = (T*)p.y + from, *sum = p.sum ? (T*)p.sum + from : residual ? y : nullptr;

  T m = 0, e = 0;
  double sums[2] = {};
  const T* s = sum ? sum : x;
  if (sum) {
    add_up<T, 1>(C, sums, [=](int64_t i, int64_t n, F* a) __attribute__((always_inline)) {
      F v = take_some(x + i, n);
      if (residual) v += take_some(residual + i, n);
      put_some(sum + i, v, n);
      a[0] += v;
    });
  } else if (p.centered) {
    add_up<T, 1>(C, sums,
                 [=](int64_t i, int64_t n, F* a) __attribute__((always_inline)) { a[0] += take_some(x + i, n); });
  }
  if (p.centered) {
    m = T(sums[0] / C);
    add_up<T, 2>(C, sums, [=](int64_t i, int64_t n, F* a) __attribute__((always_inline)) {
      const F d = take_some(s + i, n) - m;
      a[0] += d;
      a[1] += d * d;
    });
    e = T(sums[0] / C);
  } else {
    add_up<T, 1>(C, sums + 1, [=](int64_t i, int64_t n, F* a) __attribute__((always_inline)) {
      const F d = take_some(s + i, n);
      a[0] += d * d;
    });
  }
  const double square = sums[1] / C - double(e) * e;
  const T r = T(1 / __builtin_sqrt((square < 0 ? 0 : square) + p.eps));

  auto scale = [=](int64_t i, int64_t n) __attribute__((always_inline)) {
    F v = ((take_some(s + i, n) - m) - e) * r;
    if (w) v *= take_some(w + i, n);
    if (b) v += take_some(b + i, n);
    put_some(y + i, v, n);
  };
  int64_t i = 0;
  for (; i + lanes<T> <= C; i += lanes<T>) scale(i, lanes<T>);
  if (i < C) scale(i, C - i);
}

void normalize(const Normalization& p, int64_t piece) {
  FlushedSubnormals mode;
  const int64_t first = piece * p.rows_a_piece(), left = p.rows - first;
  const int64_t end = first + (left < p.rows_a_piece() ? left : p.rows_a_piece());
  for (int64_t row = first; row < end; ++row)
    p.in_double ? normalize_row<double>(p, row) : normalize_row<float>(p, row);
}

}  // namespace
}  // namespace harken
