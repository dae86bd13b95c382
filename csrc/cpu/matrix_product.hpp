// matrix_product.hpp - the two products as tiles of a matrix engine, and the exponentials dealt out among them.
//
// The engine works beside the vector units, so the products of one unit of keys and the exponentials of another go on
// together, if their instructions lie close: one row of exponentials after each tile product (every four: 18 % slower,
// every sixteen or one after the other: 30 %, bfloat16 with 64 channels).
#pragma once

#include "planes.hpp"

namespace harken {
namespace {

constexpr int strip_rows = 32;  // queries: two tiles

// A unit of keys, as many as a step of the second product sums over: S [32][keys], P [tiles][32][32].
template <int N>
constexpr int unit_keys = Terms<N>::depth;
constexpr int P_tile_bytes = 2 * tile_bytes;

// How much of a unit there is: 16 rows or 32, 32 keys or 64. (With 65 keys, a whole second unit would take 43 % more.)
struct Extent {
  int halves, parts;
};

// Rows of S on their way to rows of P, P = 2^(factor S). With more terms than one l += P; with one the engine sums P,
// as it is rounded: that spares the vector units, and errors of P leave the quotient O / l.
template <class M, int N>
struct Exponentials {
  int parts, left;  // rows
  const float* S;
  char* P;
  float* l;  // [32][16]
  float factor;
  int ticks;  // how often tick() will be called, in all
  int rows = left, due = 0;

  HARKEN_INLINE void one() {
    for (int part = 0; part < parts; ++part) {
      F32 a = take(S + part * 32), b = take(S + part * 32 + lanes<float>), low[N], high[N];
      if constexpr (scaled_later<N>) {
        a *= factor;
        b *= factor;
      }
      a = M::exp2_in_terms(Count<N>(), a);
      b = M::exp2_in_terms(Count<N>(), b);
      if constexpr (N == 1) {
        low[0] = a;
        high[0] = b;
      } else {
        put(l, take(l) + (a + b));
        split<N>(a, low);
        split<N>(b, high);
      }
#pragma GCC unroll 3
      for (int i = 0; i < N; ++i) put_words(P + (part + i) * P_tile_bytes, pairs(low[i], high[i]));
    }
    S += unit_keys<N>;
    P += 64;
    l += lanes<float>;
    --left;
  }
  HARKEN_INLINE void tick() {
    for (due += rows; due >= ticks; due -= ticks) one();
  }
  HARKEN_INLINE void rest() {
    while (left > 0) one();
  }
};

// l of P before it is rounded, where lse is asked for: sum[32][16] += 2^(factor S).
template <int N>
__attribute__((noinline)) void sum_exponentials(const float* S, const Extent& extent, float factor, float* sum) {
  for (int r = 0; r < extent.halves * tile_rows; ++r)
    for (int k = 0; k < extent.parts * 32; k += lanes<float>) {
      float* at = sum + r * lanes<float>;
      put(at, take(at) + exp2(take(S + r * unit_keys<N> + k) * factor));
    }
}

// Where the tiles of a factor lie: rows, tiles along its depth, and the lower 16 rows.
struct Tiles {
  const char* at;
  int64_t row, tile, half;
};

// The eight registers: two sums, a step of b, and the same step of a for both halves of the rows, or with three terms
// for one.
template <class M, int N>
struct Factors {
  static constexpr int tiles = Terms<N>::tiles;

  template <int half>
  static constexpr int a = N == 3 ? 5 : 4 + 2 * half;
  static constexpr int b = 2;

  template <int half>
  static HARKEN_INLINE void take_a(const Tiles& from, int64_t step, bool odd = false) {
    const char* at = from.at + half * from.half + step * tiles * from.tile;
    if constexpr (N == 3) M::take(Register<a<half> + 2>(), at + 2 * from.tile, from.row);
    if (!odd) M::take(Register<a<half> + 1>(), at + from.tile, from.row);
    M::take(Register<a<half>>(), at, from.row);
  }
  static HARKEN_INLINE void take_b(const char* at) {
    M::take_past(Register<b>(), at, 64);
    M::take_past(Register<b + 1>(), at + tile_bytes, 64);
    if constexpr (N == 3) M::take_past(Register<b + 2>(), at + 2 * tile_bytes, 64);
  }

  // sum[half] += a[half] b, small products first.
  template <int half, class Beside>
  static HARKEN_INLINE void multiply(Beside& beside, bool odd = false) {
    constexpr Register<half> sum;
    constexpr Register<a<half>> h;
    constexpr Register<a<half> + 1> m;
    constexpr Register<b> H;
    constexpr Register<b + 1> L;
    if constexpr (N == 1) {  // not terms but the two tiles of a step
      M::multiply(sum, h, H);
      beside.tick();
      if (!odd) M::multiply(sum, m, L);
      beside.tick();
    } else if constexpr (N == 2) {
      M::multiply(sum, h, L);
      beside.tick();
      M::multiply(sum, m, H);
      M::multiply(sum, h, H);
      beside.tick();
    } else {
      M::multiply(sum, Register<a<half> + 2>(), H);
      M::multiply(sum, m, H);
      beside.tick();
      M::multiply(sum, h, H);
      M::multiply(sum, m, L);
      beside.tick();
      M::multiply(sum, h, L);
      M::multiply(sum, h, Register<b + 2>());
      beside.tick();
    }
  }
  static constexpr int ticks = N == 3 ? 3 : 2;  // of one multiply
};

// S[32][unit_keys] = Q K^T
template <class M, int N, class Beside>
HARKEN_INLINE void matrix_scores(const Tiles Q, const char* K, int64_t channels, Extent extent, float* S,
                                 Beside& beside) {
  using R = Factors<M, N>;
  constexpr int depth = Terms<N>::depth, step_bytes = R::tiles * tile_bytes;
  constexpr int64_t S_step = unit_keys<N> * 4;
  const int64_t steps = (channels + depth - 1) / depth;
  const bool odd = channels % depth != 0;
  const int64_t key_bytes = channels / 32 * N * tile_bytes;
  const bool resident = N < 3 && steps == 1;
  if (resident) {
    R::template take_a<0>(Q, 0, odd);
    if (extent.halves == 2) R::template take_a<1>(Q, 0, odd);
  }
  for (int k = 0; k < 32 * extent.parts; k += tile_rows, K += key_bytes) {
    M::zero(Register<0>());
    M::zero(Register<1>());
    for (int64_t s = 0; s < steps; ++s) {
      const bool last = odd && s + 1 == steps;
      R::take_b(K + s * step_bytes);
      if (!resident) R::template take_a<0>(Q, s, last);
      R::template multiply<0>(beside, last);
      if (extent.halves == 1) continue;
      if (!resident) R::template take_a<1>(Q, s, last);
      R::template multiply<1>(beside, last);
    }
    M::put(Register<0>(), S + k, S_step);
    if (extent.halves == 2) M::put(Register<1>(), S + tile_rows * unit_keys<N> + k, S_step);
  }
}

// O[32][channels] += P V, or = where this is the first unit. With one term l[32][16] += P 1 too, alike in all columns.
template <class M, int N, class Beside>
HARKEN_INLINE void matrix_values(const Tiles P, const char* V, int64_t channels, Extent extent, float* O, float* l,
                                 bool first, Beside& beside) {
  using R = Factors<M, N>;
  constexpr Register<0> upper;
  constexpr Register<1> lower;
  constexpr int step_bytes = R::tiles * tile_bytes;
  const int64_t O_step = channels * 4;
  const bool odd = N == 1 && extent.parts == 1, both = extent.halves == 2;
  if (N < 3) {
    R::template take_a<0>(P, 0, odd);
    if (both) R::template take_a<1>(P, 0, odd);
  }
  auto begin = [&](auto half, const float* at, int64_t step)
                   __attribute__((always_inline)) { first ? M::zero(half) : M::take(half, at, step); };
  for (int64_t d = 0; d < channels; d += tile_rows, V += step_bytes) {
    float *above = O + d, *below = O + tile_rows * channels + d;
    R::take_b(V);
    begin(upper, above, O_step);
    if (N == 3) R::template take_a<0>(P, 0);
    R::template multiply<0>(beside, odd);
    M::put(upper, above, O_step);
    if (!both) continue;
    begin(lower, below, O_step);
    if (N == 3) R::template take_a<1>(P, 0);
    R::template multiply<1>(beside, odd);
    M::put(lower, below, O_step);
  }
  if constexpr (N == 1) {
    alignas(64) static const uint32_t ones[tile_words] = {
        0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80,
        0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    M::take(Register<2>(), ones, 0);
    M::take(Register<3>(), ones, 0);
    begin(upper, l, 64);
    R::template multiply<0>(beside, odd);
    M::put(upper, l, 64);
    if (!both) return;
    begin(lower, l + tile_rows * tile_words, 64);
    R::template multiply<1>(beside, odd);
    M::put(lower, l + tile_rows * tile_words, 64);
  }
}

}  // namespace
}  // namespace harken
