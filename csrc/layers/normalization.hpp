// normalization.hpp - rows brought to mean 0 and variance 1, or to mean square 1, as plain data.
#pragma once

#include <stdint.h>

namespace harken {

// s = x + residual;  y = (s - mean s) / sqrt(var s + eps) w + b, or without the mean. All are contiguous, (rows, C) or
// (C,), of float or double; residual, sum, w and b may be null. y and sum may each be x or residual, not each other.
struct Normalization {
  bool centered;
  bool in_double;
  const void *x, *residual, *weight, *bias;
  void *y, *sum;  // sum receives s
  int64_t rows, C;
  double eps;

  static constexpr int64_t piece = 16384;  // numbers of one task
  int64_t rows_a_piece() const { return C < piece ? piece / (C > 0 ? C : 1) : 1; }
  int64_t pieces() const { return (rows + rows_a_piece() - 1) / rows_a_piece(); }
};

}  // namespace harken
