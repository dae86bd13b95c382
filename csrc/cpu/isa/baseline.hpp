// baseline.hpp - x86-64 as its ABI guarantees it (SSE2): 4 floats, 16 registers, multiply and add apart.
#pragma once

#include <immintrin.h>

namespace harken {
namespace {
constexpr int vector_bytes = 16;
}
}  // namespace harken

#include "../lanes.hpp"

namespace harken {
namespace {

constexpr uint32_t needs = 0;

// Sums held in a tile of the products, rows x columns of registers: 6 x 2 = 12 of 16.
constexpr int columns = 2;
constexpr int rows_for(int c) { return c == 2 ? 6 : 12; }

HARKEN_INLINE F32 max(F32 a, F32 b) { return (F32)_mm_max_ps((__m128)a, (__m128)b); }
HARKEN_INLINE F64 max(F64 a, F64 b) { return (F64)_mm_max_pd((__m128d)a, (__m128d)b); }
HARKEN_INLINE bool any(Words32 truth) { return _mm_movemask_ps((__m128)truth) != 0; }
HARKEN_INLINE bool any(Words64 truth) { return _mm_movemask_pd((__m128d)truth) != 0; }

HARKEN_INLINE F32 take_pieces(const float* const* rows) { return take(rows[0]); }
HARKEN_INLINE F64 take_pieces(const double* const* rows) { return take(rows[0]); }
HARKEN_INLINE void put_pieces(F32 x, float* const* rows, int n) {
  if (n > 0) put(rows[0], x);
}
HARKEN_INLINE void put_pieces(F64 x, double* const* rows, int n) {
  if (n > 0) put(rows[0], x);
}

}  // namespace
}  // namespace harken
