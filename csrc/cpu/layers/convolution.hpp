// convolution.hpp - y = b + W x over windows of rows: output channels along the lanes, x read in place.
//
// A task is a block of rows of y and a panel of up to `columns` registers of its channels. It goes through the depth
// (c, k), k fastest, as the weights lie, in chains of 64 products. For each it transposes the panel's weights of the
// chain into the L1 cache (64 x 64 floats: 16 KiB), then lets all rows of the block meet them, in the register tiles of
// product.hpp; what the chains before gave waits in y. So each output is one sum in one order, (c, k) by chains,
// wherever a block, a chunk of a stream or a tile begins.
#pragma once

#include "../../layers/convolution.hpp"
#include "../product.hpp"
#include "windows.hpp"

namespace harken {
namespace {

// Y[r] = from[r] + sum[r], where `from` is the bias for each row (step 0), or what the chains before gave: Y itself.
template <class T, int R, int C>
HARKEN_INLINE void add_chain(const Lanes<T> (&sum)[R][C], const T* from, int64_t from_step, T* Y, int64_t Y_step) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) put(Y + c * lanes<T>, take(from + c * lanes<T>) + sum[r][c]);
    from += from_step;
    Y += Y_step;
    in_register(from);  // GCC makes all addresses first, and keeps them in vector registers
    __asm__("" : "+r"(Y));
  }
}

// Y[r] = from[r] + sum_i x[r * row + offset[i]] W[i].
//
// The offsets of (c, k) come from a table, one load and three additions for two bases: 4 of 41 instructions of a 6 x 4
// tile.
template <class T, int R, int C>
__attribute__((noinline)) void window_tile(const T* x, int64_t row, const int64_t* offset, const T* W, int64_t n,
                                           const T* from, int64_t from_step, T* Y, int64_t Y_step) {
  constexpr int bases = (R + 2) / 3;
  const T* base[bases];
#pragma GCC unroll 8
  for (int i = 0; i < bases; ++i) base[i] = x + 3 * i * row;
  Lanes<T> sum[R][C] = {};
  for (int64_t i = 0; i < n; ++i) {
    Lanes<T> w[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) w[c] = take(W + c * lanes<T>);
    const T* at[bases];
#pragma GCC unroll 8
    for (int k = 0; k < bases; ++k) {
      at[k] = base[k] + offset[i];
      in_register(at[k]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Lanes<T> y = fill(at[r / 3][r % 3 * row]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] += y * w[c];
    }
    W += C * lanes<T>;
  }
  add_chain<T, R, C>(sum, from, from_step, Y, Y_step);
}

// The same with a number of x for each channel: x[r * row + k * tap] and W[k] are registers of channels.
template <class T, int R, int C>
__attribute__((noinline)) void depthwise_tile(const T* x, int64_t row, int64_t tap, const T* W, int64_t n,
                                              const T* from, int64_t from_step, T* Y, int64_t Y_step) {
  Lanes<T> sum[R][C] = {};
  for (int64_t k = 0; k < n; ++k) {
    Lanes<T> w[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) w[c] = take(W + c * lanes<T>);
    const T* at = x;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] += take(at + c * lanes<T>) * w[c];
      at += row;
      in_register(at);
    }
    W += C * lanes<T>;
    x += tap;
  }
  add_chain<T, R, C>(sum, from, from_step, Y, Y_step);
}

// Weights first .. first + n - 1 of `channels` rows of D, transposed: to[i][cols * lanes]. A block of `lanes` columns
// that would end past a row's end begins earlier. While one group of rows is read, the next one comes near: most of
// the time goes into waiting for weights.
template <class T>
__attribute__((noinline)) void pack_weights(const T* W, int64_t D, int64_t channels, int64_t first, int64_t n, int cols,
                                            T* to) {
  const int64_t width = cols * lanes<T>;
  const T* begin = W;
  for (int64_t c = 0; c < width; c += lanes<T>, W += lanes<T> * D) {
    const int rows = channels - c < lanes<T> ? int(channels - c) : lanes<T>;
    if (D < lanes<T>) {
      for (int64_t i = 0; i < n; ++i)
        for (int r = 0; r < lanes<T>; ++r) to[i * width + c + r] = W[(r < rows ? r : rows - 1) * D + first + i];
      continue;
    }
    const T* next = c + lanes<T> < channels ? W + lanes<T> * D : begin + n;
    int64_t i = 0;
    for (; i + lanes<T> <= n; i += lanes<T>) {
#pragma GCC unroll 16
      for (int r = 0; r < lanes<T>; ++r) __builtin_prefetch(next + r * D + first + i);
      Lanes<T> x[lanes<T>];
      take_transposed(W + first + i, D, rows, x);
      T* at = to + i * width + c;
#pragma GCC unroll 16
      for (int j = 0; j < lanes<T>; ++j) put(at + j * width, x[j]);
    }
    if (i == n) continue;
    const int64_t late = first + i + lanes<T> <= D ? 0 : first + i + lanes<T> - D;
    Lanes<T> x[lanes<T>];
    take_transposed(W + first + i - late, D, rows, x);
    for (int64_t j = 0; j < n - i; ++j) put(to + (i + j) * width + c, x[late + j]);
  }
}

// What a task works in, and which part of y it makes.
template <class T>
struct Panel {
  static constexpr int width = columns * lanes<T>;

  int64_t group, first, channels;  // of the group's outputs, and how many
  int cols;
  int64_t row, end;  // of all rows (b, l)
  T *W, *bias, *Y, *strip;
  int64_t* offset;
  bool whole;  // its registers are channels of y, all of them
  int64_t Y_step;

  Panel(const Convolution& p, int64_t task, char* scratch) {
    const int64_t panel = task % p.panels, slices = p.slices(lanes<T>, columns), slice = panel % slices;
    const int64_t registers = p.registers(lanes<T>), from = slice * registers / slices;
    cols = int((slice + 1) * registers / slices - from);
    group = panel / slices;
    first = from * lanes<T>;
    channels = p.channels() - first < cols * lanes<T> ? p.channels() - first : cols * lanes<T>;
    whole = channels == cols * lanes<T>;
    row = task / p.panels * p.block;
    end = row + p.block < p.rows() ? row + p.block : p.rows();
    offset = (int64_t*)scratch;
    W = (T*)(offset + 2 * p.chain);
    bias = W + p.weights(width);
    Y = bias + width;
    strip = Y + p.block * width;
    Y_step = cols * lanes<T>;
    for (int64_t c = 0; c < cols * lanes<T>; ++c)
      bias[c] = p.bias && c < channels ? ((const T*)p.bias)[output(p) + c] : T(0);
    if (whole) {
      Y = (T*)p.y + row * p.O + output(p);
      Y_step = p.O;
    }
  }

  int64_t output(const Convolution& p) const { return group * p.channels() + first; }

  void clear(int64_t at, int64_t n) const {
    for (int64_t r = at; r < at + n; ++r)
      for (int64_t c = 0; c < channels; ++c) Y[r * Y_step + c] = T(0);
  }

  void finish(const Convolution& p) const {
    if (whole) return;
    T* y = (T*)p.y + row * p.O + output(p);
    for (int64_t r = 0; r < end - row; ++r)
      for (int64_t c = 0; c < channels; ++c) y[r * p.O + c] = Y[r * Y_step + c];
  }
};

template <class T>
void convolve_dense(const Convolution& p, const Panel<T>& panel) {
  const int64_t inputs = p.C / p.groups, D = inputs * p.K;
  const T* x = (const T*)p.x + panel.group * inputs;
  const T* W = (const T*)p.weight + panel.output(p) * D;
  int64_t *in_place = panel.offset, *in_strip = panel.offset + p.chain;
  for (int64_t i = 0; i < D; i += p.chain) {
    const int64_t n = D - i < p.chain ? D - i : p.chain;
    const int64_t c = i / p.K, width = (i + n - 1) / p.K + 1 - c;  // the channels that the chain takes
    pack_weights(W, D, panel.channels, i, n, panel.cols, panel.W);
    offsets(p, i, n, 0, p.dilation * p.x_step, in_place);
    with_columns(panel.cols, [&](auto C) __attribute__((always_inline)) {
      each_run(p, panel.row, panel.end, rows_for(C.value), [&](const Run& run) __attribute__((always_inline)) {
        const int64_t at = run.row - panel.row;
        if (run.kind == Run::past) {
          if (i == 0) panel.clear(at, run.n);
          return;
        }
        Windows<T> windows = {x + run.b * p.x_batch + run.l * p.x_row - p.left * p.x_step, p.x_row, 0};
        if (run.kind == Run::edge) {
          windows = fill_strip(p, run, x + c, width, width, panel.strip);
          offsets(p, i, n, c, windows.tap, in_strip);
        }
        const int64_t* offset = run.kind == Run::edge ? in_strip : in_place;
        in_tiles<C.value>(run.n, [&](int64_t r, auto R) __attribute__((always_inline)) {
          T* Y = panel.Y + (at + r) * panel.Y_step;
          window_tile<T, R.value, C.value>(windows.at + r * windows.row, windows.row, offset, panel.W, n,
                                           i == 0 ? panel.bias : Y, i == 0 ? 0 : panel.Y_step, Y, panel.Y_step);
        });
      });
    });
  }
}

// Every channel by itself. A panel that is not whole reads x from strips that are.
template <class T>
void convolve_depthwise(const Convolution& p, const Panel<T>& panel) {
  const T* x = (const T*)p.x + panel.first;
  const T* W = (const T*)p.weight + panel.first * p.K;
  const int64_t width = panel.cols * lanes<T>;
  for (int64_t k = 0; k < p.K; k += p.chain) {
    const int64_t n = p.K - k < p.chain ? p.K - k : p.chain;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < width; ++c) panel.W[i * width + c] = c < panel.channels ? W[c * p.K + k + i] : T(0);
    with_columns(panel.cols, [&](auto C) __attribute__((always_inline)) {
      each_run(p, panel.row, panel.end, rows_for(C.value), [&](const Run& run) __attribute__((always_inline)) {
        const int64_t at = run.row - panel.row;
        if (run.kind == Run::past) {
          if (k == 0) panel.clear(at, run.n);
          return;
        }
        Windows<T> windows = {x + run.b * p.x_batch + run.l * p.x_row - p.left * p.x_step, p.x_row,
                              p.dilation * p.x_step};
        if (run.kind == Run::edge || !panel.whole) windows = fill_strip(p, run, x, panel.channels, width, panel.strip);
        in_tiles<C.value>(run.n, [&](int64_t r, auto R) __attribute__((always_inline)) {
          T* Y = panel.Y + (at + r) * panel.Y_step;
          depthwise_tile<T, R.value, C.value>(windows.at + r * windows.row + k * windows.tap, windows.row, windows.tap,
                                              panel.W, n, k == 0 ? panel.bias : Y, k == 0 ? 0 : panel.Y_step, Y,
                                              panel.Y_step);
        });
      });
    });
  }
}

template <class T>
void convolve_in(const Convolution& p, int64_t task, char* scratch) {
  const Panel<T> panel(p, task, scratch);
  p.depthwise() ? convolve_depthwise(p, panel) : convolve_dense(p, panel);
  panel.finish(p);
}

void convolve(const Convolution& p, int64_t task, char* scratch) {
  p.in_double ? convolve_in<double>(p, task, scratch) : convolve_in<float>(p, task, scratch);
}

}  // namespace
}  // namespace harken
