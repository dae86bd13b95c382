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
// Of tiles, for a matrix engine; S is f16 or bf16, two of them are a word, and who holds which number is PTX's to say:
//
//     load_matrix(A, at)          four matrices of 8x8 S; at: a row of one, 16 bytes of shared memory
//     load_turned(A, at)          the same, each of them turned around
//     mma(S{}, C, A, b0, b1)      C += A B        16x8 floats, 16x16 and 16x8 S
//     mma(tf32{}, C, A, b0, b1)   C += A B        16x8 floats, 16x8 and 8x8 of which it takes sign, exponent, 10 bits
//     packed(S{}, a, b)           a and b rounded to S
//     copy_async(to, from, n)     16 bytes of shared memory: n from the card's memory, then zeros
//     commit()                    those copies that were begun are a group
//     wait<n>()                   until all groups but the last n are there, those of this thread
//     fresh(x)                    x, a word; what is made of it is not made ahead of a loop and kept in registers
//     quick_exp2(x)               2^x to 2 units in the last place; 0 for what would be subnormal
//
// A kernel is `HARKEN_KERNEL(threads) name(HARKEN_CONSTANT Problem p)`; of (threads, n) n blocks fit into a processor.
#pragma once

#include <stdint.h>

namespace harken {

constexpr int lanes_of_warp = 32;

struct tf32 {};  // float, as a matrix engine reads it

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
