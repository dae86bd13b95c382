// call.hpp - a Python `def` whose body is C++: its signature stands in Python, its call goes straight to the kernel.
#pragma once

#include "numpy.hpp"

namespace harken {

// The arguments of attention and explain, in the order of the def. The first three are required, the rest by keyword.
#define HARKEN_ARGUMENTS(X) \
  X(q) X(k) X(v) \
  X(mask) X(bias) X(causal) X(window) X(q_start) X(q_lengths) X(kv_lengths) \
  X(scale) X(score) X(w) X(softcap) X(alibi) X(sinks) X(k_scale) X(v_scale) X(precision) X(head_axis) \
  X(return_lse) X(return_weights) X(out) X(threads) X(device)

namespace argument {
enum Argument : int {
#define HARKEN_ARGUMENT(name) name,
  HARKEN_ARGUMENTS(HARKEN_ARGUMENT)
#undef HARKEN_ARGUMENT
};
}  // namespace argument
using argument::Argument;

#define HARKEN_ONE(name) +1
constexpr int arguments = 0 HARKEN_ARGUMENTS(HARKEN_ONE);
#undef HARKEN_ONE
constexpr int required_arguments = 3;

const char* name_of(Argument argument);

// A new reference, or nullptr with a Python exception set. Every value is there: what the caller left out is the
// default of the def. References are the caller's.
using Body = PyObject* (*)(PyObject* const* values);

PyObject* attend(PyObject* const* values);   // (out) or a tuple: out, lse, weights
PyObject* explain(PyObject* const* values);  // harken.Plan

// The values of a call of `function`, which native() made, with these three and these keywords: borrowed.
void values_of(const py::object& function, const py::object& q, const py::object& k, const py::object& v,
               const py::dict& options, PyObject** values);

// The decorator: a callable object that documents itself as `function` does, whose body is the one named like it.
py::object native(py::object function);

}  // namespace harken
