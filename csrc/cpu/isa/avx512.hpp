// avx512.hpp - AVX-512 F, BW, DQ, VL: 16 floats, 32 registers, exponents by instruction.
#pragma once

#include <immintrin.h>

namespace harken {
namespace {
constexpr int vector_bytes = 64;
}
}  // namespace harken

#include "../lanes.hpp"

namespace harken {
namespace {

constexpr uint32_t needs = has_avx2 | has_fma | has_f16c | has_avx512;

// Sums held in a tile of the products, rows x columns of registers: 6 x 4 = 24 of 32, with 4 for the columns and 1 for
// a row.
constexpr int columns = 4;
constexpr int rows_for(int c) { return c == 4 ? 6 : c == 3 ? 8 : c == 2 ? 12 : 16; }

HARKEN_INLINE F32 max(F32 a, F32 b) { return (F32)_mm512_max_ps((__m512)a, (__m512)b); }
HARKEN_INLINE F64 max(F64 a, F64 b) { return (F64)_mm512_max_pd((__m512d)a, (__m512d)b); }
HARKEN_INLINE bool any(Words32 truth) { return _mm512_movepi32_mask((__m512i)truth) != 0; }
HARKEN_INLINE bool any(Words64 truth) { return _mm512_movepi64_mask((__m512i)truth) != 0; }

HARKEN_INLINE F32 take(const f16* at) { return (F32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at)); }
HARKEN_INLINE void put(f16* at, F32 x) {
  _mm256_storeu_si256((__m256i*)at, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}

HARKEN_INLINE F32 take(const int8_t* at) {
  return (F32)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)at)));
}

// By masks: what lies behind is not touched.
HARKEN_INLINE __mmask16 first_of_16(int64_t n) { return __mmask16(n >= 16 ? 0xffff : (1u << n) - 1); }
HARKEN_INLINE __mmask8 first_of_8(int64_t n) { return __mmask8(n >= 8 ? 0xff : (1u << n) - 1); }
HARKEN_INLINE F32 take_some(const float* at, int64_t n) { return (F32)_mm512_maskz_loadu_ps(first_of_16(n), at); }
HARKEN_INLINE F64 take_some(const double* at, int64_t n) { return (F64)_mm512_maskz_loadu_pd(first_of_8(n), at); }
HARKEN_INLINE void put_some(float* at, F32 x, int64_t n) { _mm512_mask_storeu_ps(at, first_of_16(n), (__m512)x); }
HARKEN_INLINE void put_some(double* at, F64 x, int64_t n) { _mm512_mask_storeu_pd(at, first_of_8(n), (__m512d)x); }

// VREDUCE gives x - floor(x), VSCALEF multiplies by 2^floor(x): 7 operations instead of 9, and no clamp, because
// scalef(p, -inf) == 0. 1 to 2 % of a whole call over the general form. Coefficients: minimax on [0, 1), constant held
// at 1.
HARKEN_INLINE F32 exp2(F32 x) {
  F32 f = (F32)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  F32 p = fill(1.867130050e-03f);
  p = p * f + 9.017030708e-03f;
  p = p * f + 5.579991266e-02f;
  p = p * f + 2.401644439e-01f;
  p = p * f + 6.931512952e-01f;
  p = p * f + 1.f;
  return (F32)_mm512_scalef_ps((__m512)p, (__m512)x);
}

HARKEN_INLINE F64 exp2(F64 x) {
  constexpr double c[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c4ffp-3,  0x1.c6b08d704fa4fp-5,  0x1.3b2ab6fa48563p-7,
                          0x1.5d87fecf83f7bp-10, 0x1.4309065c8357ap-13, 0x1.ffce434c232f0p-17, 0x1.629e703ac7f08p-20,
                          0x1.b7a2459dca29cp-24, 0x1.c7ea67ee59ebfp-28, 0x1.509edf2ecfdf8p-31};
  F64 f = (F64)_mm512_reduce_pd((__m512d)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  F64 p = fill(c[10]);
#pragma GCC unroll 10
  for (int i = 9; i >= 0; --i) p = p * f + c[i];
  p = p * f + 1.;
  return (F64)_mm512_scalef_pd((__m512d)p, (__m512d)x);
}

HARKEN_INLINE F32 exp2_of_any(F32 x) { return exp2(x); }
HARKEN_INLINE F64 exp2_of_any(F64 x) { return exp2(x); }

HARKEN_INLINE F32 scaled(F32 p, F32 n) { return (F32)_mm512_scalef_ps((__m512)p, (__m512)n); }
HARKEN_INLINE F64 scaled(F64 p, F64 n) { return (F64)_mm512_scalef_pd((__m512d)p, (__m512d)n); }

// 14 bits, doubled once or twice: a division takes the time of 32 multiply-adds, this of 7 or 11.
HARKEN_INLINE F32 ratio(F32 a, F32 b) {
  F32 r = (F32)_mm512_rcp14_ps((__m512)b);
  return a * (r + r * (1.f - b * r));
}
HARKEN_INLINE F64 ratio(F64 a, F64 b) {
  F64 r = (F64)_mm512_rcp14_pd((__m512d)b);
  r = r + r * (1. - b * r);
  return a * (r + r * (1. - b * r));
}

// Masked broadcasts from memory: loads, not shuffles.
HARKEN_INLINE F32 take_pieces(const float* const* rows) {
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(rows[0]));
  x = _mm512_mask_broadcast_f32x4(x, 0x00f0, _mm_loadu_ps(rows[1]));
  x = _mm512_mask_broadcast_f32x4(x, 0x0f00, _mm_loadu_ps(rows[2]));
  return (F32)_mm512_mask_broadcast_f32x4(x, 0xf000, _mm_loadu_ps(rows[3]));
}
HARKEN_INLINE F64 take_pieces(const double* const* rows) {
  __m512d x = _mm512_castpd128_pd512(_mm_loadu_pd(rows[0]));
  x = _mm512_mask_broadcast_f64x2(x, 0x0c, _mm_loadu_pd(rows[1]));
  x = _mm512_mask_broadcast_f64x2(x, 0x30, _mm_loadu_pd(rows[2]));
  return (F64)_mm512_mask_broadcast_f64x2(x, 0xc0, _mm_loadu_pd(rows[3]));
}
HARKEN_INLINE void put_pieces(F32 x, float* const* rows, int n) {
  if (n > 0) _mm_storeu_ps(rows[0], _mm512_castps512_ps128((__m512)x));
  if (n > 1) _mm_storeu_ps(rows[1], _mm512_extractf32x4_ps((__m512)x, 1));
  if (n > 2) _mm_storeu_ps(rows[2], _mm512_extractf32x4_ps((__m512)x, 2));
  if (n > 3) _mm_storeu_ps(rows[3], _mm512_extractf32x4_ps((__m512)x, 3));
}
HARKEN_INLINE void put_pieces(F64 x, double* const* rows, int n) {
  if (n > 0) _mm_storeu_pd(rows[0], _mm512_castpd512_pd128((__m512d)x));
  if (n > 1) _mm_storeu_pd(rows[1], _mm512_extractf64x2_pd((__m512d)x, 1));
  if (n > 2) _mm_storeu_pd(rows[2], _mm512_extractf64x2_pd((__m512d)x, 2));
  if (n > 3) _mm_storeu_pd(rows[3], _mm512_extractf64x2_pd((__m512d)x, 3));
}

}  // namespace
}  // namespace harken
