// cuda_card.cpp - a card by way of the CUDA runtime, which looks for the driver when it is first asked for something.
#include <string.h>

#include "card.hpp"
#include "check.hpp"

namespace harken::card {

namespace {

constexpr int least_capability = 80;

void check_reach(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw Fault{HARKEN_NO_CARD,
              error == cudaErrorInsufficientDriver
                  ? "there is no NVIDIA driver, or one from before CUDA 13 (580)"
                  : std::string("CUDA says ") + cudaGetErrorName(error) + ": " + cudaGetErrorString(error)};
}

}  // namespace

const char* build() { return HARKEN_CUDA_BUILD; }

int count() {
  int found = 0;
  check_reach(cudaGetDeviceCount(&found));
  return found;
}

int capability(int card) {
  const int found = count();
  if (card < 0 || card >= found)
    throw Fault{HARKEN_MISUSED,
                "there is no card " + std::to_string(card) + ": wanted 0 to " + std::to_string(found - 1)};
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, card));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, card));
  return major * 10 + minor;
}

harken_cuda_card_facts facts(int card) {
  const int its = capability(card);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, card));
  harken_cuda_card_facts facts = {};
  memcpy(facts.name, properties.name, sizeof facts.name);
  facts.major = properties.major;
  facts.minor = properties.minor;
  facts.processors = properties.multiProcessorCount;
  facts.memory = int64_t(properties.totalGlobalMem);
  if (its < least_capability) return facts;
  const Meant meant(card);
  size_t free = 0, all = 0;
  check(cudaMemGetInfo(&free, &all));
  facts.free = int64_t(free);
  return facts;
}

Meant::Meant(int card) {
  check_reach(cudaGetDevice(&before_));
  const int its = capability(card);
  if (its < least_capability)
    throw Fault{HARKEN_NO_CARD, "card " + std::to_string(card) + " has compute capability " + std::to_string(its / 10) +
                                    "." + std::to_string(its % 10) + ": wanted 8.0 or newer"};
  check(cudaSetDevice(card));
}

Meant::~Meant() { cudaSetDevice(before_); }

int where(const void* at) {
  cudaPointerAttributes attributes;
  check(cudaPointerGetAttributes(&attributes, at));
  const bool there = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return there ? attributes.device : -1;
}

void* allocate(size_t bytes, void* stream) {
  void* at = nullptr;
  check(cudaMallocAsync(&at, bytes, cudaStream_t(stream)));
  return at;
}

void release(void* at, void* stream) noexcept { cudaFreeAsync(at, cudaStream_t(stream)); }

void copy(void* to, const void* from, size_t bytes, void* stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cudaStream_t(stream)));
}

void copy_rows(void* to, int64_t to_step, const void* from, int64_t from_step, size_t bytes, size_t rows,
               void* stream) {
  const size_t widest = to_step > from_step ? to_step : from_step;
  if (rows == 1) return copy(to, from, bytes, stream);
  if (widest < (size_t(1) << 31)) {  // cudaDevAttrMaxPitch
    check(cudaMemcpy2DAsync(to, to_step, from, from_step, bytes, rows, cudaMemcpyDefault, cudaStream_t(stream)));
    return;
  }
  for (size_t n = 0; n < rows; ++n)
    copy(static_cast<char*>(to) + n * to_step, static_cast<const char*>(from) + n * from_step, bytes, stream);
}

void clear(void* at, size_t bytes, void* stream) { check(cudaMemsetAsync(at, 0, bytes, cudaStream_t(stream))); }

void wait(void* stream) { check(cudaStreamSynchronize(cudaStream_t(stream))); }

int64_t free_memory() {
  size_t free = 0, all = 0;
  check(cudaMemGetInfo(&free, &all));
  return int64_t(free);
}

void* new_stream() {
  int card = 0;
  cudaMemPool_t pool;
  uint64_t kept = uint64_t(256) << 20;  // bytes that the pool does not give back each time that somebody waits
  check(cudaGetDevice(&card));
  check(cudaDeviceGetDefaultMemPool(&pool, card));
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept));
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream;
}

void* new_event() {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return event;
}

void record(void* event, void* stream) { check(cudaEventRecord(cudaEvent_t(event), cudaStream_t(stream))); }
void follow(void* stream, void* event) { check(cudaStreamWaitEvent(cudaStream_t(stream), cudaEvent_t(event), 0)); }
void wait_for(void* event) { check(cudaEventSynchronize(cudaEvent_t(event))); }

const int64_t buffer_bytes = 16 << 20;

void* pin(size_t bytes) {
  void* at = nullptr;
  check(cudaHostAlloc(&at, bytes, cudaHostAllocPortable));
  return at;
}

void unpin(void* at) noexcept { cudaFreeHost(at); }

bool pinned(const void* at) {
  cudaPointerAttributes attributes;
  check(cudaPointerGetAttributes(&attributes, at));
  return attributes.type == cudaMemoryTypeHost;
}

}  // namespace harken::card
