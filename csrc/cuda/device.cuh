// device.cuh - the words of a kernel as the card understands them.
#pragma once

#include <cuda_runtime.h>

#include "check.hpp"
#include "number.hpp"

#define HARKEN_WORD __device__ __forceinline__
#define HARKEN_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
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
  extern __shared__ __align__(1024) char memory[];
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

HARKEN_WORD uint32_t shared_address(const char* at) { return uint32_t(__cvta_generic_to_shared(at)); }

HARKEN_WORD void load_matrix(uint32_t (&A)[4], const char* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(A[0]), "=r"(A[1]), "=r"(A[2]), "=r"(A[3])
               : "r"(shared_address(at))
               : "memory");
}
HARKEN_WORD void load_turned(uint32_t (&A)[4], const char* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(A[0]), "=r"(A[1]), "=r"(A[2]), "=r"(A[3])
               : "r"(shared_address(at))
               : "memory");
}

HARKEN_WORD void mma(bf16, float (&C)[4], const uint32_t (&A)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(C[0]), "+f"(C[1]), "+f"(C[2]), "+f"(C[3])
      : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(b0), "r"(b1));
}
HARKEN_WORD void mma(f16, float (&C)[4], const uint32_t (&A)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(C[0]), "+f"(C[1]), "+f"(C[2]), "+f"(C[3])
      : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(b0), "r"(b1));
}

HARKEN_WORD void mma(tf32, float (&C)[4], const uint32_t (&A)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(C[0]), "+f"(C[1]), "+f"(C[2]), "+f"(C[3])
      : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(b0), "r"(b1));
}

HARKEN_WORD uint32_t packed(bf16, float a, float b) {  // PTX names the upper half first
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
  return both;
}
HARKEN_WORD uint32_t packed(f16, float a, float b) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
  return both;
}

HARKEN_WORD uint32_t fresh(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

HARKEN_WORD float quick_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

HARKEN_WORD void copy_async(char* to, const char* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}
HARKEN_WORD void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
HARKEN_WORD void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

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
