// parts.hpp - few queries on a matrix engine: keys and values are multiplied as stored, by the parts of q and P.
//
//     x = sum_t weight_t part_t        four parts t, each of which the engine multiplies exactly with what is stored
//
//     int8       digits   x = f (d0 + 2^8 d1 + 2^16 d2 + 2^24 d3),   -128 <= d <= 127,   f = 2^-30 max |x|
//     bfloat16   terms    x = f (h + m + l + 0),                     f = a power of two, of the size of max |x|
//
// over a row of q, or the weights of a row for 64 keys. The four parts of four rows are the 16 rows of a tile. The sums
// of digits are exact, so what is lost is 2^-30 of the largest number of a row, and the last few roundings; those of
// terms are rounded as floats are. What comes out without being finite is computed again by vectors, chunk by chunk.
#pragma once

#include "planes.hpp"
#include "row_product.hpp"

namespace harken {
namespace {

using Engine = decltype(engine(0));

constexpr int part_rows = 4, row_bytes = 64, chunk_tiles = chunk / tile_rows;  // rows at once, bytes of a row of a tile

template <class E>
constexpr int depth_of = row_bytes / int(sizeof(E));  // channels of a key in a row of a tile

// What makes the numbers of a row integers below 2^30, and what makes numbers of these.
struct Fixed {
  float to, from;
};

inline Fixed fixed(float top) {
  if (!(top < infinity)) return {0, __builtin_nanf("")};
  top = top > 0x1p-90f ? top : 0x1p-90f;
  return {0x1p30f / top, top * 0x1p-30f};
}

// What makes the largest number of a row of the size of 1, so that none of its terms is subnormal; and back.
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

// Byte t is digit t.
HARKEN_INLINE Words32 digits_of(F32 x) { return (__builtin_convertvector(x, Words32) + 0x808080) ^ 0x808080; }

HARKEN_INLINE F32 take_sums(const char* at) {
  typedef int32_t Anywhere __attribute__((vector_size(vector_bytes), aligned(1), may_alias));
  const Words32 x = *(const Anywhere*)at;
  return __builtin_convertvector(x, F32);
}

// --- the parts of q ---

// 16 channels of a row of q as they lie in tiles of b, [16 times some channels][4 rows][4 parts][these channels].
HARKEN_INLINE void put_parts(int8_t, F32 x, char* to) {
  typedef int8_t All __attribute__((vector_size(vector_bytes)));
  All by_digit;  // [channel][digit] -> [digit][channel] in each 128 bits
#pragma GCC unroll 64
  for (int i = 0; i < vector_bytes; ++i) by_digit[i] = int8_t(i / 16 * 16 + i % 4 * 4 + i / 4 % 4);
  float* const rows[] = {(float*)to, (float*)(to + row_bytes), (float*)(to + 2 * row_bytes),
                         (float*)(to + 3 * row_bytes)};
  put_pieces((F32)__builtin_shuffle((All)digits_of(x), by_digit), rows, 4);
}
HARKEN_INLINE void put_parts(bf16, F32 x, char* to) {
  typedef uint64_t Twos __attribute__((vector_size(vector_bytes)));
  F32 term[3];
  split<3>(x, term);
  auto both = [](F32 x) { return ((Twos)x >> 16 & 0xffff) | ((Twos)x >> 32 & 0xffff0000); };  // of two channels
  F64 low, high;
  interleave<F64, 1>((F64)(both(term[0]) | both(term[1]) << 32), (F64)both(term[2]), low, high);
  float* rows[8];
  for (int i = 0; i < 4; ++i) {
    rows[i] = (float*)(to + 2 * i * row_bytes);
    rows[i + 4] = (float*)(to + (2 * i + 1) * row_bytes);
  }
  put_pieces((F32)low, rows, 4);
  put_pieces((F32)high, rows + 4, 4);
}

// Q of four rows, [4][D], as tiles of b. weight [4][4] is what a sum over a part counts; NaN: the row is not finite.
template <class E>
inline void pack_queries(const float* Q, int64_t D, char* to, float* weight) {
  constexpr bool digits = __is_same(E, int8_t);
  for (int r = 0; r < part_rows; ++r) {
    const float* q = Q + r * D;
    F32 top = {}, bad = {};
    for (int64_t d = 0; d < D; d += lanes<float>) {
      top = max(top, absolute(take(q + d)));
      bad += take(q + d) * 0.f;
    }
    float largest = any(bad != bad) ? infinity : 0;
    for (int lane = 0; lane < lanes<float>; ++lane) largest = top[lane] > largest ? top[lane] : largest;
    const Fixed by = digits ? fixed(largest) : of_size_one(largest);
    for (int t = 0; t < 4; ++t) weight[4 * r + t] = digits ? by.from * float(1 << 8 * t) : by.from;
    for (int64_t d = 0; d < D; d += lanes<float>)
      put_parts(E{}, take(q + d) * by.to, to + d * int64_t(sizeof(E)) * 16 + 16 * r);
  }
}

// --- the parts of P ---

// P of four rows as a tile of a, [4 rows][4 digits][16 times the keys i, i + 16, i + 32, i + 48]; from[4] makes numbers
// of sums over it, NaN: the row is not finite.
inline void pack_weights(int8_t, const float* P, char* to, float* from) {
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
    from[r] = by.from;
    Bits32 y[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float* of_row = P + 4 * j * lanes<float> + 4 * r;
      const float* rows[] = {of_row, of_row + lanes<float>, of_row + 2 * lanes<float>, of_row + 3 * lanes<float>};
      y[j] = (Bits32)digits_of(take_pieces(rows) * by.to);
    }
    constexpr uint32_t even = 0x00ff00ff, odd = 0xff00ff00;
    const Bits32 a = (y[0] & even) | ((y[1] & even) << 8), b = ((y[0] >> 8) & even) | (y[1] & odd);
    const Bits32 c = (y[2] & even) | ((y[3] & even) << 8), d = ((y[2] >> 8) & even) | (y[3] & odd);
    const Bits32 plane[] = {(a & 0xffffu) | (c << 16), (b & 0xffffu) | (d << 16), (a >> 16) | (c & 0xffff0000u),
                            (b >> 16) | (d & 0xffff0000u)};
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) put((float*)(to + (4 * r + t) * row_bytes), (F32)plane[t]);
  }
}

// The same as two tiles of terms, of 32 keys each, where the keys i and i + 16 are a pair.
inline void pack_weights(bf16, const float* P, char* to, float* from) {
  for (int half = 0; half < 2; ++half, P += 8 * lanes<float>, to += tile_bytes)
    for (int r = 0; r < part_rows; ++r) {
      F32 term[2][3];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const float* of_row = P + 4 * i * lanes<float> + 4 * r;
        const float* rows[] = {of_row, of_row + lanes<float>, of_row + 2 * lanes<float>, of_row + 3 * lanes<float>};
        split<3>(take_pieces(rows), term[i]);
      }
#pragma GCC unroll 3
      for (int t = 0; t < 3; ++t) put_words(to + (4 * r + t) * row_bytes, pairs(term[0][t], term[1][t]));
      put_words(to + (4 * r + 3) * row_bytes, Bits32{});
      from[r] = 1;
    }
}

// --- numbers from sums over parts ---

template <class E>
HARKEN_INLINE F32 take_sums_of(const char* at) {
  if constexpr (__is_same(E, int8_t)) {
    return take_sums(at);
  } else {
    return take((const float*)at);
  }
}

// The sums of row r over its parts: 64 channels, a register a tile.
HARKEN_INLINE void join_parts(int8_t, const char* tiles, int r, float from, F32 (&x)[4]) {
  alignas(64) float y[4][lanes<float>];  // of 16 channels in a row, y[j] holds the j-th four
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const char* at = tiles + j * tile_bytes + 4 * r * row_bytes;
    F32 sum = take_sums(at + 3 * row_bytes);
#pragma GCC unroll 4
    for (int t = 2; t >= 0; --t) sum = sum * 256.f + take_sums(at + t * row_bytes);
    put(y[j], sum * from);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const float* of[] = {y[0] + 4 * c, y[1] + 4 * c, y[2] + 4 * c, y[3] + 4 * c};
    x[c] = take_pieces(of);
  }
}
HARKEN_INLINE void join_parts(bf16, const char* tiles, int r, float, F32 (&x)[4]) {
  alignas(64) float y[4][lanes<float>];  // y[2 i] and y[2 i + 1] have 32 channels in turns of four
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const float* at = (const float*)(tiles + j * tile_bytes + 4 * r * row_bytes);
    put(y[j], (take(at + 2 * tile_words) + take(at + tile_words)) + take(at));
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const float *even = y[c & 2] + c % 2 * 8, *odd = y[(c & 2) + 1] + c % 2 * 8;
    const float* of[] = {even, odd, even + 4, odd + 4};
    x[c] = take_pieces(of);
  }
}

}  // namespace
}  // namespace harken
