// part_product.hpp - the two products for few queries on a matrix engine, in tiles of 16 keys, and 64 channels.
#pragma once

#include "parts.hpp"

namespace harken {
namespace {

// What a thread works in.
struct PartSpace {
  char *K, *P, *V, *sums;  // [16][D]: the last keys of a chunk; two tiles a group of rows; eight; four
};

template <class M, int c, int a, int b>
HARKEN_INLINE void multiply(int8_t, Register<c> C, Register<a> A, Register<b> B) {
  M::multiply_bytes(C, A, B);
}
template <class M, int c, int a, int b>
HARKEN_INLINE void multiply(bf16, Register<c> C, Register<a> A, Register<b> B) {
  M::multiply(C, A, B);
}

template <class M>
HARKEN_INLINE void zero_sums() {
  M::zero(Register<0>());
  M::zero(Register<1>());
  M::zero(Register<2>());
  M::zero(Register<3>());
}
template <class M>
HARKEN_INLINE void put_tiles(char* to) {
  M::put(Register<0>(), to, row_bytes);
  M::put(Register<1>(), to + tile_bytes, row_bytes);
  M::put(Register<2>(), to + 2 * tile_bytes, row_bytes);
  M::put(Register<3>(), to + 3 * tile_bytes, row_bytes);
}

// --- S = K q ---

// S[k][r] = q_r . k as scores_of_rows makes it, by vectors, for one row: where its sums by parts are not finite.
template <class E>
__attribute__((noinline)) void plain_scores(const E* K, int64_t step, int n, const float* q, int64_t D, float* S) {
  for (int k = 0; k < n; ++k) {
    F32 sum = {};
    for (int64_t d = 0; d < D; d += lanes<float>) sum += take(q + d) * take(K + k * step + d);
    float s = 0;
    for (int lane = 0; lane < lanes<float>; ++lane) s += sum[lane];
    S[k / 4 * lanes<float> + k % 4] = s;
  }
}

// The same for n <= 64 keys by tiles; packed and weight as above.
template <class M, class E>
inline void scores_in_parts(const E* K, int64_t step, int n, const float* Q, const char* packed, const float* weight,
                            int64_t D, float* S, const PartSpace& space, Ahead ahead) {
  const int64_t bytes = D * int64_t(sizeof(E)), step_bytes = step * int64_t(sizeof(E));
  const char* at[chunk_tiles];
  int64_t apart[chunk_tiles];
  for (int i = 0; i < chunk_tiles; ++i) {
    const bool whole = 16 * i + 16 <= n, some = 16 * i < n;
    at[i] = whole ? (const char*)K + 16 * i * step_bytes : some ? space.K : at[0];
    apart[i] = whole ? step_bytes : some ? bytes : apart[0];
    if (some && !whole)
      for (int r = 0; r < 16; ++r)
        __builtin_memcpy(space.K + r * bytes, (const char*)K + least(16 * i + r, n - 1) * step_bytes, bytes);
  }
  zero_sums<M>();
  const int64_t tiles = bytes / row_bytes;
  int64_t due = 0;
  for (int64_t d = 0; d < bytes; d += row_bytes, packed += tile_bytes) {
    M::take(Register<4>(), packed, row_bytes);
    for (due += n; due >= tiles; due -= tiles) ahead.row();
    M::take(Register<5>(), at[0] + d, apart[0]);
    multiply<M>(E{}, Register<0>(), Register<5>(), Register<4>());
    M::take(Register<6>(), at[1] + d, apart[1]);
    multiply<M>(E{}, Register<1>(), Register<6>(), Register<4>());
    M::take(Register<7>(), at[2] + d, apart[2]);
    multiply<M>(E{}, Register<2>(), Register<7>(), Register<4>());
    M::take(Register<5>(), at[3] + d, apart[3]);
    multiply<M>(E{}, Register<3>(), Register<5>(), Register<4>());
  }
  put_tiles<M>(space.sums);
  const F32 counts = take(weight);
  F32 bad = {};
  for (int k = 0; k < n; k += 4) {
    F32 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = take_sums_of<E>(space.sums + (k + i) * row_bytes) * counts;
    const F32 s = sums<F32, 4>(x);
    bad += s * 0.f;
    put(S + 4 * k, s);
  }
  if (!any(bad != bad)) return;
  for (int r = 0; r < part_rows; ++r)
    if (bad[4 * r] + bad[4 * r + 1] + bad[4 * r + 2] + bad[4 * r + 3] != 0)
      plain_scores(K, step, n, Q + r * D, D, S + 4 * r);
}

// --- O += P V ---

// `channels` (64, or of bfloat16 32) of n <= 64 values as tiles of b, once for all rows of a task.
template <class M>
inline void bring_values(const int8_t* V, int64_t step, int n, int, char* to, Ahead& ahead) {
  for (int i = 0; i < 16; ++i) {
    for (int k = 4 * i; k < 4 * i + 4 && k < n; ++k) ahead.row();
    M::fours(V + least(i, n - 1) * step, V + least(i + 16, n - 1) * step, V + least(i + 32, n - 1) * step,
             V + least(i + 48, n - 1) * step, to + i * row_bytes, tile_bytes);
  }
}
template <class M>
inline void bring_values(const bf16* V, int64_t step, int n, int channels, char* to, Ahead& ahead) {
  for (int i = 0; i < 32; ++i) {
    const int k = i / 16 * 32 + i % 16;
    const bf16 *low = V + least(k, n - 1) * step, *high = V + least(k + 16, n - 1) * step;
    for (int j = 2 * i; j < 2 * i + 2 && j < n; ++j) ahead.row();
    for (int d = 0; d < channels; d += 32)
      M::twos(low + d, high + d, to + (d / 8 + i / 16) * tile_bytes + i % 16 * row_bytes, 2 * tile_bytes);
  }
}

// Four tiles of sums over 64 channels, or two over 32.
template <class M>
inline void sum_values(int8_t, const char* V, int) {
  M::take(Register<5>(), V, row_bytes);
  M::multiply_bytes(Register<0>(), Register<4>(), Register<5>());
  M::take(Register<6>(), V + tile_bytes, row_bytes);
  M::multiply_bytes(Register<1>(), Register<4>(), Register<6>());
  M::take(Register<7>(), V + 2 * tile_bytes, row_bytes);
  M::multiply_bytes(Register<2>(), Register<4>(), Register<7>());
  M::take(Register<5>(), V + 3 * tile_bytes, row_bytes);
  M::multiply_bytes(Register<3>(), Register<4>(), Register<5>());
}
template <class M>
inline void sum_values(bf16, const char* V, int tiles) {
  M::take(Register<6>(), V, row_bytes);
  M::multiply(Register<0>(), Register<4>(), Register<6>());
  M::take(Register<7>(), V + 2 * tile_bytes, row_bytes);
  M::multiply(Register<1>(), Register<4>(), Register<7>());
  if (tiles == 4) {
    M::take(Register<6>(), V + 4 * tile_bytes, row_bytes);
    M::multiply(Register<2>(), Register<4>(), Register<6>());
    M::take(Register<7>(), V + 6 * tile_bytes, row_bytes);
    M::multiply(Register<3>(), Register<4>(), Register<7>());
  }
  M::take(Register<6>(), V + tile_bytes, row_bytes);
  M::multiply(Register<0>(), Register<5>(), Register<6>());
  M::take(Register<7>(), V + 3 * tile_bytes, row_bytes);
  M::multiply(Register<1>(), Register<5>(), Register<7>());
  if (tiles == 4) {
    M::take(Register<6>(), V + 5 * tile_bytes, row_bytes);
    M::multiply(Register<2>(), Register<5>(), Register<6>());
    M::take(Register<7>(), V + 7 * tile_bytes, row_bytes);
    M::multiply(Register<3>(), Register<5>(), Register<7>());
  }
}

// O[r] += sum_k P[k][r] V[k] over the channels d .. end - 1, by vectors; without the keys of `unseen`, if any.
template <class E>
__attribute__((noinline)) void plain_values(const E* V, int64_t step, int n, const float* P, const float* unseen,
                                            float* O, int64_t Dv, int r, int64_t d, int64_t end) {
  for (; d < end; d += lanes<float>) {
    F32 sum = {};
    for (int k = 0; k < n; ++k) {
      const int at = k / 4 * lanes<float> + 4 * r + k % 4;
      if (unseen && unseen[at] != 0) continue;
      sum += fill(P[at]) * take(V + k * step + d);
    }
    put(O + r * Dv + d, take(O + r * Dv + d) + sum);
  }
}

// The same by tiles, for the channels from d on that bring_values has packed; weights and from are pack_weights'.
template <class M, class E>
inline void values_in_parts(const E* V, int64_t step, int n, const float* P, const float* unseen, const char* weights,
                            const float* from, float* O, int64_t Dv, int64_t d, int channels, const PartSpace& space) {
  const int tiles = channels / tile_words;
  zero_sums<M>();
  M::take(Register<4>(), weights, row_bytes);
  if constexpr (__is_same(E, bf16)) M::take(Register<5>(), weights + tile_bytes, row_bytes);
  sum_values<M>(E{}, space.V, tiles);
  put_tiles<M>(space.sums);
  for (int r = 0; r < part_rows; ++r) {
    F32 x[4], bad = {};
    join_parts(E{}, space.sums, r, from[r], x);
    for (int c = 0; c < tiles; ++c) bad += x[c] * 0.f;
    float* const to = O + r * Dv + d;
    if (any(bad != bad)) {
      plain_values(V, step, n, P, unseen, O, Dv, r, d, d + channels);
    } else {
      for (int c = 0; c < tiles; ++c) put(to + c * lanes<float>, take(to + c * lanes<float>) + x[c]);
    }
  }
}

// Made ready for a chunk: again for each, as in matrix.hpp. At the end it is left as it was found.
template <class M>
struct Engaged {
  bool used;
  void configure() const {
    if constexpr (M::exists) {
      if (used) M::configure();
    }
  }
  ~Engaged() {
    if constexpr (M::exists) {
      if (used) M::release();
    }
  }
};

}  // namespace
}  // namespace harken
