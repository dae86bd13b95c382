// engines.cuh - the words of compute capability 9.0 as the card understands them: PTX, an instruction a word.
#pragma once

#include <cuda.h>

#define HARKEN_LONE_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)

namespace harken {

using TensorMap = CUtensorMap;

namespace {

struct Barrier {
  uint64_t state;
};

HARKEN_WORD uint32_t shared_address(const Barrier& barrier) { return shared_address((const char*)&barrier); }

HARKEN_WORD void prepare(Barrier& barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
HARKEN_WORD void prepared() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
HARKEN_WORD void arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
HARKEN_WORD void arrive_expecting(Barrier& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// HARKEN_LONGEST_WAIT, of a build that looks for mistakes: who waits for longer, in nanoseconds, stops the kernel.
HARKEN_WORD void wait_for(Barrier& barrier, uint32_t parity) {
#ifdef HARKEN_LONGEST_WAIT
  uint64_t begun, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begun));
#endif
  for (uint32_t over = 0; over == 0;) {
    asm volatile(
        "{\n.reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
#ifdef HARKEN_LONGEST_WAIT
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    if (now - begun > HARKEN_LONGEST_WAIT) __trap();
#endif
  }
}

HARKEN_WORD void copy_box(char* to, const TensorMap& map, const int (&at)[map_axes], Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], "
      "[%7];"
      :
      : "r"(shared_address(to)), "l"(&map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]),
        "r"(shared_address(barrier))
      : "memory");
}

HARKEN_WORD void warp_together() { __syncwarp(); }
HARKEN_WORD void meet(int n, int count) { asm volatile("bar.sync %0, %1;" ::"r"(n), "r"(count) : "memory"); }
HARKEN_WORD void come(int n, int count) { asm volatile("bar.arrive %0, %1;" ::"r"(n), "r"(count) : "memory"); }
HARKEN_WORD bool any_of(int n, int count, bool truth) {
  uint32_t any;
  asm volatile(
      "{\n.reg .pred mine, any;\n"
      "setp.ne.u32 mine, %3, 0;\n"
      "bar.red.or.pred any, %1, %2, mine;\n"
      "selp.u32 %0, 1, 0, any;\n}"
      : "=r"(any)
      : "r"(n), "r"(count), "r"(uint32_t(truth))
      : "memory");
  return any != 0;
}

HARKEN_WORD void show_engines() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int n>
HARKEN_WORD void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
HARKEN_WORD void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}

HARKEN_WORD int take_number(int* at) { return atomicAdd(at, 1); }

// A compiler knows nothing of what an engine does to registers later. Here it reads and writes them, so that nothing
// that is done to them passes this place.
template <int n, int m>
HARKEN_WORD void pin(float (&x)[n][m]) {
#pragma unroll
  for (int a = 0; a < n; ++a)
#pragma unroll
    for (int b = 0; b < m; ++b) asm volatile("" : "+f"(x[a][b])::"memory");
}
template <int n, int m>
HARKEN_WORD void pin(uint32_t (&x)[n][m]) {
#pragma unroll
  for (int a = 0; a < n; ++a)
#pragma unroll
    for (int b = 0; b < m; ++b) asm volatile("" : "+r"(x[a][b])::"memory");
}

template <class... Registers>
HARKEN_WORD void begin_products(Registers&... x) {
  (pin(x), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
HARKEN_WORD void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int n, class... Registers>
HARKEN_WORD void wait_products(Registers&... x) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
  (pin(x), ...);
}

// The operands of a product are C, N / 2 registers, and what follows them; their numbers are text.
#define HARKEN_FIVE(t, a, b, c, d, e) "%" #t #a ", %" #t #b ", %" #t #c ", %" #t #d ", %" #t #e ", "
#define HARKEN_TEN(t) HARKEN_FIVE(t, 0, 1, 2, 3, 4) HARKEN_FIVE(t, 5, 6, 7, 8, 9)
#define HARKEN_NUMBERS_64 HARKEN_TEN() HARKEN_TEN(1) HARKEN_TEN(2) "%30, %31"
#define HARKEN_NUMBERS_128 \
  HARKEN_TEN() HARKEN_TEN(1) HARKEN_TEN(2) HARKEN_TEN(3) HARKEN_TEN(4) HARKEN_TEN(5) "%60, %61, %62, %63"
#define HARKEN_NUMBERS_256                                                                                     \
  HARKEN_TEN() HARKEN_TEN(1) HARKEN_TEN(2) HARKEN_TEN(3) HARKEN_TEN(4) HARKEN_TEN(5) HARKEN_TEN(6) HARKEN_TEN(7) \
  HARKEN_TEN(8) HARKEN_TEN(9) HARKEN_TEN(10) HARKEN_TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127"
#define HARKEN_C_8(n) "+f"(C[n][0]), "+f"(C[n][1]), "+f"(C[n][2]), "+f"(C[n][3])
#define HARKEN_C_32(n) HARKEN_C_8(n), HARKEN_C_8(n + 1), HARKEN_C_8(n + 2), HARKEN_C_8(n + 3)
#define HARKEN_C_64 HARKEN_C_32(0), HARKEN_C_32(4)
#define HARKEN_C_128 HARKEN_C_64, HARKEN_C_32(8), HARKEN_C_32(12)
#define HARKEN_C_256 HARKEN_C_128, HARKEN_C_32(16), HARKEN_C_32(20), HARKEN_C_32(24), HARKEN_C_32(28)

#define HARKEN_PRODUCTS(S, N, o0, o1, o2, o3, o4)                                                                    \
  HARKEN_WORD void product(S, float (&C)[N / 8][4], uint64_t A, uint64_t B, bool add) {                             \
    asm volatile("{\n.reg .pred add;\nsetp.ne.u32 add, " o2 ", 0;\n"                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #S "." #S " {" HARKEN_NUMBERS_##N "}, " o0 ", " o1 \
                 ", add, 1, 1, 0, 0;\n}"                                                                             \
                 : HARKEN_C_##N                                                                                      \
                 : "l"(A), "l"(B), "r"(uint32_t(add)));                                                              \
  }                                                                                                                  \
  HARKEN_WORD void product(S, float (&C)[N / 8][4], const uint32_t (&A)[4], uint64_t B) {                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #S "." #S " {" HARKEN_NUMBERS_##N "}, {" o0 ", " o1 \
                 ", " o2 ", " o3 "}, " o4 ", 1, 1, 1, 1;"                                                            \
                 : HARKEN_C_##N                                                                                      \
                 : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "l"(B));                                              \
  }
HARKEN_PRODUCTS(bf16, 64, "%32", "%33", "%34", "%35", "%36")
HARKEN_PRODUCTS(bf16, 128, "%64", "%65", "%66", "%67", "%68")
HARKEN_PRODUCTS(bf16, 256, "%128", "%129", "%130", "%131", "%132")
HARKEN_PRODUCTS(f16, 64, "%32", "%33", "%34", "%35", "%36")
HARKEN_PRODUCTS(f16, 128, "%64", "%65", "%66", "%67", "%68")
HARKEN_PRODUCTS(f16, 256, "%128", "%129", "%130", "%131", "%132")
#undef HARKEN_PRODUCTS

// --- the host's side ---

inline int processors() {
  int card = 0, count = 0;
  check(cudaGetDevice(&card));
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, card));
  return count;
}

inline void clear(void* at, size_t bytes, void* stream) { check(cudaMemsetAsync(at, 0, bytes, cudaStream_t(stream))); }

// By the driver, which is asked for its function: nothing links to libcuda.
inline TensorMap map_of(const Boxed& array, int rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult how;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &how));
    if (how != cudaDriverEntryPointSuccess || found == nullptr)
      throw Fault{HARKEN_FAILED, "the driver has no cuTensorMapEncodeTiled"};
    return Encode(found);
  }();
  cuuint64_t sizes[map_axes], strides[map_axes - 1];
  const cuuint32_t box[map_axes] = {slab_numbers, cuuint32_t(rows), 1, 1, 1}, steps[map_axes] = {1, 1, 1, 1, 1};
  for (int axis = 0; axis < map_axes; ++axis) sizes[axis] = cuuint64_t(array.sizes[axis]);
  for (int axis = 0; axis < map_axes - 1; ++axis) strides[axis] = cuuint64_t(array.strides[axis]);
  const CUtensorMapDataType type =
      array.type == Type::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  TensorMap map;
  const CUresult result =
      encode(&map, type, map_axes, array.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw Fault{HARKEN_FAILED,
                "the driver makes no map of an array for the copy engine: " + std::to_string(int(result))};
  return map;
}

}  // namespace
}  // namespace harken
