// anywhere.hpp - what is said once for processors and GPUs: where a function may run, and the number in a register.
//
// Files that both compile are written for one F: a register of numbers on a processor, one number on a GPU, where the
// lanes are threads. Their verbs (max, exp2, tanh, any, absolute) are lanes.hpp's here and number.hpp's there.
#pragma once

#ifdef __CUDACC__
#define HARKEN_ANYWHERE __host__ __device__ inline
#else
#define HARKEN_ANYWHERE inline
#endif

namespace harken {
namespace {

template <class F>
struct NumberOf {
  using type = __typeof__(F{}[0] + F{}[0]);
};
template <>
struct NumberOf<float> {
  using type = float;
};
template <>
struct NumberOf<double> {
  using type = double;
};

template <class F>
using Number = typename NumberOf<F>::type;  // T of a Lanes<T>, or of a T

}  // namespace
}  // namespace harken
