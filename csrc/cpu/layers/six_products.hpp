// six_products.hpp - 32 rows meet 32 outputs on a matrix engine: three terms of bfloat16 a side, six products.
//
// Two tiles of x meet two of W in four sums, because a sum is ready for its next product only after three others. Each
// step of 32 inputs takes 14 tile loads for 24 products.
#pragma once

#include "../planes.hpp"

namespace harken {
namespace {

// Inputs that are summed on the engine before they join a sum in registers: 1.5 to 3 times less error than all 1536 in
// one sum, half that of OpenBLAS, for 2 to 6 % of time; 128 would take 15 to 20 %.
constexpr int64_t chunk = 384;

// n numbers of a row, then zeros, as a row of the tiles of a, [steps][terms][...][32], with `term` bytes from term to
// term.
HARKEN_INLINE void put_terms(const float* from, int64_t n, char* to, int64_t term) {
  for (int64_t c = 0; c < n; c += 32, to += 3 * term) {
    F32 low[3], high[3];
    split_or_nan<3>(take_some(from + c, n - c), low);
    split_or_nan<3>(take_some(from + c + 16, n - c < 16 ? 0 : n - c - 16), high);
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) put_words(to + i * term, pairs(low[i], high[i]));
  }
}

// Rows of tiles of a: where the first term of the first row is, the bytes from row to row, from term to term, and to
// the second 16 rows.
struct Rows32 {
  const char* at;
  int64_t row, term, second;
};

// The four sums of 32 x 32 outputs in tile registers.
template <class M>
struct SixProducts {
  static constexpr Register<0> s00 = {};
  static constexpr Register<1> s01 = {};
  static constexpr Register<2> s10 = {};
  static constexpr Register<3> s11 = {};
  static constexpr Register<4> x0 = {};
  static constexpr Register<5> x1 = {};
  static constexpr Register<6> w0 = {};
  static constexpr Register<7> w1 = {};

  static HARKEN_INLINE void zero() {
    M::zero(s00);
    M::zero(s01);
    M::zero(s10);
    M::zero(s11);
  }

  // 32 inputs of 32 rows and of two tiles of W, `second` bytes apart.
  static HARKEN_INLINE void add(const Rows32& x, const char* w, int64_t second) {
    auto left = [&](int term) __attribute__((always_inline)) {
      M::take(x0, x.at + term * x.term, x.row);
      M::take(x1, x.at + x.second + term * x.term, x.row);
    };
    auto right = [&](int term) __attribute__((always_inline)) {
      M::take(w0, w + term * tile_bytes, 64);
      M::take(w1, w + second + term * tile_bytes, 64);
    };
    auto multiply = [&]() __attribute__((always_inline)) {
      M::multiply(s00, x0, w0);
      M::multiply(s01, x0, w1);
      M::multiply(s10, x1, w0);
      M::multiply(s11, x1, w1);
    };
    left(0), right(2), multiply();  // h l
    right(1), multiply();           // h m
    left(1), multiply();            // m m
    right(0), multiply();           // m h
    left(2), multiply();            // l h
    left(0), multiply();            // h h
  }

  static HARKEN_INLINE void put(float* S) {  // S[32][32]
    M::put(s00, S, 128);
    M::put(s01, S + 16, 128);
    M::put(s10, S + 16 * 32, 128);
    M::put(s11, S + 16 * 32 + 16, 128);
  }
};

// A row of 32 outputs of which one is NaN: numbers that the terms do not hold, which the engine may not decide.
HARKEN_INLINE bool lost(const float* S) {
  Words32 bad = {};
  for (int c = 0; c < 32; c += lanes<float>) bad |= take(S + c) != take(S + c);
  return any(bad);
}

}  // namespace
}  // namespace harken
