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

// The largest number of each row of x, in all of its lanes.
template <class F, int keys>
inline F largest_of_rows(F x) {
#pragma GCC unroll 8
  for (int apart = 1; apart < keys; apart *= 2) {
    typename Vector<Number<F>>::Words other;
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes<Number<F>>; ++lane) other[lane] = lane ^ apart;
    x = max(x, __builtin_shuffle(x, other));
  }
  return x;
}

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

// Two registers of a row at once, and in which order: neighbours apart for bfloat16, where a shift and a mask are all
// that it takes (4 instructions with one register after the other), else as they lie.
template <class S, class F>
HARKEN_INLINE void take_two(const S* at, F& first, F& second) {
  first = take(at);
  second = take(at + sizeof(F) / sizeof(first[0]));
}
HARKEN_INLINE void take_two(const bf16* at, F32& even, F32& odd) {
  const Bits32 both = (Bits32)take((const float*)at);
  even = (F32)(both << 16);
  odd = (F32)(both & 0xffff0000u);
}

// Rows of T as take_two gives those of bfloat16: of each two registers the even numbers, then the odd ones; and back.
template <class T>
inline void part(T* rows, int64_t n, int64_t count) {
  T even[lanes<T>], odd[lanes<T>];
  for (; n > 0; --n, rows += count)
    for (int64_t d = 0; d + 2 * lanes<T> <= count; d += 2 * lanes<T>) {
      for (int i = 0; i < lanes<T>; ++i) even[i] = rows[d + 2 * i], odd[i] = rows[d + 2 * i + 1];
      put(rows + d, take(even));
      put(rows + d + lanes<T>, take(odd));
    }
}
template <class T>
inline void join(T* rows, int64_t n, int64_t count) {
  for (; n > 0; --n, rows += count)
    for (int64_t d = 0; d + 2 * lanes<T> <= count; d += 2 * lanes<T>) {
      T both[2 * lanes<T>];
      for (int i = 0; i < lanes<T>; ++i) both[2 * i] = rows[d + i], both[2 * i + 1] = rows[d + lanes<T> + i];
      put(rows + d, take(both));
      put(rows + d + lanes<T>, take(both + lanes<T>));
    }
}

// A chunk of keys as the products read it: E where it lies, or T where it had to be copied.
template <class E>
struct Chunk {
  const E *K, *V;
  int64_t K_step, V_step, D, Dv, k0;
  int n;
  Ahead next_K, soon_V;
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
      int64_t d = 0;
      for (; d + 2 * lanes<T> <= D; d += 2 * lanes<T>) {
        Lanes<T> q[R], next[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          q[r] = take(Q + r * D + d);
          next[r] = take(Q + r * D + d + lanes<T>);
        }
#pragma GCC unroll 16
        for (int i = 0; i < keys; ++i) {
          Lanes<T> x, y;
          take_two(key(i) + d, x, y);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            sum[r * keys + i] += q[r] * x;
            sum[r * keys + i] += next[r] * y;
          }
        }
      }
      if (d < D)
#pragma GCC unroll 16
        for (int i = 0; i < keys; ++i) {
          Lanes<T> x = take(key(i) + d);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) sum[r * keys + i] += take(Q + r * D + d) * x;
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
      if constexpr (X == 1) {
        Lanes<T> v = take(V);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r][0] += weight[r] * v;
      }
#pragma GCC unroll 8
      for (int x = 0; x + 1 < X; x += 2) {
        Lanes<T> v, w;
        take_two(V + x * lanes<T>, v, w);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          sum[r][x] += weight[r] * v;
          sum[r][x + 1] += weight[r] * w;
        }
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
    for (int64_t d = 0; d < Dv; d += 2 * lanes<T>) {
      const bool two = d + lanes<T> < Dv;
      Lanes<T> sum = {}, next = {};
      for (int k = 0; k < n; ++k) {
        int64_t at = k / keys * lanes<T> + r * keys + k % keys;
        if (seen[at] != 0) continue;
        Lanes<T> v, w = {};
        if (two) {
          take_two(V + k * step + d, v, w);
        } else {
          v = take(V + k * step + d);
        }
        sum += fill(P[at]) * v;
        next += fill(P[at]) * w;
      }
      T* to = O + r * Dv + d;
      put(to, take(to) + sum);
      if (two) put(to + lanes<T>, take(to + lanes<T>) + next);
    }
}

}  // namespace
}  // namespace harken
