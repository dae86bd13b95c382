// planes.hpp - numbers as sums of bfloat16 terms, x = h + m + l, and Q, K and V packed as the tiles of such terms.
//
// A matrix engine multiplies bfloat16 numbers and sums in float. One term holds a bfloat16, two a float16 exactly or a
// float to 2^-17, three a float exactly. A product of sums is the sum of the products that matter:
//
//     1 term:   h h
//     2 terms:  h m + m h + h h                        error 2^-17
//     3 terms:  l h + h l + m m + m h + h m + h h      error 2^-24
//
// A key or query with a number that its terms do not hold (infinity and NaN, or 2^64 and more, where a product of small
// terms could vanish beside one of large ones) becomes NaN; whoever sees it is computed without the engine. A value
// that is not finite must not even meet a weight of 0, so its row is left out, and whoever sees it computed without,
// too.
#pragma once

#include "rows.hpp"

namespace harken {
namespace {

// A tile is 16 rows of 64 bytes: a of 32 bfloat16 of a row each; b of 16 pairs, two numbers that a row of a meets one
// after the other. A step of a product sums over `depth` channels, or keys, held in `tiles` tiles of either factor.
template <int N>
struct Terms {
  static constexpr int tiles = N == 3 ? 3 : 2;
  static constexpr int depth = N == 1 ? 64 : 32;
};

// Three terms hold Q times the scale; fewer hold a 16-bit Q exactly but not the product, so the scale waits for S.
template <int N>
constexpr bool scaled_later = N < 3;

constexpr int tile_bytes = 1024, tile_rows = 16, tile_words = 16;

// The upper halves of two registers of words, as pairs.
HARKEN_INLINE Bits32 pairs(F32 low, F32 high) { return ((Bits32)low >> 16) | ((Bits32)high & 0xffff0000u); }

HARKEN_INLINE F32 upper_half(F32 x) { return (F32)(((Bits32)x + 0x8000u) & 0xffff0000u); }  // rounded, ties away from 0

// What is left after each term fits into 8 bits less, so that the third is exact and needs no rounding.
template <int N>
HARKEN_INLINE void split(F32 x, F32 (&term)[N]) {
#pragma GCC unroll 3
  for (int i = 0; i < N; ++i) {
    term[i] = i == 2 ? x : upper_half(x);
    x -= term[i];
  }
}

// Of a number of Q or K.
template <int N>
HARKEN_INLINE void split_or_nan(F32 x, F32 (&term)[N]) {
  if constexpr (N == 1) {
    term[0] = (F32)(narrow<F32, Bits32>(bf16{}, x) << 16);
  } else {
    split<N>(absolute(x) < 0x1p64f ? x : fill(__builtin_nanf("")), term);
  }
}

// Of a value; returns NaN if it is not finite or its first term is not, else 0. (A NaN may lose itself in rounding.)
template <int N>
HARKEN_INLINE F32 split_value(F32 x, F32 (&term)[N]) {
  if constexpr (N == 1) {
    term[0] = (F32)(narrow<F32, Bits32>(bf16{}, x) << 16);
    return term[0] * 0.f;
  } else {
    split<N>(x, term);
    return x * 0.f + term[0] * 0.f;
  }
}

HARKEN_INLINE void put_words(void* at, Bits32 x) { put((float*)at, (F32)x); }

// Which two of 32 channels are the i-th pair: neighbours in one term, where Q may be read as it lies, else those 16
// apart, which need no shuffle.
template <int N>
constexpr int first_of(int i) {
  return N == 1 ? 2 * i : i;
}
template <int N>
constexpr int second_of(int i) {
  return N == 1 ? 2 * i + 1 : i + 16;
}

// The rows of a block: n of them `step` numbers apart, then rows of zeros.
template <class E>
struct Sheet {
  const E* at;
  int64_t step;
  int n;
  const E* zeros;

  const E* row(int i) const { return i < n ? at + i * step : zeros; }
};

// Row r of the 32 of Q, times its factor, as it lies in the tiles of a: [2][steps][tiles][16][32]. `channels` is a
// multiple of 32; with one term the second tile of the last step may be missing.
template <int N, class E>
inline void pack_row(const E* row, float factor, int r, int64_t channels, char* to) {
  constexpr int depth = Terms<N>::depth, tiles = Terms<N>::tiles;
  const int64_t steps = (channels + depth - 1) / depth;
  to += (r / tile_rows * steps * tiles * tile_rows + r % tile_rows) * 64;
  for (int64_t d = 0; d < channels; d += 32, to += tile_bytes * N) {
    if constexpr (N == 1 && __is_same(E, bf16)) {
      put((float*)to, take((const float*)(row + d)));
      continue;
    }
    F32 a = take(row + d) * factor, b = take(row + d + 16) * factor, low[N], high[N];
    if constexpr (N == 1) {
      Words32 firsts;
#pragma GCC unroll 16
      for (int i = 0; i < lanes<float>; ++i) firsts[i] = first_of<N>(i);
      F32 even = __builtin_shuffle(a, b, firsts), odd = __builtin_shuffle(a, b, firsts + 1);
      a = even;
      b = odd;
    }
    split_or_nan<N>(a, low);
    split_or_nan<N>(b, high);
#pragma GCC unroll 3
    for (int i = 0; i < N; ++i) put_words(to + i * tile_bytes, pairs(low[i], high[i]));
  }
}

// 16 keys as tiles of b, [steps][tiles][16 pairs of channels][16 keys].
template <int N>
inline void pack_keys(const Sheet<float>& K, int k, int64_t channels, char* to) {
  if (k >= K.n) k = K.n - 1;  // hidden: they may repeat what was there
  for (int64_t d = 0; d < channels; d += 32, to += tile_bytes * N) {
    F32 x[32];
    take_transposed(K.at + k * K.step + d, K.step, K.n - k, x);
    take_transposed(K.at + k * K.step + d + 16, K.step, K.n - k, x + 16);
#pragma GCC unroll 16
    for (int i = 0; i < tile_rows; ++i) {
      F32 low[N], high[N];
      split_or_nan<N>(x[first_of<N>(i)], low);
      split_or_nan<N>(x[second_of<N>(i)], high);
#pragma GCC unroll 3
      for (int n = 0; n < N; ++n) put_words(to + n * tile_bytes + i * 64, pairs(low[n], high[n]));
    }
  }
}

template <int N>
inline void pack_keys(const Sheet<bf16>& K, int k, int64_t channels, char* to) {  // pairs as they are
  if (k >= K.n) k = K.n - 1;
  for (int64_t d = 0; d < channels; d += 32, to += tile_bytes) {
    F32 x[tile_rows];
    take_transposed((const float*)(K.at + k * K.step + d), K.step / 2, K.n - k, x);
#pragma GCC unroll 16
    for (int i = 0; i < tile_rows; ++i) put((float*)to + i * tile_words, x[i]);
  }
}

// Two rows of values, 16 channels at a time, as row i of the tiles `tile_step` apart. Returns NaN where one is not
// finite.
template <int N, class E>
HARKEN_INLINE F32 pair_rows(const E* low, const E* high, int64_t channels, char* to, int64_t tile_step) {
  F32 bad = {};
  for (int64_t d = 0; d < channels; d += 16, to += tile_step) {
    F32 a[N], b[N];
    bad += split_value<N>(take(low + d), a);
    bad += split_value<N>(take(high + d), b);
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) put_words(to + n * tile_bytes, pairs(a[n], b[n]));
  }
  return bad;
}

// 32 channels at a time without widening them: 3 instructions instead of 12 for 16 pairs.
template <>
HARKEN_INLINE F32 pair_rows<1, bf16>(const bf16* low, const bf16* high, int64_t channels, char* to, int64_t tile_step) {
  typedef uint16_t Halves __attribute__((vector_size(vector_bytes)));
  constexpr int n = vector_bytes / 2;
  Halves top = {}, near_pairs, far_pairs;
#pragma GCC unroll 32
  for (int i = 0; i < n; ++i) {
    near_pairs[i] = i / 2 + i % 2 * n;
    far_pairs[i] = near_pairs[i] + n / 2;
  }
  for (int64_t d = 0; d < channels; d += n, to += 2 * tile_step) {
    if (d + n > channels) {  // 16 are left
      Bits32 a = (Bits32)take(low + d), b = (Bits32)take(high + d);
      put_words(to, pairs((F32)a, (F32)b));
      Halves both = (Halves)(a | b >> 16) & 0x7fffu;
      top = top > both ? top : both;
      break;
    }
    Halves a = (Halves)take((const float*)(low + d)), b = (Halves)take((const float*)(high + d));
    Halves c = a & 0x7fffu, e = b & 0x7fffu;
    c = c > e ? c : e;
    top = top > c ? top : c;
    put_words(to, (Bits32)__builtin_shuffle(a, b, near_pairs));
    put_words(to + tile_step, (Bits32)__builtin_shuffle(a, b, far_pairs));
  }
  Halves special = (Halves)(top >= 0x7f80);
  return any((Words32)(Bits32)special != Words32{}) ? fill(__builtin_nanf("")) : F32{};
}

// A step of keys as tiles of b, [channels / 16][tiles][16][16 channels in pairs of keys]. Of 32 keys the i-th and the
// one 16 behind it are a pair, because so two registers of exponentials make a row of P without a shuffle. False: some
// are not finite. `leave_out`: rows that count as zero.
template <int N, class E>
inline bool pack_values(const Sheet<E>& V, uint64_t leave_out, int64_t channels, char* to) {
  F32 bad = {};
  auto row = [&](int i) { return leave_out >> i & 1 ? V.zeros : V.row(i); };
  for (int part = 0; part < Terms<N>::depth; part += 32)
    for (int i = 0; i < tile_rows; ++i) {
      char* at = to + part / 32 * tile_bytes + i * 64;
      bad += pair_rows<N>(row(part + i), row(part + i + tile_rows), channels, at, Terms<N>::tiles * tile_bytes);
    }
  return !any(bad != bad);
}

// The rows of V whose first terms are not all finite.
template <int N, class E>
inline uint64_t not_finite(const Sheet<E>& V, int64_t channels) {
  uint64_t which = 0;
  for (int i = 0; i < V.n; ++i) {
    F32 bad = {};
    for (int64_t d = 0; d < channels; d += 16) {
      F32 x[N];
      bad += split_value<N>(take(V.row(i) + d), x);
    }
    if (any(bad != bad)) which |= uint64_t(1) << i;
  }
  return which;
}

}  // namespace
}  // namespace harken
