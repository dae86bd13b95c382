// term_product.hpp - the two products for few queries and keys of bfloat16: terms of the rows of q or P meet a tile.
//
// One term of q where it is stored as bfloat16, else three; two of P, or three where the output has more than 8 bits.
// A product of tiles takes as long for one row as for 16, and reading keys and values from memory longer than both
// products: what decides is that something is always being read (see absorb_keys_in_parts).
#pragma once

#include "parts.hpp"

namespace harken {
namespace {

constexpr int most_terms = 3;

// In a tile there is room for four where there are three.
HARKEN_INLINE int terms_in(int parts) { return parts < most_terms ? parts : most_terms; }

// What makes the largest number of a row of the size of 1, so that none of its terms is subnormal.
inline Fixed of_size_one(float top) {
  if (!(top < infinity)) return {0, __builtin_nanf("")};
  if (top < 0x1p-100f) return {0x1p100f, 0x1p-100f};
  uint32_t bits;
  __builtin_memcpy(&bits, &top, 4);
  bits &= 0x7f800000;
  float power;
  __builtin_memcpy(&power, &bits, 4);
  if (power > 0x1p100f) power = 0x1p100f;
  return {1 / power, power};
}

// --- S = K q ---

// Q of a set, not scaled yet, as tiles of b, [D / 32][16 pairs of channels][terms of rows].
inline void pack_queries(bf16, const PartSpace& space, int g0, int64_t D) {
  const int parts = space.q_parts, groups = space.groups_of(parts), set = g0 / groups;
  float* const counts = space.counts + tile_rows * set;
  bf16* const line = (bf16*)space.V;  // [16][D]
  __builtin_memset(line, 0, size_t(tile_rows * D) * sizeof(bf16));
  for (int r = 0; r < tile_rows / parts && g0 + r / part_rows < space.count; ++r) {
    const int g = g0 + r / part_rows;
    const float* q = space.groups[g].Q + r % part_rows * D;
    F32 top = {}, bad = {};
    for (int64_t d = 0; d < D; d += lanes<float>) {
      top = max(top, absolute(take(q + d)));
      bad += take(q + d) * 0.f;
    }
    float largest = any(bad != bad) ? infinity : 0;
    for (int lane = 0; lane < lanes<float>; ++lane) largest = top[lane] > largest ? top[lane] : largest;
    const Fixed by = of_size_one(largest);
    counts[r] = space.scale[part_rows * g + r % part_rows] * by.from;
    for (int64_t d = 0; d < D; d += lanes<float>) {
      F32 term[most_terms];
      split<most_terms>(take(q + d) * by.to, term);
      for (int t = 0; t < terms_in(parts); ++t) put(line + (t * tile_rows / parts + r) * D + d, term[t]);
    }
  }
  pack_keys<1>(Sheet<bf16>{line, D, tile_rows, nullptr}, 0, D, space.queries + set * D / 32 * tile_bytes);
}

// S of the rows of a set.
inline void join_scores(const Chunk<bf16>& at, const PartSpace& space, int g0) {
  const int parts = space.q_parts, groups = space.groups_of(parts), set = g0 / groups, n = at.n;
  const float* const sums_at = space.S + set * chunk_of<bf16> * tile_words;
  Words32 turned;  // [key][row] -> [row][key]
#pragma GCC unroll 16
  for (int i = 0; i < lanes<float>; ++i) turned[i] = i % 4 * 4 + i / 4;
  for (int g = 0; g < groups && g0 + g < space.count; ++g) {
    const PartRows& rows = space.groups[g0 + g];
    const float* count = space.counts + tile_rows * set + part_rows * g;
    F32 counts, bad = {};
#pragma GCC unroll 16
    for (int i = 0; i < lanes<float>; ++i) counts[i] = count[i / 4];
    for (int k = 0; k < n; k += 4) {
      F32 s = {};
      for (int t = terms_in(parts) - 1; t >= 0; --t) {
        const float* x = sums_at + k * tile_words + t * tile_rows / parts + part_rows * g;
        const float* of[] = {x, x + tile_words, x + 2 * tile_words, x + 3 * tile_words};
        s += take_pieces(of);
      }
      s = __builtin_shuffle(s, turned) * counts;
      bad += s * 0.f;
      put(rows.S + 4 * k, s);
    }
    if (!any(bad != bad)) continue;
    for (int r = 0; r < part_rows; ++r)
      if (bad[4 * r] + bad[4 * r + 1] + bad[4 * r + 2] + bad[4 * r + 3] != 0)
        plain_scores(at.K, at.K_step, n, rows, r, space.scale[part_rows * (g0 + g) + r], at.D);
  }
}

// --- O += P V ---

// P of a group as it lies in the tiles of its set, [2][terms of rows][32 keys]. Of 32 keys i and i + 16 are a pair, as
// two registers of P give them.
inline void pack_weights(bf16, const PartSpace& space, int g, int) {
  const int parts = space.P_parts, groups = space.groups_of(parts);
  for (int half = 0; half < 2; ++half) {
    char* const to = space.weights + (g / groups * 2 + half) * tile_bytes + g % groups * part_rows * row_bytes;
    for (int r = 0; r < part_rows; ++r) {
      F32 term[2][most_terms];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const float* at = space.groups[g].S + (8 * half + 4 * i) * lanes<float> + 4 * r;
        const float* of[] = {at, at + lanes<float>, at + 2 * lanes<float>, at + 3 * lanes<float>};
        split<most_terms>(take_pieces(of), term[i]);
      }
      for (int t = 0; t < terms_in(parts); ++t)
        put_words(to + (t * tile_rows / parts + r) * row_bytes, pairs(term[0][t], term[1][t]));
    }
  }
}

// Does row r see a value among the channels d .. end - 1 that is not finite?
inline bool sees_special(const bf16* V, int64_t step, int n, const float* unseen, int r, int64_t d, int64_t end) {
  for (int k = 0; k < n; ++k) {
    if (unseen[k / 4 * lanes<float> + 4 * r + k % 4] != 0) continue;
    for (int64_t i = d; i < end; ++i)
      if ((V[k * step + i].bits & 0x7f80) == 0x7f80) return true;
  }
  return false;
}

// 64 channels of values, or the last 32, as tiles of b, [4 times 16 channels][2 times 32 keys], two keys a row.
template <class M>
__attribute__((noinline)) void bring_values(const Chunk<bf16>& at, int64_t d, Ahead ahead, const PartSpace& space) {
  const bool four = d + 32 < at.Dv;
  for (int i = 0; i < 32; ++i) {
    const int k = i / 16 * 32 + i % 16;
    auto row = [&](int k) { return (const char*)(at.V + least(k, at.n - 1) * at.V_step + d); };
    const char *low = row(k), *high = row(k + tile_rows);
    char* to = space.V + i / 16 * tile_bytes + i % 16 * row_bytes;
    for (int j = 0; ahead.at && j < 2; ++j) ahead.row();
    M::twos(low, high, to, 2 * tile_bytes);
    if (four) M::twos(low + row_bytes, high + row_bytes, to + 4 * tile_bytes, 2 * tile_bytes);
  }
}

// Sums over them.
template <class M>
inline void sum_values(const Chunk<bf16>& at, const PartSpace& space, int g0, int64_t d) {
  const char *v = space.V, *weights = space.weights + g0 / space.groups_of(space.P_parts) * 2 * tile_bytes;
  const bool four = d + 32 < at.Dv;
  zero_sums<M>();
  for (int half = 0; half < 2; ++half, v += tile_bytes) {
    M::take(Register<4>(), weights + half * tile_bytes, row_bytes);
    M::take(Register<5>(), v, row_bytes);
    M::multiply(Register<0>(), Register<4>(), Register<5>());
    M::take(Register<6>(), v + 2 * tile_bytes, row_bytes);
    M::multiply(Register<1>(), Register<4>(), Register<6>());
    if (!four) continue;
    M::take(Register<7>(), v + 4 * tile_bytes, row_bytes);
    M::multiply(Register<2>(), Register<4>(), Register<7>());
    M::take(Register<5>(), v + 6 * tile_bytes, row_bytes);
    M::multiply(Register<3>(), Register<4>(), Register<5>());
  }
  put_sums<M>(space.O);
}

// O of them.
inline void join_values(const Chunk<bf16>& at, bool careful, const PartSpace& space, int g0, int64_t d) {
  const int parts = space.P_parts, groups = space.groups_of(parts);
  const bool four = d + 32 < at.Dv;
  Words32 low, high;  // two tiles have 32 channels in turns of four
#pragma GCC unroll 16
  for (int i = 0; i < lanes<float>; ++i) {
    low[i] = i / 8 * 4 + i % 4 + i / 4 % 2 * lanes<float>;
    high[i] = low[i] + 8;
  }
  for (int g = 0; g < groups && g0 + g < space.count; ++g)
    for (int r = 0; r < part_rows; ++r)
      for (int two = 0; two < (four ? 2 : 1); ++two) {
        const PartRows& rows = space.groups[g0 + g];
        const int64_t from = d + 32 * two;
        F32 even = {}, odd = {};
        for (int t = terms_in(parts) - 1; t >= 0; --t) {
          const float* x = space.O + (2 * two * tile_rows + t * tile_rows / parts + part_rows * g + r) * tile_words;
          even += take(x);
          odd += take(x + tile_rows * tile_words);
        }
        const bool special = careful && sees_special(at.V, at.V_step, at.n, rows.seen, r, from, from + 32);
        if (special || any((even + odd) * 0.f != F32{})) {
          plain_values(at.V, at.V_step, at.n, rows, careful, at.Dv, r, from, from + 32);
          continue;
        }
        float* const to = rows.O + r * at.Dv + from;
        put(to, take(to) + __builtin_shuffle(even, odd, low));
        put(to + lanes<float>, take(to + lanes<float>) + __builtin_shuffle(even, odd, high));
      }
}

}  // namespace
}  // namespace harken
