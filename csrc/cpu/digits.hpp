// digits.hpp - few queries on a matrix engine: int8 keys and values are multiplied as stored, by digits of q and P.
//
//     x = f (d0 + 2^8 d1 + 2^16 d2 + 2^24 d3),   -128 <= d <= 127,   f = 2^-30 max |x|
//
// over a row of q, or the weights of a row for 64 keys. The four digits of four rows are the 16 rows of a tile. The
// engine sums products of bytes exactly, so what is lost is 2^-30 of the largest number of a row, and the last few
// roundings.
#pragma once

#include "row_product.hpp"

namespace harken {
namespace {

using Engine = decltype(engine(0));

constexpr int digit_rows = 4, digit_depth = 64, digit_tile = 1024;  // rows at once, bytes of a row of a tile, of a tile

// Decode reads keys and values in this way. Not a matter of how they lie, on which no bit depends.
inline bool in_digits(const Problem& p) {
  return Engine::exists && p.type != Type::f64 && p.score == Score::dot && p.k.type == Type::i8 &&
         p.v.type == Type::i8 && p.D % digit_depth == 0 && p.Dv % digit_depth == 0 && p.D > 0 &&
         p.D <= 1024;  // sums of digits stay below 2^24, which float holds
}

// What a thread works in.
struct DigitSpace {
  char *K, *P, *V, *sums;  // [16][D]: the last keys of a chunk; a tile; four tiles; four tiles, [64][16] or [4][16][16]
};

// What makes the numbers of a row integers below 2^30, and what makes numbers of these.
struct Fixed {
  float to, from;
};

inline Fixed fixed(float top) {
  if (!(top < infinity)) return {0, __builtin_nanf("")};
  top = top > 0x1p-90f ? top : 0x1p-90f;
  return {0x1p30f / top, top * 0x1p-30f};
}

// Byte t is digit t.
HARKEN_INLINE Words32 digits_of(F32 x) { return (__builtin_convertvector(x, Words32) + 0x808080) ^ 0x808080; }

HARKEN_INLINE F32 take_sums(const char* at) {
  typedef int32_t Anywhere __attribute__((vector_size(vector_bytes), aligned(1), may_alias));
  const Words32 x = *(const Anywhere*)at;
  return __builtin_convertvector(x, F32);
}

// Q of four rows, [4][D], as tiles of b: [D / 64][16 times 4 channels][4 rows][4 digits][4 channels]. weight [4][4] is
// what a sum over a digit counts; NaN: the row is not finite.
template <class M>
inline void pack_digits(const float* Q, int64_t D, char* to, float* weight) {
  typedef int8_t All __attribute__((vector_size(vector_bytes)));
  All by_digit;  // [channel][digit] -> [digit][channel] in each 128 bits
#pragma GCC unroll 64
  for (int i = 0; i < vector_bytes; ++i) by_digit[i] = int8_t(i / 16 * 16 + i % 4 * 4 + i / 4 % 4);
  for (int r = 0; r < digit_rows; ++r) {
    const float* q = Q + r * D;
    F32 top = {}, bad = {};
    for (int64_t d = 0; d < D; d += lanes<float>) {
      top = max(top, absolute(take(q + d)));
      bad += take(q + d) * 0.f;
    }
    float largest = any(bad != bad) ? infinity : 0;
    for (int lane = 0; lane < lanes<float>; ++lane) largest = top[lane] > largest ? top[lane] : largest;
    const Fixed by = fixed(largest);
    for (int t = 0; t < 4; ++t) weight[4 * r + t] = by.from * float(1 << 8 * t);
    for (int64_t d = 0; d < D; d += lanes<float>) {
      char* at = to + d / 4 * digit_depth + 16 * r;
      float* const rows[] = {(float*)at, (float*)(at + digit_depth), (float*)(at + 2 * digit_depth),
                             (float*)(at + 3 * digit_depth)};
      put_pieces((F32)__builtin_shuffle((All)digits_of(take(q + d) * by.to), by_digit), rows, 4);
    }
  }
}

// S[k][r] = q_r . k as scores_of_rows makes it, for n <= 64 keys; packed and weight as above.
template <class M>
inline void scores_in_digits(const int8_t* K, int64_t step, int n, const float* Q, const char* packed,
                             const float* weight, int64_t D, float* S, const DigitSpace& space, Ahead ahead) {
  const char* at[4];
  int64_t apart[4];
  for (int i = 0; i < 4; ++i) {
    const bool whole = 16 * i + 16 <= n, some = 16 * i < n;
    at[i] = whole ? (const char*)K + 16 * i * step : some ? space.K : at[0];
    apart[i] = whole ? step : some ? D : apart[0];
    if (some && !whole)
      for (int r = 0; r < 16; ++r) __builtin_memcpy(space.K + r * D, K + least(16 * i + r, n - 1) * step, D);
  }
  M::zero(Register<0>());
  M::zero(Register<1>());
  M::zero(Register<2>());
  M::zero(Register<3>());
  for (int64_t d = 0; d < D; d += digit_depth) {
    M::take(Register<4>(), packed + d / 4 * digit_depth, digit_depth);
    for (int k = 0; k < n; k += D / digit_depth) ahead.row();
    M::take(Register<5>(), at[0] + d, apart[0]);
    M::multiply_bytes(Register<0>(), Register<5>(), Register<4>());
    M::take(Register<6>(), at[1] + d, apart[1]);
    M::multiply_bytes(Register<1>(), Register<6>(), Register<4>());
    M::take(Register<7>(), at[2] + d, apart[2]);
    M::multiply_bytes(Register<2>(), Register<7>(), Register<4>());
    M::take(Register<5>(), at[3] + d, apart[3]);
    M::multiply_bytes(Register<3>(), Register<5>(), Register<4>());
  }
  M::put(Register<0>(), space.sums, digit_depth);
  M::put(Register<1>(), space.sums + digit_tile, digit_depth);
  M::put(Register<2>(), space.sums + 2 * digit_tile, digit_depth);
  M::put(Register<3>(), space.sums + 3 * digit_tile, digit_depth);
  const F32 counts = take(weight);
  for (int k = 0; k < n; k += 4) {
    F32 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = take_sums(space.sums + (k + i) * digit_depth) * counts;
    put(S + 4 * k, sums<F32, 4>(x));
  }
  for (int r = 0; r < digit_rows; ++r) {
    if (weight[4 * r] == weight[4 * r]) continue;
    for (int k = 0; k < n; ++k) {
      F32 sum = {};
      for (int64_t d = 0; d < D; d += lanes<float>) sum += take(Q + r * D + d) * take(K + k * step + d);
      float s = 0;
      for (int lane = 0; lane < lanes<float>; ++lane) s += sum[lane];
      S[k / 4 * lanes<float> + 4 * r + k % 4] = s;
    }
  }
}

// P of four rows as a tile of a, [4 rows][4 digits][16 times the keys i, i + 16, i + 32, i + 48]; from[4] makes numbers
// of sums over it, NaN: the row is not finite.
template <class M>
inline void pack_weights(const float* P, char* to, float* from) {
  alignas(64) float tops[lanes<float>], bads[lanes<float>];
  F32 top = {}, bad = {};
  for (int i = 0; i < chunk / 4; ++i) {
    const F32 x = take(P + i * lanes<float>);
    top = max(top, absolute(x));
    bad += x * 0.f;
  }
  put(tops, top);
  put(bads, bad);
  for (int r = 0; r < digit_rows; ++r) {
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
    for (int t = 0; t < 4; ++t) put((float*)(to + (4 * r + t) * digit_depth), (F32)plane[t]);
  }
}

// O[r] += sum_k P[k][r] V[k] for n <= 64 keys.
template <class M>
inline void values_in_digits(const int8_t* V, int64_t step, int n, float* P, float* O, int64_t Dv,
                             const DigitSpace& space, Ahead ahead) {
  for (int i = (n + 3) / 4; i < chunk / 4; ++i) put(P + i * lanes<float>, F32{});
  float from[digit_rows];
  pack_weights<M>(P, space.P, from);
  M::take(Register<4>(), space.P, digit_depth);
  const int8_t* rows[chunk];
  for (int k = 0; k < chunk; ++k) rows[k] = V + least(k, n - 1) * step;
  for (int64_t block = 0; block < Dv; block += digit_depth) {
    for (int i = 0; i < 16; ++i) {
      for (int k = 4 * i; k < 4 * i + 4 && k < n && block == 0; ++k) ahead.row();
      M::fours(rows[i] + block, rows[i + 16] + block, rows[i + 32] + block, rows[i + 48] + block,
               space.V + i * digit_depth, digit_tile);
    }
    M::zero(Register<0>());
    M::zero(Register<1>());
    M::zero(Register<2>());
    M::zero(Register<3>());
    M::take(Register<5>(), space.V, digit_depth);
    M::multiply_bytes(Register<0>(), Register<4>(), Register<5>());
    M::take(Register<6>(), space.V + digit_tile, digit_depth);
    M::multiply_bytes(Register<1>(), Register<4>(), Register<6>());
    M::take(Register<7>(), space.V + 2 * digit_tile, digit_depth);
    M::multiply_bytes(Register<2>(), Register<4>(), Register<7>());
    M::take(Register<5>(), space.V + 3 * digit_tile, digit_depth);
    M::multiply_bytes(Register<3>(), Register<4>(), Register<5>());
    M::put(Register<0>(), space.sums, digit_depth);
    M::put(Register<1>(), space.sums + digit_tile, digit_depth);
    M::put(Register<2>(), space.sums + 2 * digit_tile, digit_depth);
    M::put(Register<3>(), space.sums + 3 * digit_tile, digit_depth);
    for (int r = 0; r < digit_rows; ++r) {
      if (from[r] != from[r]) continue;
      alignas(64) float x[4][lanes<float>];  // of 16 channels in a row, x[j] holds the j-th four
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const char* at = space.sums + j * digit_tile + 4 * r * digit_depth;
        F32 sum = take_sums(at + 3 * digit_depth);
#pragma GCC unroll 4
        for (int t = 2; t >= 0; --t) sum = sum * 256.f + take_sums(at + t * digit_depth);
        put(x[j], sum * from[r]);
      }
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const float* of[] = {x[0] + 4 * c, x[1] + 4 * c, x[2] + 4 * c, x[3] + 4 * c};
        float* to = O + r * Dv + block + c * lanes<float>;
        put(to, take(to) + take_pieces(of));
      }
    }
  }
  for (int r = 0; r < digit_rows; ++r) {
    if (from[r] == from[r]) continue;
    for (int64_t d = 0; d < Dv; d += lanes<float>) {
      F32 sum = {};
      for (int k = 0; k < n; ++k) sum += fill(P[k / 4 * lanes<float> + 4 * r + k % 4]) * take(V + k * step + d);
      put(O + r * Dv + d, take(O + r * Dv + d) + sum);
    }
  }
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
