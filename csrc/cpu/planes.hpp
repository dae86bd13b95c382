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

// As they come from outside, times a factor.
template <int N, class E>
HARKEN_INLINE void take_terms(const E* at, F32 factor, F32 (&term)[N]) {
  if constexpr (N == 1) {
    term[0] = __is_same(E, bf16) ? take(at) : (F32)(narrow<F32, Bits32>(bf16{}, take(at)) << 16);
  } else {
    F32 x = take(at) * factor;
    split<N>(absolute(x) < 0x1p64f ? x : fill(__builtin_nanf("")), term);
  }
}

// A value; returns NaN if it is not finite or its first term is not, else 0. (A NaN may lose itself in rounding.)
template <int N, class E>
HARKEN_INLINE F32 take_value(const E* at, F32 (&term)[N]) {
  if constexpr (N == 1) {
    take_terms<N>(at, F32{}, term);
    return term[0] * 0.f;
  } else {
    F32 x = take(at);
    split<N>(x, term);
    return x * 0.f + term[0] * 0.f;
  }
}

HARKEN_INLINE void put_words(void* at, Bits32 x) { put((float*)at, (F32)x); }

// 32 numbers of a row in order, each term of them for itself.
template <int N, class E>
HARKEN_INLINE void take_pairs(const E* at, F32 factor, Bits32 (&out)[N]) {
  if constexpr (N == 1 && __is_same(E, bf16)) {
    out[0] = (Bits32)take((const float*)at);
  } else {
    Words32 evens;
#pragma GCC unroll 16
    for (int i = 0; i < lanes<float>; ++i) evens[i] = 2 * i;
    F32 a[N], b[N];
    take_terms<N>(at, factor, a);
    take_terms<N>(at + lanes<float>, factor, b);
#pragma GCC unroll 3
    for (int i = 0; i < N; ++i)
      out[i] = pairs(__builtin_shuffle(a[i], b[i], evens), __builtin_shuffle(a[i], b[i], evens + 1));
  }
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

// Row r of the 32 of Q, times its factor, as it lies in the tiles of a:
// [2][steps][tiles][16][32]. `channels` is a multiple of 32; with one term the second tile of the last step may be
// missing.
template <int N, class E>
inline void pack_row(const E* row, float factor, int r, int64_t channels, char* to) {
  constexpr int depth = Terms<N>::depth, tiles = Terms<N>::tiles;
  const int64_t steps = (channels + depth - 1) / depth;
  to += (r / tile_rows * steps * tiles * tile_rows + r % tile_rows) * 64;
  for (int64_t d = 0; d < channels; d += 32, to += tile_bytes * N) {
    Bits32 x[N];
    take_pairs<N>(row + d, fill(factor), x);
    for (int i = 0; i < N; ++i) put_words(to + i * tile_bytes, x[i]);
  }
}

// 16 keys as tiles of b, [steps][tiles][16 pairs of channels][16 keys]: a transposition of pairs.
template <int N, class E>
inline void pack_keys(const Sheet<E>& K, int k, int64_t channels, char* to) {
  if (k >= K.n) k = K.n - 1;  // hidden: they may repeat what was there
  for (int64_t d = 0; d < channels; d += 32, to += tile_bytes * N) {
    F32 x[tile_rows];
    if constexpr (N == 1 && __is_same(E, bf16)) {
      take_transposed((const float*)(K.at + k * K.step + d), K.step / 2, K.n - k, x);
      for (int i = 0; i < tile_rows; ++i) put((float*)to + i * tile_words, x[i]);
    } else {
      alignas(64) float rows[N][tile_rows * tile_words];
      for (int r = 0; r < tile_rows; ++r) {
        Bits32 words[N];
        take_pairs<N>(K.at + least(k + r, K.n - 1) * K.step + d, fill(1.f), words);
        for (int i = 0; i < N; ++i) put_words(rows[i] + r * tile_words, words[i]);
      }
      for (int i = 0; i < N; ++i) {
        take_transposed(rows[i], tile_words, tile_rows, x);
        for (int r = 0; r < tile_rows; ++r) put((float*)(to + i * tile_bytes) + r * tile_words, x[r]);
      }
    }
  }
}

// A step of keys as tiles of b, [channels / 16][tiles][16][16 channels in pairs of keys]. Of 32 keys the i-th and the
// one 16 behind it are a pair, because so two registers of exponentials make a row of P without a shuffle. False: some
// are not finite. `leave_out`: rows that count as zero.
template <int N, class E>
inline bool pack_values(const Sheet<E>& V, uint64_t leave_out, int64_t channels, char* to) {
  constexpr int depth = Terms<N>::depth, tiles = Terms<N>::tiles;
  F32 bad = {};
  auto row = [&](int i) { return leave_out >> i & 1 ? V.zeros : V.row(i); };
  for (int part = 0; part < depth; part += 32)
    for (int i = part; i < part + tile_rows; ++i) {
      const E *low = row(i), *high = row(i + tile_rows);
      char* at = to + part / 32 * tile_bytes + i % 32 * 64;
      for (int64_t d = 0; d < channels; d += 16, at += tiles * tile_bytes) {
        F32 a[N], b[N];
        bad += take_value<N>(low + d, a);
        bad += take_value<N>(high + d, b);
#pragma GCC unroll 3
        for (int n = 0; n < N; ++n) put_words(at + n * tile_bytes, pairs(a[n], b[n]));
      }
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
      bad += take_value<N>(V.row(i) + d, x);
    }
    if (any(bad != bad)) which |= uint64_t(1) << i;
  }
  return which;
}

}  // namespace
}  // namespace harken
