// words.hpp - the words that kernels are written in: where a thread stands, barriers, what a warp exchanges.
//
// nvcc gives them the meaning of the card (device.cuh), a plain C++ compiler that of the emulator (emulated.hpp), where
// every thread is a fiber: the text of a kernel that is tested on a processor is the text that runs on the card.
//
//     thread() warp() lane()      of the block
//     block() blocks()            of the grid
//     shared_memory()             of the block, as many bytes as the launch said
//     barrier()                   of all threads of the block
//     from_lane(x, n)             x of lane n         all 32 lanes of a warp say these together
//     from_neighbour(x, n)        x of lane() ^ n
//     ballot(truth)               bit n: what lane n said
//     launch(kernel, grid, ...)   what the host says
//
// A kernel is `HARKEN_KERNEL(threads) name(HARKEN_CONSTANT Problem p)`.
#pragma once

#include <stdint.h>

namespace harken {

constexpr int lanes_of_warp = 32;

struct Grid {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

}  // namespace harken

#ifdef __CUDACC__
#include "device.cuh"
#else
#include "emulated.hpp"
#endif

namespace harken {
namespace {

// x combined over the lanes of a warp, every lane with the same bits: both partners of a step add the same two numbers.
template <class F, class Combine>
HARKEN_WORD F over_lanes(F x, Combine combine) {
  for (int n = lanes_of_warp / 2; n > 0; n /= 2) x = combine(x, from_neighbour(x, n));
  return x;
}

struct Sum {
  template <class F>
  HARKEN_WORD F operator()(F a, F b) const {
    return a + b;
  }
};

struct Larger {
  template <class F>
  HARKEN_WORD F operator()(F a, F b) const {
    return max(a, b);
  }
};

}  // namespace
}  // namespace harken
