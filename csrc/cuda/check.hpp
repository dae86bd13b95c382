// check.hpp - a CUDA call that failed becomes a Fault with CUDA's own text.
#pragma once

#include <cuda_runtime_api.h>

#include "fault.hpp"

namespace harken {

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it is told once; what comes next is told of itself
  const int status = error == cudaErrorMemoryAllocation ? HARKEN_OUT_OF_MEMORY : HARKEN_FAILED;
  throw Fault{status, std::string("CUDA says ") + cudaGetErrorName(error) + ": " + cudaGetErrorString(error)};
}

}  // namespace harken
