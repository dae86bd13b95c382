// interface.h - the C interface of libharken_cuda.so: cards, kernels, the plan of a problem, the problem.
//
// It knows neither Python nor NumPy. Every function that can fail returns HARKEN_OK or what is wrong, and
// harken_cuda_error() says it in words. A call's problem is a harken::Problem (problem.hpp) and its size; both sides
// are of one version if the sizes and HARKEN_CUDA_INTERFACE agree. Each of its arrays lies wholly on the card, aligned
// to its element, or wholly in the memory of the host; strides mean the same in both. What lies on the host is copied
// to the card first, results that belong there are copied back, and harken_cuda_attend returns when they are there. If
// all results lie on the card it returns when the work is queued on the stream. A large problem that lies on the host
// with all its arrays goes through the card in pieces, on streams of the library's own, and need not fit into it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define HARKEN_CUDA_INTERFACE 2

#ifdef __cplusplus
extern "C" {
#endif

enum {
  HARKEN_OK = 0,
  HARKEN_NO_CARD = 1,        // no driver, no card, or one that is too old
  HARKEN_NO_KERNEL = 2,      // none of those allowed takes the problem
  HARKEN_OUT_OF_MEMORY = 3,  // on the card or on the host; the card stays usable
  HARKEN_FAILED = 4,         // CUDA refused, and says why
  HARKEN_MISUSED = 5         // the call itself is wrong
};

typedef struct {
  char name[256];
  int32_t major, minor;  // compute capability
  int32_t processors;
  int64_t memory, free;  // bytes
} harken_cuda_card_facts;

typedef struct {
  const char *name, *idea;
  const char* source;  // hash of the text it is made of
  int32_t capability;  // compute capability that runs it: 80, 90
  int32_t newer;       // 1: every newer one, too
} harken_cuda_kernel_facts;

typedef struct {
  const void* problem;
  size_t problem_bytes;
  uint64_t kernels;  // bit n: kernel n may be taken
  void* stream;      // a cudaStream_t; null: the legacy default stream
  int32_t card;
} harken_cuda_call;

typedef struct {
  int32_t kernel;   // the first of those allowed that takes the problem
  int32_t threads;  // of a block
  int64_t blocks;
  int64_t shared_bytes;  // of a block
  int64_t workspace;     // bytes of the card besides the arrays
  char why[1024];        // why none of the faster ones
} harken_cuda_plan_facts;

int harken_cuda_interface(void);
const char* harken_cuda_build(void);  // the compiler, and what the code is for
const char* harken_cuda_error(void);  // of this thread's last call that failed

int harken_cuda_cards(int32_t* count);
int harken_cuda_capability(int32_t card, int32_t* capability);  // 80, 90; at once, where the facts take time
int harken_cuda_card(int32_t card, harken_cuda_card_facts* facts);
int32_t harken_cuda_kernels(void);  // fastest first
int harken_cuda_kernel(int32_t kernel, harken_cuda_kernel_facts* facts);

int harken_cuda_plan(const harken_cuda_call* call, harken_cuda_plan_facts* plan);
int harken_cuda_attend(const harken_cuda_call* call);

// Memory of a card, in the order of a stream.
int harken_cuda_allocate(int32_t card, size_t bytes, void* stream, void** at);
int harken_cuda_release(int32_t card, void* at, void* stream);
int harken_cuda_copy(int32_t card, void* to, const void* from, size_t bytes, void* stream);  // in any direction
int harken_cuda_copy_rows(int32_t card, void* to, int64_t to_step, const void* from, int64_t from_step, size_t bytes,
                          size_t rows, void* stream);  // `bytes` of each row, rows so many bytes apart
int harken_cuda_clear(int32_t card, void* at, size_t bytes, void* stream);  // to zeros
int harken_cuda_wait(int32_t card, void* stream);
int harken_cuda_pin(int32_t card, size_t bytes, void** at);  // memory of the host that every card copies by itself
int harken_cuda_unpin(int32_t card, void* at);
int harken_cuda_where(const void* at, int32_t* card);  // -1: the host

#ifdef __cplusplus
}
#endif
