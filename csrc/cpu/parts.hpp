// parts.hpp - few queries on a matrix engine: keys and values are multiplied as stored, by the parts of q and P.
//
//     x = sum_t weight_t part_t        parts t, each of which the engine multiplies exactly with what is stored
//
//     int8       digits   x = f (d0 + 2^8 d1 + 2^16 d2 + 2^24 d3),   -128 <= d <= 127,   f = 2^-30 max |x|
//     bfloat16   terms    x = f (h + m + l),                         f = a power of two, of the size of max |x|
//
// over a row of q, or the weights of a row for 64 keys. The 16 rows of a tile are n parts of 16 / n rows. The sums of
// digits are exact, so what is lost is 2^-30 of the largest number of a row, and the last few roundings; those of terms
// are rounded as floats are. What comes out without being finite is computed again by vectors, chunk by chunk.
#pragma once

#include "planes.hpp"
#include "row_product.hpp"

namespace harken {
namespace {

using Engine = decltype(engine(0));

constexpr int part_rows = 4, row_bytes = 64;  // rows of a group, bytes of a row of a tile

// Four rows, whose scores and weights lie in S as those of absorb_rows.
struct PartRows {
  float *Q, *S, *seen, *O;
};

// What a thread works in. Groups of rows that share a tile are a set: that of q, and that of P.
struct PartSpace {
  PartRows* groups;
  int count;
  int q_parts, P_parts;  // of a row in a tile: 1, 2 or 4
  float* scale;          // [4] a group, of bfloat16: what is not yet in Q
  char* queries;         // Q of a set as tiles of its parts,
  float* counts;         // [16] a set: what the sums over these count; NaN: the row is not finite
  char* weights;         // P of a chunk and a set as tiles of its parts,
  float* from;           // [4] a set, of digits: what the sums over those count
  char *K, *V;           // [16][D]: the last keys of a chunk; tiles of its values
  bf16* finite;          // [chunk][Dv]: its values with 0 for what is not finite
  float* sums;           // four tiles

  int groups_of(int parts) const { return tile_rows / parts / part_rows; }
};

// What a factor makes of the numbers of a row, and what makes numbers of these.
struct Fixed {
  float to, from;
};

// The keys at the end of a chunk are read from a copy, in which the last one is repeated.
struct KeyTile {
  const char* at;
  int64_t step;
};
inline KeyTile key_tile(const char* K, int64_t step, int64_t bytes, int k, int n, char* copy) {
  if (k + tile_rows <= n) return {K + k * step, step};
  for (int r = 0; r < tile_rows; ++r) __builtin_memcpy(copy + r * bytes, K + least(k + r, n - 1) * step, bytes);
  return {copy, bytes};
}

// S[k][r] = factor q_r . k as scores_of_rows makes it, by vectors, for one row: where its sums by parts are not finite,
// and nowhere else, so that a key which is hidden later changes no bit of others.
template <class E>
__attribute__((noinline)) void plain_scores(const E* K, int64_t step, int n, const float* q, float factor, int64_t D,
                                            float* S) {
  for (int k = 0; k < n; ++k) {
    float& s = S[k / 4 * lanes<float> + k % 4];
    if (s - s == 0) continue;
    F32 sum = {};
    for (int64_t d = 0; d < D; d += lanes<float>) sum += take(q + d) * factor * take(K + k * step + d);
    s = 0;
    for (int lane = 0; lane < lanes<float>; ++lane) s += sum[lane];
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

template <class M>
HARKEN_INLINE void zero_sums() {
  M::zero(Register<0>());
  M::zero(Register<1>());
  M::zero(Register<2>());
  M::zero(Register<3>());
}
template <class M>
HARKEN_INLINE void put_sums(float* to) {
  constexpr int tile = tile_rows * tile_words;
  M::put(Register<0>(), to, row_bytes);
  M::put(Register<1>(), to + tile, row_bytes);
  M::put(Register<2>(), to + 2 * tile, row_bytes);
  M::put(Register<3>(), to + 3 * tile, row_bytes);
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
