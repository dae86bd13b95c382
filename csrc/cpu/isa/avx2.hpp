// avx2.hpp - AVX2 with FMA and F16C: 8 floats, 16 registers, fused multiply-add.
#pragma once

#include <immintrin.h>

namespace harken {
namespace {
constexpr int vector_bytes = 32;
}
}  // namespace harken

#include "../lanes.hpp"

namespace harken {
namespace {

constexpr uint32_t needs = has_avx2 | has_fma | has_f16c;

// Sums held in a tile of the products, rows x columns of registers: 6 x 2 = 12 of 16, with 2 for the columns and 1 for
// a row.
constexpr int columns = 2;
constexpr int rows_for(int c) { return c == 2 ? 6 : 12; }

HARKEN_INLINE F32 max(F32 a, F32 b) { return (F32)_mm256_max_ps((__m256)a, (__m256)b); }
HARKEN_INLINE F64 max(F64 a, F64 b) { return (F64)_mm256_max_pd((__m256d)a, (__m256d)b); }
HARKEN_INLINE bool any(Words32 truth) { return _mm256_movemask_ps((__m256)truth) != 0; }
HARKEN_INLINE bool any(Words64 truth) { return _mm256_movemask_pd((__m256d)truth) != 0; }

HARKEN_INLINE F32 take(const f16* at) { return (F32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at)); }
HARKEN_INLINE void put(f16* at, F32 x) {
  _mm_storeu_si128((__m128i*)at, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}

HARKEN_INLINE F32 take(const int8_t* at) {
  return (F32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)at)));
}

HARKEN_INLINE F32 take_pieces(const float* const* rows) { return (F32)_mm256_loadu2_m128(rows[1], rows[0]); }
HARKEN_INLINE F64 take_pieces(const double* const* rows) { return (F64)_mm256_loadu2_m128d(rows[1], rows[0]); }
HARKEN_INLINE void put_pieces(F32 x, float* const* rows, int n) {
  if (n > 0) _mm_storeu_ps(rows[0], _mm256_castps256_ps128((__m256)x));
  if (n > 1) _mm_storeu_ps(rows[1], _mm256_extractf128_ps((__m256)x, 1));
}
HARKEN_INLINE void put_pieces(F64 x, double* const* rows, int n) {
  if (n > 0) _mm_storeu_pd(rows[0], _mm256_castpd256_pd128((__m256d)x));
  if (n > 1) _mm_storeu_pd(rows[1], _mm256_extractf128_pd((__m256d)x, 1));
}

}  // namespace
}  // namespace harken
