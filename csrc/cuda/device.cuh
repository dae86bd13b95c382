// device.cuh - the words of a kernel as the card understands them.
#pragma once

#include <cuda_runtime.h>

#include "check.hpp"
#include "number.hpp"

#define HARKEN_WORD __device__ __forceinline__
#define HARKEN_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define HARKEN_CONSTANT const __grid_constant__

namespace harken {
namespace {

constexpr uint32_t whole_warp = 0xffffffffu;

HARKEN_WORD int thread() { return int(threadIdx.x); }
HARKEN_WORD int warp() { return int(threadIdx.x) / lanes_of_warp; }
HARKEN_WORD int lane() { return int(threadIdx.x) % lanes_of_warp; }
HARKEN_WORD int64_t block() { return blockIdx.x; }
HARKEN_WORD int64_t blocks() { return gridDim.x; }
HARKEN_WORD void barrier() { __syncthreads(); }

HARKEN_WORD char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

template <class F>
HARKEN_WORD F from_lane(F x, int n) {
  return __shfl_sync(whole_warp, x, n);
}
template <class F>
HARKEN_WORD F from_neighbour(F x, int n) {
  return __shfl_xor_sync(whole_warp, x, n);
}
HARKEN_WORD uint32_t ballot(bool truth) { return __ballot_sync(whole_warp, truth); }

// 48 KiB of shared memory a block are had for nothing, more must be asked for.
template <class... Arguments>
void launch(void (*kernel)(Arguments...), const Grid& grid, void* stream, const Arguments&... arguments) {
  if (grid.blocks == 0) return;
  if (grid.shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes));
  kernel<<<unsigned(grid.blocks), grid.threads, grid.shared_bytes, cudaStream_t(stream)>>>(arguments...);
  check(cudaGetLastError());
}

}  // namespace
}  // namespace harken
