// additive_product.hpp - the product of additive attention, S = sum_d w_d tanh(q_d + k_d), in both orientations.
#pragma once

#include "additive.hpp"
#include "product.hpp"

namespace harken {
namespace {

constexpr int64_t channel_block = 32;                // x of one register of queries, 6 KiB; and S is summed in parts
constexpr int additive_keys = columns == 4 ? 8 : 4;  // that share x in registers; 4 in AVX-512 took 9 % longer

template <class F>
struct Fraction {
  F u, d;
};

// `count` fractions as one. Which of the two products is fused into the sum must not be the compiler's choice, or bits
// would depend on how many keys share a loop.
template <int count, class F, class Each>
HARKEN_INLINE Fraction<F> sum_of(int i, Each each) {
  if constexpr (count == 1) {
    return each(i);
  } else {
    Fraction<F> a = sum_of<count - count / 2, F>(i, each), b = sum_of<count / 2, F>(i + count - count / 2, each);
    return {a.u * b.d + rounded(b.u * a.d), a.d * b.d};
  }
}

// S[k] += power sum_d (x0 y + x1) / (x2 y + 1) for R keys and one register of queries.
template <class T, int R>
__attribute__((noinline)) void additive_tile(const T* y, int64_t step, const T* x, int64_t plane, int64_t width,
                                             int64_t D, T power, T* S) {
  using F = Lanes<T>;
  constexpr int N = together<T>;
  F sum[R] = {};
  for (int64_t d = 0; d < D; d += N) {
    F x0[N], x1[N], x2[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const T* at = x + (d + i) * width;
      x0[i] = take(at);
      x1[i] = take(at + plane);
      x2[i] = take(at + 2 * plane);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T* of_key = y + r * step + d;
      Fraction<F> all = sum_of<N, F>(0, [&](int i) __attribute__((always_inline)) {
        F k = fill(of_key[i]);
        return Fraction<F>{x0[i] * k + x1[i], x2[i] * k + T(1)};
      });
      sum[r] += ratio(all.u, all.d);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) put(S + r * width, take(S + r * width) + power * sum[r]);
}

template <class T, int R>
inline void additive_tiles(const T* y, int64_t step, int64_t n, const T* x, int64_t plane, int64_t width, int64_t D,
                           T power, T* S) {
  for (; n >= R; n -= R, y += R * step, S += R * width) additive_tile<T, R>(y, step, x, plane, width, D, power, S);
  if constexpr (R > 1) additive_tiles<T, R / 2>(y, step, n, x, plane, width, D, power, S);
}

// The same by the tanh itself, of any numbers, where a key needs it.
template <class T>
__attribute__((noinline)) void tanh_tile(const T* K, int64_t step, int64_t n, const T* k_bound, const T* Q,
                                         Lanes<T> q_bound, const T* w, int64_t width, int64_t D, T power, T* S) {
  for (int64_t k = 0; k < n; ++k, K += step, S += width) {
    if (!some_wild(q_bound, fill(k_bound[k]))) continue;
    Lanes<T> sum = {};
    for (int64_t d = 0; d < D; ++d) sum += fill(w[d]) * tanh(take(Q + d * width) + fill(K[d]));
    put(S, take(S) + power * sum);
  }
}

// S = seed + the scores of the keys k0 .. k1 - 1 against the columns c0 .. c1 - 1; `other` is a tile like S.
template <class T>
inline void additive_scores(const ChannelWeights<T>& weights, AdditiveKeys<T>& K, const T* Q,
                            const AdditiveQueries<T>& q, int64_t width, int64_t D, int64_t k0, int64_t k1, int c0,
                            int c1, const T* seed, T* S, T* other) {
  const int64_t padded_D = padded<T>(D), whole_D = (D + together<T> - 1) / together<T> * together<T>, n = k1 - k0;
  bool first = true;
  for (int which = 0; which < ways; ++which) {
    const Way way = Way(which);
    if (!present(way, q, K)) continue;
    if (way != wild) {
      make(way, weights, Q, D, width, q);
      make(way, D, K);
    }
    T* to = first ? S : other;
    for (int64_t c = c0 * lanes<T>; c < c1 * lanes<T>; c += lanes<T>) {
      T* column = to + k0 * width + c;
      for (int64_t k = 0; k < n; ++k) put(column + k * width, take(seed + c));
      for (int64_t d = 0; d < whole_D; d += channel_block) {
        if (way == wild) {
          tanh_tile(K.raw + k0 * K.step + d, K.step, n, K.bound + k0, Q + d * width + c, take(q.bound + c),
                    weights.w + d, width, least(channel_block, D - d), weights.power, column);
        } else {
          additive_tiles<T, additive_keys>(K.y[way] + k0 * padded_D + d, padded_D, n, q.x[way] + d * width + c,
                                           padded_D * width, width, least(channel_block, whole_D - d), weights.power,
                                           column);
        }
      }
      for (int64_t k = first ? n : 0; k < n; ++k) {
        T* at = S + (k0 + k) * width + c;
        put(at, chosen(way, take(q.bound + c), fill(K.bound[k0 + k]), take(at), take(column + k * width)));
      }
    }
    first = false;
  }
}

// --- channels in lanes ---

// S[k][r] for R rows with lanes / R keys a register, as scores_of_rows. x: [R][3][plane].
template <class T, int R>
__attribute__((noinline)) void additive_rows(const T* y, int64_t step, int n, const T* x, int64_t plane, int64_t D,
                                             Lanes<T> power, T* S) {
  using F = Lanes<T>;
  constexpr int keys = lanes<T> / R, N = together<T>;
  for (int k = 0; k < n; k += keys, y += keys * step, S += lanes<T>) {
    F sum[R * keys] = {};
    auto add = [&](int64_t d, auto count) __attribute__((always_inline)) {
      constexpr int registers = count.value;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        F x0[registers], x1[registers], x2[registers];
#pragma GCC unroll 4
        for (int i = 0; i < registers; ++i) {
          const T* at = x + r * 3 * plane + d + i * lanes<T>;
          x0[i] = take(at);
          x1[i] = take(at + plane);
          x2[i] = take(at + 2 * plane);
        }
#pragma GCC unroll 16
        for (int key = 0; key < keys; ++key) {
          const T* of_key = y + key * step + d;
          Fraction<F> all = sum_of<registers, F>(0, [&](int i) __attribute__((always_inline)) {
            F k = take(of_key + i * lanes<T>);
            return Fraction<F>{x0[i] * k + x1[i], x2[i] * k + T(1)};
          });
          sum[r * keys + key] += ratio(all.u, all.d);
        }
      }
    };
    int64_t d = 0;
    for (; d + N * lanes<T> <= D; d += N * lanes<T>) add(d, Count<N>());
    for (; d < D; d += lanes<T>) add(d, Count<1>());
    put(S, power * sums(sum));
  }
}

// |k| for the lanes of a register of scores.
template <class T, int R>
HARKEN_INLINE Lanes<T> bounds_of_register(const AdditiveKeys<T>& K, int k) {
  alignas(vector_bytes) T bound[lanes<T>];
  for (int i = 0; i < lanes<T>; ++i) bound[i] = K.bound[least(k + i % (lanes<T> / R), K.n - 1)];
  return take(bound);
}

template <class T, int R>
__attribute__((noinline)) void tanh_rows(const AdditiveKeys<T>& K, const T* const* w, const T* Q, Lanes<T> q_bound,
                                         int64_t D, Lanes<T> power, T* S) {
  constexpr int keys = lanes<T> / R;
  for (int k = 0; k < K.n; k += keys, S += lanes<T>) {
    if (!some_wild(q_bound, bounds_of_register<T, R>(K, k))) continue;
    Lanes<T> sum[R * keys] = {};
    for (int i = 0; i < R * keys; ++i) {
      const int r = i / keys;
      const T* key = K.raw + least(k + i % keys, K.n - 1) * K.step;
      for (int64_t d = 0; d < D; d += lanes<T>) sum[i] += take(w[r] + d) * tanh(take(Q + r * D + d) + take(key + d));
    }
    put(S, power * sums(sum));
  }
}

// The scores of R rows against the keys that were brought near. D: whole registers; w: of each row.
template <class T, int R>
inline void additive_scores_of_rows(AdditiveKeys<T>& K, const T* const* w, const T* Q, const AdditiveQueries<T>& q,
                                    Lanes<T> power, int64_t D, T* S, T* other) {
  constexpr int keys = lanes<T> / R;
  const int64_t plane = padded<T>(D);
  const int n = int(K.n);
  bool first = true;
  for (int which = 0; which < ways; ++which) {
    const Way way = Way(which);
    if (!present(way, q, K)) continue;
    T* to = first ? S : other;
    if (way == wild) {
      tanh_rows<T, R>(K, w, Q, take(q.bound), D, power, to);
    } else {
      make(way, D, K);
      for (int r = 0; r < R && !q.made[way]; ++r) make_row(way, w[r], Q + r * D, D, q.x[way] + r * 3 * plane);
      q.made[way] = true;
      additive_rows<T, R>(K.y[way], plane, n, q.x[way], plane, D, power, to);
    }
    for (int k = first ? n : 0; k < n; k += keys) {
      T* at = S + k / keys * lanes<T>;
      put(at, chosen(way, take(q.bound), bounds_of_register<T, R>(K, k), take(at), take(other + k / keys * lanes<T>)));
    }
    first = false;
  }
}

}  // namespace
}  // namespace harken
