// digit_product.hpp - the two products for few queries and keys of int8: four digits of four rows meet a tile.
//
// Sums over digits are exact, so that a row has the same bits in a group of one, two or four: one row alone takes 0.6
// of the time of four. Keys and values of 128 channels take 0.5 us per 64 keys from the L2 cache with one row, 0.75
// with four; from memory 0.9 and 1.15. A chunk is 128 keys, because weights have a scale, and O a sum, a chunk; 64 take
// 5 to 10 % more.
#pragma once

#include "parts.hpp"

namespace harken {
namespace {

// What makes the numbers of a row integers below 2^30.
inline Fixed fixed(float top) {
  if (!(top < infinity)) return {0, __builtin_nanf("")};
  top = top > 0x1p-90f ? top : 0x1p-90f;
  return {0x1p30f / top, top * 0x1p-30f};
}

// Byte t is digit t.
HARKEN_INLINE Words32 digits_of(F32 x) { return (__builtin_convertvector(x, Words32) + 0x808080) ^ 0x808080; }

// Sums over digits, in 128-bit pieces or as they lie.
HARKEN_INLINE F32 of_sums(F32 x) { return __builtin_convertvector((Words32)x, F32); }

typedef int8_t Digits __attribute__((vector_size(vector_bytes)));

// [4 numbers][4 digits] -> [4 digits][4 numbers] in each 128 bits.
HARKEN_INLINE Digits by_digit(Words32 x) {
  Digits to;
#pragma GCC unroll 64
  for (int i = 0; i < vector_bytes; ++i) to[i] = int8_t(i / 16 * 16 + i % 4 * 4 + i / 4 % 4);
  return __builtin_shuffle((Digits)x, to);
}

// --- S = K q ---

// 16 channels of a row of q as they lie in tiles of b, [16 times some channels][4 rows][4 digits][these channels].
HARKEN_INLINE void put_digits(F32 x, char* to) {
  float* const rows[] = {(float*)to, (float*)(to + row_bytes), (float*)(to + 2 * row_bytes),
                         (float*)(to + 3 * row_bytes)};
  put_pieces((F32)by_digit(digits_of(x)), rows, 4);
}

inline void pack_queries(int8_t, const PartSpace& space, int g, int64_t D) {
  const PartRows& rows = space.groups[g];
  char* const to = space.queries + g * D * tile_rows;
  for (int r = 0; r < rows.rows; ++r) {
    const float* q = rows.Q + r * D;
    F32 top = {}, bad = {};
    for (int64_t d = 0; d < D; d += lanes<float>) {
      top = max(top, absolute(take(q + d)));
      bad += take(q + d) * 0.f;
    }
    float largest = any(bad != bad) ? infinity : 0;
    for (int lane = 0; lane < lanes<float>; ++lane) largest = top[lane] > largest ? top[lane] : largest;
    const Fixed by = fixed(largest);
    for (int t = 0; t < 4; ++t) space.counts[tile_rows * g + 4 * r + t] = by.from * float(1 << 8 * t);
    for (int64_t d = 0; d < D; d += lanes<float>) put_digits(take(q + d) * by.to, to + d * 16 + 16 * r);
  }
}

// S of n keys, of the sums over the digits of R rows: [keys][4 rows][4 digits].
template <int R>
inline F32 join_scores_of(const float* sums_at, F32 counts, int n, float* S) {
  constexpr int keys = lanes<float> / R, pieces = keys / 4;
  Words32 of_row;
#pragma GCC unroll 16
  for (int i = 0; i < lanes<float>; ++i) of_row[i] = i / keys * 4 + i % 4;
  counts = __builtin_shuffle(counts, of_row);
  F32 bad = {};
  for (int k = 0; k < n; k += keys, S += lanes<float>) {
    F32 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float* of[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) of[j] = sums_at + (k + 4 * (j % pieces) + i) * tile_words + 4 * (j / pieces);
      x[i] = of_sums(R == 4 ? take(of[0]) : take_pieces(of)) * counts;
    }
    const F32 s = sums<F32, 4>(x);
    bad += s * 0.f;
    put(S, s);
  }
  return bad;
}

inline void join_scores(const Chunk<int8_t>& at, const PartSpace& space, int g) {
  const PartRows& rows = space.groups[g];
  const float* const sums_at = space.S + g * chunk_of<int8_t> * tile_words;
  const F32 counts = take(space.counts + tile_rows * g);
  const F32 bad = rows.rows == 4   ? join_scores_of<4>(sums_at, counts, at.n, rows.S)
                  : rows.rows == 2 ? join_scores_of<2>(sums_at, counts, at.n, rows.S)
                                   : join_scores_of<1>(sums_at, counts, at.n, rows.S);
  if (!any(bad != bad)) return;
  for (int r = 0; r < rows.rows; ++r) plain_scores(at.K, at.K_step, at.n, rows, r, 1, at.D);
}

// --- O += P V ---

// P of R rows as a tile of a for each 64 keys, [4 rows][4 digits][those keys in the order of bring_fours]; from[4]
// makes numbers of sums over it, NaN: the row is not finite.
template <int R>
inline void pack_weights_of(const PartSpace& space, int g, int n) {
  constexpr int keys = lanes<float> / R;
  const PartRows& rows = space.groups[g];
  F32 top = {}, bad = {};
  for (int k = 0; k < n; k += keys) {
    const F32 x = take(rows.S + k * R);
    top = max(top, absolute(x));
    bad += x * 0.f;
  }
  alignas(64) float tops[lanes<float>], bads[lanes<float>];
  put(tops, largest_of_rows<F32, keys>(top));
  put(bads, bad);
  for (int r = 0; r < R; ++r) {
    float sum = 0;
    for (int k = 0; k < keys; ++k) sum += bads[r * keys + k];
    const Fixed by = fixed(sum == 0 ? tops[r * keys] : infinity);
    space.from[part_rows * g + r] = by.from;
    for (int k0 = 0; k0 < n; k0 += 64) {
      char* const to = space.weights + (g * 2 + k0 / 64) * tile_bytes + 4 * r * row_bytes;
      F32 x[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const float* of[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
          of[i] = rows.S + (k0 + 16 * j + 4 * i) / keys * lanes<float> + r * keys + 4 * i % keys;
        x[j] = (F32)by_digit(digits_of((R == 1 ? take(of[0]) : take_pieces(of)) * by.to));
      }
      transpose_pieces(x);
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) put((float*)(to + t * row_bytes), x[t]);
    }
  }
}
inline void pack_weights(int8_t, const PartSpace& space, int g, int n) {
  switch (space.groups[g].rows) {
    case 4: return pack_weights_of<4>(space, g, n);
    case 2: return pack_weights_of<2>(space, g, n);
    default: return pack_weights_of<1>(space, g, n);
  }
}

// 64 channels of values as tiles of b, [2 times 64 keys][4 tiles], four keys a row, in the order in which they lie.
template <class M>
__attribute__((noinline)) void bring_values(const Chunk<int8_t>& at, int64_t d, Ahead ahead, const PartSpace& space) {
  const int8_t* const V = at.V + d;
  const int64_t step = at.V_step;
  for (int k = 0; k < up(at.n, weight_keys); k += 4) {
    char* to = space.V + k / weight_keys * 4 * tile_bytes + (k / 4 % 4 * 4 + k / 16 % 4) * row_bytes;
    for (int i = 0; ahead.at && i < 4; ++i) ahead.row();
    if (k + 4 <= at.n) {
      const int8_t* row = V + k * step;
      M::fours(row, row + step, row + 2 * step, row + 3 * step, to, tile_bytes);
    } else {
      auto row = [&](int i) { return V + least(k + i, at.n - 1) * step; };
      M::fours(row(0), row(1), row(2), row(3), to, tile_bytes);
    }
  }
}

// The sums of row r over its digits: 64 channels.
HARKEN_INLINE void join_digits(const float* tiles, int r, float from, F32 (&x)[4]) {
  F32 y[4], a, b;  // of 16 channels in a row, y[j] holds the j-th four
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const float* at = tiles + (j * tile_rows + 4 * r) * tile_words;
    F32 sum = of_sums(take(at + 3 * tile_words));
#pragma GCC unroll 4
    for (int t = 2; t >= 0; --t) sum = sum * 256.f + of_sums(take(at + t * tile_words));
    y[j] = sum * from;
  }
  F32 c, d;
  interleave<F32, 4>(y[0], y[1], a, b);
  interleave<F32, 4>(y[2], y[3], c, d);
  interleave<F32, 4>(a, c, x[0], x[2]);
  interleave<F32, 4>(b, d, x[1], x[3]);
}

// Sums over 64 channels that have been brought.
template <class M>
inline void sum_values(const Chunk<int8_t>& at, const PartSpace& space, int g, int64_t) {
  const char *weights = space.weights + g * 2 * tile_bytes, *V = space.V;
  zero_sums<M>();
  for (int k = 0; k < at.n; k += weight_keys, weights += tile_bytes, V += 4 * tile_bytes) {
    M::take(Register<4>(), weights, row_bytes);
    M::take(Register<5>(), V, row_bytes);
    M::multiply_bytes(Register<0>(), Register<4>(), Register<5>());
    M::take(Register<6>(), V + tile_bytes, row_bytes);
    M::multiply_bytes(Register<1>(), Register<4>(), Register<6>());
    M::take(Register<7>(), V + 2 * tile_bytes, row_bytes);
    M::multiply_bytes(Register<2>(), Register<4>(), Register<7>());
    M::take(Register<5>(), V + 3 * tile_bytes, row_bytes);
    M::multiply_bytes(Register<3>(), Register<4>(), Register<5>());
  }
  put_sums<M>(space.O);
}

// O of them, from d on.
inline void join_values(const Chunk<int8_t>& at, bool careful, const PartSpace& space, int g, int64_t d) {
  const PartRows& rows = space.groups[g];
  for (int r = 0; r < rows.rows; ++r) {
    F32 x[4], bad = {};
    join_digits(space.O, r, space.from[part_rows * g + r], x);
    for (int c = 0; c < 4; ++c) bad += x[c] * 0.f;
    float* const to = rows.O + r * at.Dv + d;
    if (any(bad != bad)) {
      plain_values(at.V, at.V_step, at.n, rows, careful, at.Dv, r, d, d + 64);
    } else {
      for (int c = 0; c < 4; ++c) put(to + c * lanes<float>, take(to + c * lanes<float>) + x[c]);
    }
  }
}

}  // namespace
}  // namespace harken
