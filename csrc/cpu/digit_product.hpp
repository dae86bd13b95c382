// digit_product.hpp - the two products for few queries and keys of int8: four digits of four rows meet a tile.
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

HARKEN_INLINE F32 take_sums(const float* at) {
  typedef int32_t Anywhere __attribute__((vector_size(vector_bytes), aligned(1), may_alias));
  const Words32 x = *(const Anywhere*)at;
  return __builtin_convertvector(x, F32);
}

// --- S = K q ---

// 16 channels of a row of q as they lie in tiles of b, [16 times some channels][4 rows][4 digits][these channels].
HARKEN_INLINE void put_digits(F32 x, char* to) {
  typedef int8_t All __attribute__((vector_size(vector_bytes)));
  All by_digit;  // [channel][digit] -> [digit][channel] in each 128 bits
#pragma GCC unroll 64
  for (int i = 0; i < vector_bytes; ++i) by_digit[i] = int8_t(i / 16 * 16 + i % 4 * 4 + i / 4 % 4);
  float* const rows[] = {(float*)to, (float*)(to + row_bytes), (float*)(to + 2 * row_bytes),
                         (float*)(to + 3 * row_bytes)};
  put_pieces((F32)__builtin_shuffle((All)digits_of(x), by_digit), rows, 4);
}

inline void pack_queries(int8_t, const PartSpace& space, int g, int64_t D) {
  const PartRows& rows = space.groups[g];
  char* const to = space.queries + g * D * tile_rows;
  for (int r = 0; r < part_rows; ++r) {
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

// S of n <= 64 keys.
template <class M>
inline void multiply_keys(const int8_t* K, int64_t step, int n, int64_t D, const PartSpace& space, int g,
                          Ahead& ahead) {
  const PartRows& rows = space.groups[g];
  KeyTile of[chunk / tile_rows];
  for (int i = 0; i < chunk / tile_rows; ++i)
    of[i] = tile_rows * i < n ? key_tile((const char*)K, step, D, tile_rows * i, n, space.K) : of[0];
  zero_sums<M>();
  const int64_t tiles = D / row_bytes;
  int64_t due = 0;
  const char* q = space.queries + g * D * tile_rows;
  for (int64_t d = 0; d < D; d += row_bytes, q += tile_bytes) {
    M::take(Register<4>(), q, row_bytes);
    for (due += n; due >= tiles; due -= tiles) ahead.row();
    M::take(Register<5>(), of[0].at + d, of[0].step);
    M::multiply_bytes(Register<0>(), Register<5>(), Register<4>());
    M::take(Register<6>(), of[1].at + d, of[1].step);
    M::multiply_bytes(Register<1>(), Register<6>(), Register<4>());
    M::take(Register<7>(), of[2].at + d, of[2].step);
    M::multiply_bytes(Register<2>(), Register<7>(), Register<4>());
    M::take(Register<5>(), of[3].at + d, of[3].step);
    M::multiply_bytes(Register<3>(), Register<5>(), Register<4>());
  }
  put_sums<M>(space.sums);
  const F32 counts = take(space.counts + tile_rows * g);
  F32 bad = {};
  for (int k = 0; k < n; k += 4) {
    F32 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = take_sums(space.sums + (k + i) * tile_words) * counts;
    const F32 s = sums<F32, 4>(x);
    bad += s * 0.f;
    put(rows.S + 4 * k, s);
  }
  if (!any(bad != bad)) return;
  for (int r = 0; r < part_rows; ++r)
    if (bad[4 * r] + bad[4 * r + 1] + bad[4 * r + 2] + bad[4 * r + 3] != 0)
      plain_scores(K, step, n, rows.Q + r * D, 1, D, rows.S + 4 * r);
}

// --- O += P V ---

// P of four rows as a tile of a, [4 rows][4 digits][16 times the keys i, i + 16, i + 32, i + 48]; from[4] makes numbers
// of sums over it, NaN: the row is not finite.
inline void pack_weights(int8_t, const PartSpace& space, int g) {
  const float* const P = space.groups[g].S;
  alignas(64) float tops[lanes<float>], bads[lanes<float>];
  F32 top = {}, bad = {};
  for (int i = 0; i < chunk / 4; ++i) {
    const F32 x = take(P + i * lanes<float>);
    top = max(top, absolute(x));
    bad += x * 0.f;
  }
  put(tops, top);
  put(bads, bad);
  for (int r = 0; r < part_rows; ++r) {
    float largest = 0, sum = 0;
    for (int k = 0; k < 4; ++k) {
      largest = tops[4 * r + k] > largest ? tops[4 * r + k] : largest;
      sum += bads[4 * r + k];
    }
    const Fixed by = fixed(sum == 0 ? largest : infinity);
    space.from[part_rows * g + r] = by.from;
    Bits32 y[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float* of_row = P + 4 * j * lanes<float> + 4 * r;
      const float* of[] = {of_row, of_row + lanes<float>, of_row + 2 * lanes<float>, of_row + 3 * lanes<float>};
      y[j] = (Bits32)digits_of(take_pieces(of) * by.to);
    }
    constexpr uint32_t even = 0x00ff00ff, odd = 0xff00ff00;
    const Bits32 a = (y[0] & even) | ((y[1] & even) << 8), b = ((y[0] >> 8) & even) | (y[1] & odd);
    const Bits32 c = (y[2] & even) | ((y[3] & even) << 8), d = ((y[2] >> 8) & even) | (y[3] & odd);
    const Bits32 plane[] = {(a & 0xffffu) | (c << 16), (b & 0xffffu) | (d << 16), (a >> 16) | (c & 0xffff0000u),
                            (b >> 16) | (d & 0xffff0000u)};
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) put_words(space.weights + g * tile_bytes + (4 * r + t) * row_bytes, plane[t]);
  }
}

// 64 channels of n <= 64 values as tiles of b, once for all rows of a task.
template <class M>
inline void bring_values(const int8_t* V, int64_t step, int n, char* to, Ahead ahead) {
  for (int i = 0; i < 16; ++i) {
    for (int k = 4 * i; k < 4 * i + 4 && k < n; ++k) ahead.row();
    M::fours(V + least(i, n - 1) * step, V + least(i + 16, n - 1) * step, V + least(i + 32, n - 1) * step,
             V + least(i + 48, n - 1) * step, to + i * row_bytes, tile_bytes);
  }
}

// The sums of row r over its digits: 64 channels, a register a tile.
HARKEN_INLINE void join_digits(const float* tiles, int r, float from, F32 (&x)[4]) {
  alignas(64) float y[4][lanes<float>];  // of 16 channels in a row, y[j] holds the j-th four
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const float* at = tiles + (j * tile_rows + 4 * r) * tile_words;
    F32 sum = take_sums(at + 3 * tile_words);
#pragma GCC unroll 4
    for (int t = 2; t >= 0; --t) sum = sum * 256.f + take_sums(at + t * tile_words);
    put(y[j], sum * from);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const float* of[] = {y[0] + 4 * c, y[1] + 4 * c, y[2] + 4 * c, y[3] + 4 * c};
    x[c] = take_pieces(of);
  }
}

// O of 64 channels from d on, which bring_values has packed.
template <class M>
inline void multiply_values(const int8_t* V, int64_t step, int n, bool careful, int64_t Dv, int64_t d,
                            const PartSpace& space, int g) {
  const PartRows& rows = space.groups[g];
  zero_sums<M>();
  M::take(Register<4>(), space.weights + g * tile_bytes, row_bytes);
  M::take(Register<5>(), space.V, row_bytes);
  M::multiply_bytes(Register<0>(), Register<4>(), Register<5>());
  M::take(Register<6>(), space.V + tile_bytes, row_bytes);
  M::multiply_bytes(Register<1>(), Register<4>(), Register<6>());
  M::take(Register<7>(), space.V + 2 * tile_bytes, row_bytes);
  M::multiply_bytes(Register<2>(), Register<4>(), Register<7>());
  M::take(Register<5>(), space.V + 3 * tile_bytes, row_bytes);
  M::multiply_bytes(Register<3>(), Register<4>(), Register<5>());
  put_sums<M>(space.sums);
  for (int r = 0; r < part_rows; ++r) {
    F32 x[4], bad = {};
    join_digits(space.sums, r, space.from[part_rows * g + r], x);
    for (int c = 0; c < 4; ++c) bad += x[c] * 0.f;
    float* const to = rows.O + r * Dv + d;
    if (any(bad != bad)) {
      plain_values(V, step, n, rows.S, careful ? rows.seen : nullptr, rows.O, Dv, r, d, d + 64);
    } else {
      for (int c = 0; c < 4; ++c) put(to + c * lanes<float>, take(to + c * lanes<float>) + x[c]);
    }
  }
}

}  // namespace
}  // namespace harken
