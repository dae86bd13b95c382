// rotation.hpp - pairs of channels that turn, each row by cosines and sines of its own, as plain data.
#pragma once

#include "../dtype.hpp"

namespace harken {

// Row by row (y_a, y_b) = (x_a c - x_b s, x_a s + x_b c) for `half` pairs, neighbours or `half` apart, and the channels
// behind them as they are. Of any strides; y is x itself or lies apart from it.
struct Rotation {
  static constexpr int most_axes = 64;

  Type type;  // of x and y; cos and sin have the type that it is computed in
  bool interleaved;
  int axes;  // of the rows
  int64_t sizes[most_axes];
  int64_t channels, half;

  struct Array {
    char* data;
    int64_t steps[most_axes], channel;  // bytes
  } x, y, cos, sin;

  static constexpr int64_t piece = 16384;  // numbers of one task
  int64_t rows() const {
    int64_t count = 1;
    for (int axis = 0; axis < axes; ++axis) count *= sizes[axis];
    return count;
  }
  int64_t rows_a_piece() const { return channels < piece ? piece / (channels > 0 ? channels : 1) : 1; }
  int64_t pieces() const { return (rows() + rows_a_piece() - 1) / rows_a_piece(); }
};

}  // namespace harken
