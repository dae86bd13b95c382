// row_product.hpp - the two products for few queries, S = K q and O += V p, with channels along the lanes.
//
// The sums of R rows with lanes / R keys are held apart lane by lane and added across lanes together, so that one
// register ends as the scores [R][lanes / R] and no addition across lanes stands alone.
#pragma once

#include "workspace.hpp"

namespace harken {
namespace {

constexpr int chunk = 64;                         // keys; 128 and 256 were equal or slower
constexpr int sums_held = columns == 4 ? 16 : 8;  // registers for O in values_of_rows

template <class T, int R>
constexpr int keys_in = lanes<T> / R;  // of a register

// Prefetch of the other stream while this one is read, one row a key: 81 -> 93 % of a streaming read beyond the L2
// cache, but a loss inside of it, so only where the keys and values of a call exceed 4 MiB.
struct Ahead {
  const char* at;  // null: off
  int64_t step, bytes;

  HARKEN_INLINE void row() {
    if (!at) return;
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b, 0, 2);
    at += step;
  }
};

// S[k][r] = q_r . k for n keys from K; a register of scores for every lanes / R keys. Keys past n repeat the last one.
template <class T, class E, int R>
__attribute__((noinline)) void scores_of_rows(const E* K, int64_t step, int n, const T* Q, int64_t D, T* S,
                                              Ahead ahead) {
  constexpr int keys = keys_in<T, R>, bases = (keys + 2) / 3;
  for (int k = 0; k < n; k += keys, S += lanes<T>) {
    const E* base[bases];
    int64_t stride = step;
    const E* odd[keys];
    bool last = k + keys > n;
    for (int b = 0; b < bases; ++b) base[b] = K + (k + 3 * b) * step;
    if (last)
      for (int i = 0; i < keys; ++i) odd[i] = K + least(k + i, n - 1) * step;
    for (int i = 0; i < keys && k + i < n; ++i) ahead.row();

    Lanes<T> sum[R * keys] = {};
    auto add = [&](auto key) __attribute__((always_inline)) {
      for (int64_t d = 0; d < D; d += lanes<T>) {
        Lanes<T> q[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) q[r] = take(Q + r * D + d);
#pragma GCC unroll 16
        for (int i = 0; i < keys; ++i) {
          Lanes<T> x = take(key(i) + d);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) sum[r * keys + i] += q[r] * x;
        }
      }
    };
    if (last) {
      add([&](int i) __attribute__((always_inline)) { return odd[i]; });
    } else {
      add([&](int i) __attribute__((always_inline)) { return base[i / 3] + i % 3 * stride; });
    }
    put(S, sums(sum));
  }
}

// O[r] += sum_k P[k][r] V[k] for X registers of channels, summed apart first as in value_tile.
template <class T, class E, int R, int X>
__attribute__((noinline)) void values_of_rows(const E* V, int64_t step, int n, const T* P, T* O, int64_t O_step,
                                              Ahead ahead) {
  constexpr int keys = keys_in<T, R>;
  Lanes<T> sum[R][X] = {};
  for (int k = 0; k < n; k += keys, P += lanes<T>)
    for (int i = 0; i < keys && k + i < n; ++i, V += step) {
      ahead.row();
      Lanes<T> weight[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) weight[r] = fill(P[r * keys + i]);
#pragma GCC unroll 16
      for (int x = 0; x < X; ++x) {
        Lanes<T> v = take(V + x * lanes<T>);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r][x] += weight[r] * v;
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x) {
      T* at = O + r * O_step + x * lanes<T>;
      put(at, take(at) + sum[r][x]);
    }
}

template <class T, class E, int R, int X>
inline void values_in_slices(const E* V, int64_t step, int n, const T* P, T* O, int64_t Dv, int64_t d, Ahead ahead) {
  for (; d + X * lanes<T> <= Dv; d += X * lanes<T>) {
    values_of_rows<T, E, R, X>(V + d, step, n, P, O + d, Dv, ahead);
    ahead.at = nullptr;
  }
  if constexpr (X > 1) {
    if (d < Dv) values_in_slices<T, E, R, X / 2>(V, step, n, P, O, Dv, d, ahead);
  }
}

// As values_of_rows, but a value that a row may not see is never multiplied.
template <class T, class E, int R>
inline void selected_values_of_rows(const E* V, int64_t step, int n, const T* P, const T* seen, T* O, int64_t Dv) {
  constexpr int keys = keys_in<T, R>;
  for (int r = 0; r < R; ++r)
    for (int64_t d = 0; d < Dv; d += lanes<T>) {
      Lanes<T> sum = {};
      for (int k = 0; k < n; ++k) {
        int64_t at = k / keys * lanes<T> + r * keys + k % keys;
        if (seen[at] == 0) sum += fill(P[at]) * take(V + k * step + d);
      }
      put(O + r * Dv + d, take(O + r * Dv + d) + sum);
    }
}

}  // namespace
}  // namespace harken
