// engines.hpp - the words of compute capability 9.0: engines that copy and multiply by themselves, and who waits.
//
// As in words.hpp: nvcc gives them the meaning of the card (engines.cuh), a plain C++ compiler that of the emulator
// (emulated_engines.hpp). A group is 4 warps side by side, the first of them a multiple of 4.
//
// A Barrier is 8 bytes of shared memory. Its phase is over when so many have arrived and as many bytes as they expect
// have come; phases have parity 0, 1, 0, ...
//
//     prepare(barrier, count)             one thread, then prepared(), then barrier()
//     arrive(barrier)                     this thread has; what it wrote is there for those who waited
//     arrive_expecting(barrier, n)        ... and n bytes are to come
//     wait_for(barrier, parity)           until a phase of this parity is over; at first that of parity 1 is
//     copy_box(to, map, at, barrier)      one thread: a box of a tensor into shared memory, by the copy engine
//
// Barriers that threads share by number, 1 .. 15, `count` threads, warps as wholes:
//
//     warp_together()                     what the lanes of a warp did so far is done
//     meet(n, count)  come(n, count)      wait until all are there; be counted and go on
//     any_of(n, count, truth)             meet, and did any say so?
//
// Products of a group, in groups of their own as copies are in words.hpp. S and C as in words.hpp, but that C is
// 64 x N, each warp 16 of its rows; operands are shared memory as a descriptor (slabs.hpp) names it, or A of mma:
//
//     begin_products(x...)                what is in these registers is there for the engine
//     product(S{}, C, A, B, add)          C (+)= A B^T, both in shared memory, 16 channels a row
//     product(S{}, C, A, B)               C += A B, A in registers, B 16 rows in shared memory
//     commit_products()                   those that were begun are a group
//     wait_products<n>(C...)              until all groups but the last n are done, and these registers theirs
//     pin(C)                              a compiler moves nothing that is done to these registers past this place
//     show_engines()                      what this thread wrote to shared memory is there for engines
//
//     take_registers<n>() give_registers<n>()   a group goes on with n registers a thread
//     take_number(at)                     *at before it grew by 1, in the card's memory
//
// What the host says:
//
//     processors()                        of the card that is meant
//     clear(at, bytes, stream)            to zeros, in the order of the stream
//     TensorMap map_of(array, rows)       boxes of 64 numbers of `rows` rows, swizzled, zeros outside of the array
//
// A kernel is `HARKEN_LONE_KERNEL(threads) name(HARKEN_CONSTANT Argument x)`: a processor holds one block of it.
#pragma once

#include "slabs.hpp"
#include "words.hpp"

namespace harken {

constexpr int threads_of_group = 128, map_axes = 5;

// An array of numbers of 2 bytes that lie side by side along the first axis; strides are those of the others.
struct Boxed {
  char* data;
  Type type;
  int64_t sizes[map_axes], strides[map_axes - 1];
};

}  // namespace harken

#ifdef __CUDACC__
#include "engines.cuh"
#else
#include "emulated_engines.hpp"
#endif
