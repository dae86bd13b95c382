// kernels.cpp - the kernels of this build, as the build lists them.
#include "kernels.hpp"

namespace harken {

// HARKEN_CUDA_KERNELS comes from the build: X(simple), fastest first.
#define X(name) extern const Kernel name##_kernel;
HARKEN_CUDA_KERNELS
#undef X

const Kernel* const kernels[] = {
#define X(name) &name##_kernel,
    HARKEN_CUDA_KERNELS
#undef X
};
const int kernel_count = sizeof kernels / sizeof *kernels;

}  // namespace harken
