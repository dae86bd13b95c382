// windows.hpp - where the windows of a convolution's rows lie: in x itself, or in a strip that has their padding.
#pragma once

#include "../../layers/convolution.hpp"
#include "../lanes.hpp"

namespace harken {
namespace {

// Consecutive rows of y of one sequence: n from position l, the row-th of all.
struct Run {
  enum Kind { inner, edge, past } kind;  // in x whole, or with padding, or past the sequence's last output
  int64_t b, l, n, row;
};

// Windows at + r * row; their taps are `tap` apart.
template <class T>
struct Windows {
  const T* at;
  int64_t row, tap;
};

// The rows first .. end - 1 of y in runs. The rows at the edges of a sequence are taken in whole tiles of `height`: a
// tile of one row waits for its products, and takes a third of the time of one of six.
template <class Body>
HARKEN_INLINE void each_run(const Convolution& p, int64_t first, int64_t end, int height, Body body) {
  for (int64_t row = first; row < end;) {
    const int64_t b = row / p.out, l = row - b * p.out, rest = p.out - l < end - row ? p.out - l : end - row;
    int64_t n = rest, before = 0, after = 0;
    if (p.padded()) {
      const int64_t length = p.length(b), live = p.outputs(length) - l;
      n = live < 0 ? 0 : live < rest ? live : rest;
      // Position q is inner if 0 <= q stride - left and q stride - left + reach < length.
      const int64_t begin = (p.left + p.stride - 1) / p.stride, room = length - 1 - p.reach() + p.left;
      const int64_t stop = room < 0 ? 0 : room / p.stride + 1;
      before = begin <= l ? 0 : (begin - l + height - 1) / height * height;
      after = stop >= l + n ? 0 : (l + n - stop + height - 1) / height * height;
      if (before + after >= n) before = n, after = 0;
    }
    const Run runs[] = {{Run::edge, b, l, before, row},
                        {Run::inner, b, l + before, n - before - after, row + before},
                        {Run::edge, b, l + n - after, after, row + n - after},
                        {Run::past, b, l + n, rest - n, row + n}};
    for (const Run& run : runs)
      if (run.n > 0) body(run);
    row += rest;
  }
}

// offset[i] of (c, k) = first + i: the c - from-th channel of a tap.
inline void offsets(const Convolution& p, int64_t first, int64_t n, int64_t from, int64_t tap, int64_t* offset) {
  int64_t c = first / p.K - from, k = first % p.K;
  for (int64_t i = 0; i < n; ++i) {
    offset[i] = c + k * tap;
    if (++k == p.K) k = 0, ++c;
  }
}

// Copies the positions that a run's windows meet, some channels of them, with zeros for those that are not there: one
// position after the other, or, where windows hardly overlap, window by window.
template <class T>
__attribute__((noinline)) Windows<T> fill_strip(const Convolution& p, const Run& run, const T* x, int64_t channels,
                                                int64_t width, T* strip) {
  const int64_t length = p.length(run.b), origin = run.l * p.stride - p.left;
  const int64_t overlapping = (run.n - 1) * p.stride + p.reach() + 1, apart = run.n * p.K;
  const bool together = overlapping <= apart;
  x += run.b * p.x_batch;
  int64_t r = 0, k = 0;
  for (int64_t i = 0; i < (together ? overlapping : apart); ++i) {
    const int64_t position = origin + (together ? i : r * p.stride + k * p.dilation);
    T* to = strip + i * width;
    if (position < 0 || position >= length) {
      for (int64_t c = 0; c < channels; ++c) to[c] = T(0);
    } else {
      const T* from = x + position * p.x_step;
      for (int64_t c = 0; c < channels; ++c) to[c] = from[c];
    }
    if (++k == p.K) k = 0, ++r;
  }
  if (together) return {strip, p.stride * width, p.dilation * width};
  return {strip, p.K * width, width};
}

}  // namespace
}  // namespace harken
