// pointwise.hpp - a function of each number by itself, y = f(x + b): activations, as plain data.
#pragma once

#include <stdint.h>

namespace harken {

enum class Activation { gelu, gelu_tanh, identity, relu, sigmoid, silu, tanh };

// x and y are contiguous, of float or double, and may be the same. b is added along the last axis, of C numbers; it may
// be null.
struct Pointwise {
  Activation activation;
  bool in_double;
  const void* x;
  const void* bias;
  void* y;
  int64_t n, C;

  static constexpr int64_t piece = 16384;  // numbers of one task: 64 KiB in and out stay in the L2 cache
  int64_t pieces() const { return (n + piece - 1) / piece; }
};

}  // namespace harken
