// terms.hpp - the two products over float32: numbers as sums of two that a matrix engine takes, three products for one.
//
//     x = x' + x"        x': x rounded to the 11 bits of tf32;  x": the rest, of which the engine takes 11 bits
//     x y = x' y" + x" y' + x' y'        without x" y", 2^-24 of x y
//
// The engine cuts sums where others round them, always towards zero: left to it, a sum of 128 errs 6 times as much as
// NumPy's in float32, and one of 1024 30 times. So it adds 8 channels or keys at once, the small products first, and
// such sums are added in float32: 2 times NumPy's error for 8, 1.3 for 16, 0.8 for 64, 0.6 for 128 (means of normal
// numbers, by the model of emulator.cpp). x' cut instead of rounded would cost 3 times the error at 8 to 32.
//
// Fragments are split as they are loaded, by an addition, a mask and a subtraction for each number. cvt.rna.tf32.f32,
// which looks for NaN and Inf, is an instruction and a predicate more. Here Inf becomes NaN: its x" is Inf - Inf.
#pragma once

#include "fragments.hpp"

namespace harken {
namespace {

// terms: 2, as above; 1, x' y' alone.
template <int width_, int keys_, int strips_, int terms_>
struct FloatForm : Form<float, width_, keys_, strips_> {
  static constexpr int terms = terms_;
};

constexpr uint32_t cut_off = 0x1fff;  // the bits of a float that the engine does not take

// The largest number of 11 bits. What lies above would be rounded to infinity, and is cut to it among values.
constexpr uint32_t largest_term = 0x7f7fe000;

HARKEN_WORD float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }
HARKEN_WORD uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }

// A fragment as terms: [0] are the large ones.
template <int terms, int count>
struct Terms {
  uint32_t of[terms][count];
};

// One term is rounded by a product, which leaves NaN what it is: x (1 + 2^-10 / 3) cut off is x rounded to nearest, or
// in one case of 12 its other neighbour.
template <int terms, int count>
HARKEN_WORD Terms<terms, count> split(const uint32_t (&x)[count]) {
  Terms<terms, count> to;
#pragma unroll
  for (int n = 0; n < count; ++n) {
    if constexpr (terms == 1) {
      to.of[0][n] = bits_of(float_of(x[n]) * (1 + 0x1p-10f / 3));
    } else {
      to.of[0][n] = x[n] + (cut_off + 1) / 2;
      to.of[1][n] = bits_of(float_of(x[n]) - float_of(to.of[0][n] & ~cut_off));
    }
  }
  return to;
}

// C = A B + C, in float32, of A and two numbers of B from `first` on.
template <int terms, int count>
HARKEN_WORD void multiply_terms(float (&C)[4], const Terms<terms, 4>& A, const Terms<terms, count>& B, int first) {
  static_assert(terms <= 2);
  float sum[4] = {};
  if constexpr (terms == 2) {
    mma(tf32{}, sum, A.of[1], B.of[0][first], B.of[0][first + 1]);
    mma(tf32{}, sum, A.of[0], B.of[1][first], B.of[1][first + 1]);
  }
  mma(tf32{}, sum, A.of[0], B.of[0][first], B.of[0][first + 1]);
#pragma unroll
  for (int c = 0; c < 4; ++c) C[c] += sum[c];
}

namespace terms {

// Channels that are left out where there are none. What is computed ahead of its turn ends there, too, which is what
// keeps it in registers: of 128 channels 32 would spill, of 256 64.
template <class Form>
constexpr int part = Form::width > 128 ? 32 : 64;

// S = Q K^T of D channels. query(A, strip, step) gives a fragment of Q.
template <class Form, class Query>
HARKEN_WORD void multiply_keys(Scores<Form>& scores, const char* K, int64_t D, Query query) {
  constexpr int strips = Form::strips;
  const Spot spot = of_columns(lane());
  const int offset = offset_of(Form::halves, spot.row, spot.chunk);
#pragma unroll
  for (int strip = 0; strip < strips; ++strip) for_scores(scores, strip, [](float& s, int, int) { s = 0; });
#pragma unroll
  for (int step = 0; step < Form::steps; ++step) {
    if (step * 8 % part<Form> == 0 && step * 8 >= D) break;
    Terms<Form::terms, 4> A[strips];
#pragma unroll
    for (int strip = 0; strip < strips; ++strip) {
      uint32_t x[4];
      query(x, strip, step);
      A[strip] = split<Form::terms>(x);
    }
#pragma unroll
    for (int pair = 0; pair < Form::keys / 16; ++pair) {
      uint32_t x[4];
      load_matrix(x, K + pair * 16 * Form::row_bytes + along(offset, 2 * step));
      const auto B = split<Form::terms>(x);
#pragma unroll
      for (int strip = 0; strip < strips; ++strip)
#pragma unroll
        for (int n = 0; n < 2; ++n) multiply_terms(scores.s[strip][2 * pair + n], A[strip], B, 2 * n);
    }
  }
}

// O += P V of Dv channels, with P as terms::multiply_keys left S. Keys that no query of the warp sees are left out.
template <class Form>
HARKEN_WORD void multiply_values(Softmax<Form>& state, const Scores<Form>& scores, const char* V, int64_t Dv) {
  constexpr int strips = Form::strips;
  const int even = offset_of_pair(Form::halves, lane(), 0), odd = offset_of_pair(Form::halves, lane(), 1);
#pragma unroll
  for (int step = 0; step < Form::keys / 8; ++step) {
    bool any = false;
#pragma unroll
    for (int strip = 0; strip < strips; ++strip)
#pragma unroll
      for (const float P : scores.s[strip][step]) any |= P != 0;
    if (ballot(any) == 0) continue;
    Terms<Form::terms, 4> A[strips];
#pragma unroll
    for (int strip = 0; strip < strips; ++strip) {
      const float (&P)[4] = scores.s[strip][step];
      A[strip] = split<Form::terms>({bits_of(P[0]), bits_of(P[2]), bits_of(P[1]), bits_of(P[3])});
    }
    const char* const at = V + step * 8 * Form::row_bytes;
#pragma unroll
    for (int pair = 0; pair < Form::width / 16; ++pair) {
      if (pair * 16 % part<Form> == 0 && pair * 16 >= Dv) break;
      const uint64_t b0 = *(const uint64_t*)(at + along(even, 4 * pair));
      const uint64_t b1 = *(const uint64_t*)(at + along(odd, 4 * pair));
      const auto B = split<Form::terms>({uint32_t(b0), uint32_t(b1), uint32_t(b0 >> 32), uint32_t(b1 >> 32)});
#pragma unroll
      for (int strip = 0; strip < strips; ++strip)
#pragma unroll
        for (int n = 0; n < 2; ++n) multiply_terms(state.O[strip][2 * pair + n], A[strip], B, 2 * n);
    }
  }
}

}  // namespace terms

// By its terms a score of which a number is Inf, or is rounded to it, is NaN, where q . k may be a number. Those that
// are seen are computed once more as they are. all: every key is seen.
template <class Form>
HARKEN_WORD void mend(Scores<Form>& scores, const Head<float>& head, int64_t i0, int64_t k0, bool all, int64_t D) {
  bool any = false;
#pragma unroll
  for (int strip = 0; strip < Form::strips; ++strip)
    for_scores(scores, strip, [&](float& s, int, int) { any |= s != s; });
  if (ballot(any) == 0) return;
#pragma unroll
  for (int strip = 0; strip < Form::strips; ++strip)
#pragma unroll 1
    for (int n = 0; n < Form::keys / 2; ++n) {
      const int r = n % 4 / 2, key = n / 4 * 8 + n % 2;
      const int64_t i = i0 + row_of<Form>(strip, r), j = k0 + first_key() + key;
      const uint64_t sees = r == 0 ? scores.sees[strip][0] : scores.sees[strip][1];
      if (i >= head.queries || (!all && (sees >> key & 1) == 0)) continue;
      float sum = 0;
#pragma unroll 1
      for (int64_t d = 0; d < D; ++d)
        sum = fmaf(*(const float*)head.Q.at(i, d), *(const float*)(head.K.data + j * head.K.row + d * head.K.col), sum);
      for_scores(scores, strip, [&](float& s, int of, int at) {
        if (of == r && at == key && s != s) s = sum;
      });
    }
}

}  // namespace
}  // namespace harken
