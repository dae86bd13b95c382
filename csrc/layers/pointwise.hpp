// pointwise.hpp - a function of each number by itself, y = f(x): activations, as plain data.
#pragma once

#include <stdint.h>

namespace harken {

enum class Activation { relu, silu, sigmoid, tanh };

// x and y are contiguous, of float or double, and may be the same.
struct Pointwise {
  Activation activation;
  bool in_double;
  const void* x;
  void* y;
  int64_t n;

  static constexpr int64_t piece = 16384;  // numbers of one task: 64 KiB in and out stay in the L2 cache
  int64_t pieces() const { return (n + piece - 1) / piece; }
};

}  // namespace harken
