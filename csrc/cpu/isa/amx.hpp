// amx.hpp - AVX-512 with a matrix engine: eight tiles of 16 rows of 64 bytes, and products of bfloat16 or int8 tiles.
#pragma once

#include "avx512.hpp"

namespace harken {
namespace {

// Rounded by instruction; the AVX-512 of machines with tiles has it.
HARKEN_INLINE void put(bf16* at, F32 x) { _mm256_storeu_si256((__m256i*)at, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }

// c += a b:  c[16][16] floats, a[16][32] bfloat16, b[32][16] as its rows 2i and 2i + 1 in pairs. Sums are rounded to
// float after each pair of products; subnormal numbers count as 0.
//
// One tile product takes 16 cycles. Beside tile instructions the floating point operations of vectors run at one a
// cycle instead of two, which makes exponentials, not products, the bound of bfloat16 with 64 channels.
struct Amx {
  static constexpr bool exists = true;
  static constexpr uint32_t needs = has_amx;

  static HARKEN_INLINE void configure() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  static HARKEN_INLINE void release() { asm volatile("tilerelease"); }

  template <int n>
  static HARKEN_INLINE void zero(Register<n>) {
    asm volatile("tilezero %%tmm%c0" : : "i"(n));
  }
  template <int n>
  static HARKEN_INLINE void take(Register<n>, const void* at, int64_t step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(step), "i"(n) : "memory");
  }
  // For what is read once from the L2 cache: it leaves the L1 to S, P and O (D 128: 0.43 -> 0.33 ns a score).
  template <int n>
  static HARKEN_INLINE void take_past(Register<n>, const void* at, int64_t step) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(step), "i"(n) : "memory");
  }
  template <int n>
  static HARKEN_INLINE void put(Register<n>, void* at, int64_t step) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(at), "r"(step), "i"(n) : "memory");
  }
  template <int c, int a, int b>
  static HARKEN_INLINE void multiply(Register<c>, Register<a>, Register<b>) {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }

  // c += a b:  c[16][16] integers, a[16][64] int8, b[64][16] as its rows 4i .. 4i + 3 in fours.
  template <int c, int a, int b>
  static HARKEN_INLINE void multiply_bytes(Register<c>, Register<a>, Register<b>) {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }

  // Four rows of 64 bytes as a row of each of four tiles b. Channels 16 c + 4 j .. + 3 are the c-th of tile j.
  static HARKEN_INLINE void fours(const void* row0, const void* row1, const void* row2, const void* row3, char* to,
                                  int64_t tile) {
    const __m512i a = _mm512_loadu_si512(row0), b = _mm512_loadu_si512(row1);
    const __m512i c = _mm512_loadu_si512(row2), d = _mm512_loadu_si512(row3);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
    const __m512i cd = _mm512_unpacklo_epi8(c, d), CD = _mm512_unpackhi_epi8(c, d);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(ab, cd));
    _mm512_storeu_si512(to + tile, _mm512_unpackhi_epi16(ab, cd));
    _mm512_storeu_si512(to + 2 * tile, _mm512_unpacklo_epi16(AB, CD));
    _mm512_storeu_si512(to + 3 * tile, _mm512_unpackhi_epi16(AB, CD));
  }

  // Two rows of 64 bytes as a row of each of two tiles b. Channels 8 c + 4 j .. + 3 are the c-th of tile j.
  static HARKEN_INLINE void twos(const void* row0, const void* row1, char* to, int64_t tile) {
    const __m512i a = _mm512_loadu_si512(row0), b = _mm512_loadu_si512(row1);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(a, b));
    _mm512_storeu_si512(to + tile, _mm512_unpackhi_epi16(a, b));
  }

  // 2^x for P in N terms of bfloat16: minimax on [0, 1), a degree less than float where the terms are fewer. One term
  // comes rounded by a constant of half its last digit, so that the upper half of the word is it. A table of 256
  // mantissas (13 operations for 32 numbers instead of 18) gave 3 to 7 % with 64 channels, nothing in short calls, and
  // 7 % more error; no exponentials at all would give 25 %.
  template <int N>
  static HARKEN_INLINE F32 exp2_in_terms(Count<N>, F32 x) {
    if constexpr (N == 3) {
      return exp2(x);
    } else {
      F32 f = (F32)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
      F32 p;
      if constexpr (N == 2) {  // 2.9e-6
        p = fill(1.342668425e-02f);
        p = p * f + 5.224247427e-02f;
        p = p * f + 2.412802047e-01f;
        p = p * f + 6.930448449e-01f;
        p = p * f + 1.f;
      } else {  // 7.5e-5
        p = fill(7.802452269e-02f);
        p = p * f + 2.260671554e-01f;
        p = p * f + 6.958335405e-01f;
        p = p * f + (0.9999252186f + 0x1p-8f);
      }
      return (F32)_mm512_scalef_ps((__m512)p, (__m512)x);
    }
  }
};
inline Amx engine(int) { return {}; }

}  // namespace
}  // namespace harken
