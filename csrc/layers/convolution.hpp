// convolution.hpp - a convolution over positions, as plain data: each output is a sum over a window of rows.
#pragma once

#include <stdint.h>

namespace harken {

// y[b, l, o] = bias[o] + sum_ck x[b, l stride + k dilation - left, group(o) C / groups + c] weight[o, c, k]
//
// with zeros for x before its first position, and at and after lengths[b]. All arrays hold float, or all double;
// positions have their channels side by side.
struct Convolution {
  bool in_double;
  const void *x, *weight, *bias;  // bias may be null; weight [O][C / groups][K]
  void* y;                        // [B][out][O]
  const int64_t* lengths;         // null: every sequence has L positions
  int64_t B, L, C, out, O;
  int64_t K, stride, dilation, left, right, groups;
  int64_t x_batch, x_step, x_row;  // numbers from a sequence, a position, an output's window to the next

  // How it is cut, which no bit of y depends on: blocks of rows (b, l) by panels of channels o.
  int64_t block, panels;

  int64_t rows() const { return B * out; }
  int64_t tasks() const { return (rows() + block - 1) / block * panels; }
  bool depthwise() const { return groups == C && O == C && groups > 1; }
  bool padded() const { return left > 0 || right > 0 || lengths; }
  int64_t reach() const { return (K - 1) * dilation; }  // from the first position of a window to its last
  int64_t length(int64_t b) const { return lengths ? lengths[b] : L; }

  // Positions of y that a sequence of n positions gives.
  int64_t outputs(int64_t n) const {
    const int64_t spare = n + left + right - reach() - 1;
    return spare < 0 ? 0 : spare / stride + 1;
  }

  // Registers of output channels lie in slices of nearly one width, which are the panels of a group: 5 = 2 + 3.
  int64_t channels() const { return depthwise() ? O : O / groups; }  // of all panels of a group
  int64_t registers(int lanes) const { return (channels() + lanes - 1) / lanes; }
  int64_t slices(int lanes, int columns) const { return (registers(lanes) + columns - 1) / columns; }
  void set_panels(int lanes, int columns) { panels = (depthwise() ? 1 : groups) * slices(lanes, columns); }

  // Products whose sum is one chain, then added to the others: 128 are 5 to 20 % slower (L1), and err by 1.4 x as much.
  static constexpr int64_t chain = 64;

  // Numbers that a thread works in: a chain of a panel's weights, its bias, the rows of a panel that y has no
  // whole registers for, and a strip of x with its padding.
  int64_t weights(int width) const { return (depthwise() && K < chain ? K : chain) * width; }
  int64_t strip(int width) const {
    const int64_t overlapping = (block - 1) * stride + reach() + 1, apart = block * K;
    const int64_t inputs = C / groups, some = chain / K + 2;
    return (overlapping < apart ? overlapping : apart) * (depthwise() ? width : inputs < some ? inputs : some);
  }
  int64_t scratch(int width) const {
    const int64_t numbers = weights(width) + width + block * width + strip(width);
    return (numbers * (in_double ? 8 : 4) + 2 * chain * int64_t(sizeof(int64_t)) + 4095) / 4096 * 4096;
  }
};

// Some windows and some outputs of one group as the tiles of a matrix engine. The positions of x lie in a row, sequence
// by sequence with the zeros between them, so that the window of any output is a stretch of that row, and the windows
// of 16 outputs side by side are a tile for each tap: x is packed once, not once for each tap.
//
// Window n of all begins at position n * stride of the row; `apart` of them belong to a sequence, the first `out` of
// which are outputs.
struct Stretch {
  Convolution convolution;
  int64_t group, col0, cols, row0, rows;
  char *x, *w;

  static constexpr int64_t high = 128, wide = 32;             // a task's windows and outputs
  static constexpr int64_t most_rows = 1024, most_taps = 16;  // windows that are packed at a time; taps of any
  static constexpr int64_t most_weights = 1 << 21;
  static constexpr int64_t piece = 64;  // positions that are packed as one task

  int64_t inputs() const { return convolution.C / convolution.groups; }
  int64_t steps() const { return (inputs() + 31) / 32; }
  int64_t apart() const {  // the zeros before a sequence are those behind the one before it
    const Convolution& p = convolution;
    const int64_t meets = (p.out - 1) * p.stride + p.reach() + 1 - p.left, behind = meets > p.L ? meets - p.L : 0;
    return (p.L + (p.left > behind ? p.left : behind) + p.stride - 1) / p.stride;
  }
  int64_t windows() const { return convolution.B * apart(); }
  static int64_t tiles(int64_t cols) { return (cols + 31) / 32 * 2; }  // in pairs
  int64_t w_tile_bytes() const { return steps() * convolution.K * 3 * 1024; }

  // Positions that windows 0 .. count - 1 meet, in whole tiles. An odd number: no power of two from term to term.
  int64_t positions(int64_t count) const {
    return (((count + 31) / 32 * 32 - 1) * convolution.stride + convolution.reach() + 1) | 1;
  }
  int64_t x_bytes(int64_t count) const { return positions(count) * 64 * 3 * steps(); }
  int64_t across() const { return (cols + wide - 1) / wide; }
  int64_t tasks() const { return across() * ((rows + high - 1) / high); }
};

}  // namespace harken
