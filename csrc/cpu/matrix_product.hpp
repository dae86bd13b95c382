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

// How many tiles of 16 keys of a unit the upper and the lower 16 queries of a strip meet; 0: there are none of these
// queries. Beyond it nothing is seen: 65 keys cost as 80 and not as 128, and a quarter of a diagonal is left out.
struct Extent {
  int upper, lower;

  int tiles() const { return upper > lower ? upper : lower; }
  int halves() const { return lower ? 2 : 1; }
  bool even() const { return upper % 2 == 0 && (lower == upper || lower == 0); }
};

// What the first row of a strip sees of a unit, counted from its first key: first <= j < end, and j < last. Each row
// sees the same as the one above, a key later, but for `last`.
struct Edges {
  bool any;  // is some key of the extent hidden from some row, or do rows differ in tiles?
  float first, end, last;

  HARKEN_INLINE F32 hide(F32 s, int row, int tile) const {
    F32 j;
    for (int i = 0; i < lanes<float>; ++i) j[i] = float(i);
    const float below = end + float(row);
    return hidden_outside(s, j + float(tile * tile_rows), fill(first + float(row)), fill(below < last ? below : last));
  }
};

// Rows of S on their way to rows of P, P = 2^(factor S). With more terms than one l += P; with one the engine sums P,
// as it is rounded: that spares the vector units, and errors of P leave the quotient O / l.
template <class M, int N>
struct Row {
  const float* S;
  char* P;
  float* l;  // [32][16]
  float factor;

  HARKEN_INLINE F32 score(int tile) const {
    F32 s = take(S + tile * lanes<float>);
    if constexpr (scaled_later<N>) s *= factor;
    return s;
  }
  HARKEN_INLINE static F32 weight(F32 s) { return M::exp2_in_terms(Count<N>(), s); }

  HARKEN_INLINE void put_part(int part, F32 a, F32 b) const {  // 32 weights
    F32 low[N], high[N];
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
  HARKEN_INLINE void step() {
    S += unit_keys<N>;
    P += 64;
    l += lanes<float>;
  }
};

// All rows of a unit are alike and see all of it. (Rows that might have an edge cost these 3 to 7 %.)
template <class M, int N>
struct WholeRow : Row<M, N> {
  int parts;

  HARKEN_INLINE void next() {
    for (int part = 0; part < parts; ++part)
      this->put_part(part, this->weight(this->score(2 * part)), this->weight(this->score(2 * part + 1)));
    this->step();
  }
};

template <class M, int N>
struct EdgeRow : Row<M, N> {
  Extent extent;
  Edges edges;
  int row;

  HARKEN_INLINE F32 seen_weight(int tile, int tiles) const {
    return tile < tiles ? this->weight(edges.hide(this->score(tile), row, tile)) : F32{};
  }
  HARKEN_INLINE void next() {
    const int tiles = row < tile_rows ? extent.upper : extent.lower;
    for (int t = 0; t < tiles; t += 2) this->put_part(t / 2, seen_weight(t, tiles), seen_weight(t + 1, tiles));
    this->step();
    ++row;
  }
};

// The rows of a unit dealt out: some at each tick.
template <class Row>
struct Exponentials {
  Row row;
  int rows, ticks;  // ticks: how often tick() will be called, in all
  int left = rows, due = 0;

  HARKEN_INLINE void one() {
    row.next();
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
__attribute__((noinline)) void sum_exponentials(const float* S, const Extent& extent, const Edges& edges, float factor,
                                                float* sum) {
  for (int r = 0; r < extent.halves() * tile_rows; ++r)
    for (int t = 0; t < (r < tile_rows ? extent.upper : extent.lower); ++t) {
      float* at = sum + r * lanes<float>;
      F32 s = take(S + r * unit_keys<N> + t * lanes<float>) * factor;
      put(at, take(at) + exp2(edges.any ? edges.hide(s, r, t) : s));
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
    if (extent.lower) R::template take_a<1>(Q, 0, odd);
  }
  for (int t = 0; t < extent.tiles(); ++t, K += key_bytes, S += tile_rows) {
    const bool upper = t < extent.upper, lower = t < extent.lower;
    M::zero(Register<0>());
    M::zero(Register<1>());
    for (int64_t s = 0; s < steps; ++s) {
      const bool last = odd && s + 1 == steps;
      R::take_b(K + s * step_bytes);
      if (upper) {
        if (!resident) R::template take_a<0>(Q, s, last);
        R::template multiply<0>(beside, last);
      }
      if (lower) {
        if (!resident) R::template take_a<1>(Q, s, last);
        R::template multiply<1>(beside, last);
      }
    }
    if (upper) M::put(Register<0>(), S, S_step);
    if (lower) M::put(Register<1>(), S + tile_rows * unit_keys<N>, S_step);
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
  const bool odd = N == 1 && extent.upper <= 2, lower_odd = N == 1 && extent.lower <= 2, both = extent.lower > 0;
  if (N < 3) {
    R::template take_a<0>(P, 0, odd);
    if (both) R::template take_a<1>(P, 0, lower_odd);
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
    R::template multiply<1>(beside, lower_odd);
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
    R::template multiply<1>(beside, lower_odd);
    M::put(lower, l + tile_rows * tile_words, 64);
  }
}

}  // namespace
}  // namespace harken
