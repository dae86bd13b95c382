// linear.hpp - a linear map and what follows it, y = f(x Wᵀ + b), as plain data.
#pragma once

#include "pointwise.hpp"

namespace harken {

// x (rows, inputs), W (outputs, inputs), b (outputs,) or null, y (rows, outputs): contiguous, of float or double, y
// apart from the others.
struct Linear {
  Activation activation;
  bool in_double;
  const void *x, *weight, *bias;
  void* y;
  int64_t rows, inputs, outputs;

  static constexpr int64_t high = 256, wide = 48;  // a task's rows and outputs
  int64_t across() const { return (outputs + wide - 1) / wide; }
  int64_t tasks() const { return across() * ((rows + high - 1) / high); }
};

// Some rows of x and some of W as the tiles of a matrix engine, and their part of y; w is null where W is split as it
// is read. Packed are 16 rows at a time, in 6
// bytes a number; a task of the product is `high` rows by `wide` outputs, whose part of x stays in the L2.
struct Panels {
  Linear linear;
  int64_t row0, rows, col0, cols;
  char *x, *w;

  static constexpr int64_t high = 128, wide = 32;
  static constexpr int64_t most_rows = 1024, most_weights = 1 << 21;  // at a time: 9 MB of x for 1536 inputs, 13 of W

  static int64_t tiles(int64_t rows) { return (rows + 31) / 32 * 2; }  // in pairs
  int64_t bytes(int64_t rows) const { return tiles(rows) * 16 * linear.inputs * 6; }
  int64_t across() const { return (cols + wide - 1) / wide; }
  int64_t tasks() const { return across() * ((rows + high - 1) / high); }
};

}  // namespace harken
