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

constexpr int part_rows = 4, row_bytes = 64;  // most rows of a group, bytes of a row of a tile

// Four, two or one rows, whose scores and weights lie in S as those of absorb_rows.
struct PartRows {
  int rows;
  float *Q, *S, *seen, *O;

  int64_t at(int k, int r) const {  // in S and seen
    const int keys = lanes<float> / rows;
    return k / keys * lanes<float> + r * keys + k % keys;
  }
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
  char* K;               // [16][D]: the last keys of a chunk
  char* V;               // tiles of its values, 64 channels at a time
  bf16* finite;          // [chunk][Dv]: its values with 0 for what is not finite
  float* S;              // [chunk][16] a set: sums of products with parts of q,
  float* O;              // four tiles, of products with parts of P

  int groups_of(int parts) const { return tile_rows / parts / part_rows; }
  int sets(int parts) const { return (count + groups_of(parts) - 1) / groups_of(parts); }
};

// What a factor makes of the numbers of a row, and what makes numbers of these.
struct Fixed {
  float to, from;
};

// Keys of a chunk: of int8 two tiles of weights.
template <class E>
constexpr int chunk_of = Engine::exists && __is_same(E, int8_t) ? 2 * chunk : chunk;

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
__attribute__((noinline)) void plain_scores(const E* K, int64_t step, int n, const PartRows& rows, int r, float factor,
                                            int64_t D) {
  const float* const q = rows.Q + r * D;
  for (int k = 0; k < n; ++k) {
    float& s = rows.S[rows.at(k, r)];
    if (s - s == 0) continue;
    F32 sum = {};
    for (int64_t d = 0; d < D; d += lanes<float>) sum += take(q + d) * factor * take(K + k * step + d);
    s = 0;
    for (int lane = 0; lane < lanes<float>; ++lane) s += sum[lane];
  }
}

// O[r] += sum_k P[k][r] V[k] over the channels d .. end - 1, by vectors; of what is `careful`ly looked at without the
// keys that the row does not see.
template <class E>
__attribute__((noinline)) void plain_values(const E* V, int64_t step, int n, const PartRows& rows, bool careful,
                                            int64_t Dv, int r, int64_t d, int64_t end) {
  for (; d < end; d += lanes<float>) {
    F32 sum = {};
    for (int k = 0; k < n; ++k) {
      const int64_t at = rows.at(k, r);
      if (careful && rows.seen[at] != 0) continue;
      sum += fill(rows.S[at]) * take(V + k * step + d);
    }
    put(rows.O + r * Dv + d, take(rows.O + r * Dv + d) + sum);
  }
}

// Products of what is stored with parts.
template <class M, int c, int a, int b>
HARKEN_INLINE void multiply_parts(bf16, Register<c> sum, Register<a> x, Register<b> y) {
  M::multiply(sum, x, y);
}
template <class M, int c, int a, int b>
HARKEN_INLINE void multiply_parts(int8_t, Register<c> sum, Register<a> x, Register<b> y) {
  M::multiply_bytes(sum, x, y);
}

// 16 keys meet the tiles of queries. (Read past the L1 cache, those that do not lie in whole lines take twice as long.)
template <class M, class E, int c>
HARKEN_INLINE void multiply_tile_of_keys(Register<c> sum, KeyTile K, const char* q, int64_t steps) {
  M::zero(sum);
  for (int64_t s = 0; s < steps; s += 2, q += 2 * tile_bytes) {
    M::take(Register<6>(), q, row_bytes);
    M::take(Register<4>(), K.at + s * row_bytes, K.step);
    multiply_parts<M>(E{}, sum, Register<4>(), Register<6>());
    if (s + 1 == steps) break;
    M::take(Register<7>(), q + tile_bytes, row_bytes);
    M::take(Register<5>(), K.at + (s + 1) * row_bytes, K.step);
    multiply_parts<M>(E{}, sum, Register<5>(), Register<7>());
  }
}

// What a row does not see must not even meet a weight of 0: values with 0 for what is not finite, if any.
inline void make_finite(Chunk<int8_t>&, bf16*) {}
inline void make_finite(Chunk<bf16>& at, bf16* to) {
  bool some = false;
  for (int k = 0; k < at.n; ++k)
    for (int64_t d = 0; d < at.Dv; ++d) {
      const bf16 v = at.V[k * at.V_step + d];
      const bool special = (v.bits & 0x7f80) == 0x7f80;
      to[k * at.Dv + d].bits = special ? 0 : v.bits;
      some |= special;
    }
  if (!some) return;
  at.V = to;
  at.V_step = at.Dv;
}

constexpr int weight_keys = 64;  // P is multiplied by so many values, those past the last one repeated and their P zero

// The keys of the next chunk meet q, 16 at a time, in the order in which they lie, between the steps of this chunk.
template <class M, class E>
struct Reading {
  const PartSpace& space;
  const Chunk<E>& at;
  int ticks;  // of this chunk
  int keys = 0, due = 0;
  Ahead ahead = at.next_K;

  HARKEN_INLINE void tick() {
    for (due += (at.n + tile_rows - 1) / tile_rows; due >= ticks; due -= ticks) some();
  }
  void rest() {
    while (keys < at.n) some();
  }

 private:
  __attribute__((noinline)) void some() {
    const int64_t of_E = sizeof(E), bytes = at.D * of_E;
    const KeyTile of = key_tile((const char*)at.K, of_E * at.K_step, bytes, keys, at.n, space.K);
    float* sums_at = space.S + keys * tile_words;
    const char* q = space.queries;
    for (int i = 0; ahead.at && i < tile_rows; ++i) ahead.row();
    for (int set = 0; set < space.sets(space.q_parts); ++set) {
      multiply_tile_of_keys<M, E>(Register<0>(), of, q, bytes / row_bytes);
      M::put(Register<0>(), sums_at, row_bytes);
      q += bytes * tile_rows;
      sums_at += chunk_of<E> * tile_words;
    }
    keys += tile_rows;
  }
};

// P of what is hidden is left out, and of what is past the end.
inline void leave_out_hidden(const PartRows& rows, int n, bool careful) {
  const int keys = lanes<float> / rows.rows;
  const int64_t there = (n + keys - 1) / keys, end = up(n, weight_keys) / keys;
  for (int64_t i = there; i < end; ++i) put(rows.S + i * lanes<float>, F32{});
  for (int64_t i = 0; careful && i < there * lanes<float>; ++i)
    if (rows.seen[i] != 0) rows.S[i] = 0;
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

template <class M = Engine>
inline void make_ready() {
  if constexpr (M::exists) M::configure();
}

// At the end the engine is left as it was found.
template <class M>
struct Engaged {
  ~Engaged() { M::release(); }
};

}  // namespace
}  // namespace harken
