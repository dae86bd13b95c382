// layers.hpp - the layers around attention: arrays that Python has checked become plain data, and the backend answers.
#pragma once

#include "../parallel.hpp"
#include "numpy.hpp"

namespace harken {

void bind_layers(py::module_& module);
void bind_recurrence(py::module_& module);
void bind_rotation(py::module_& module);

// Runs the tasks of a call of so many operations, without the interpreter's lock if they are many; Ctrl-C ends them.
void compute(void (*task)(const void*, int64_t, int), const void* context, int64_t count, int threads, double flops);

// The tasks of a noun; few of them stay on this thread.
template <class Noun>
void compute_noun(void (*verb)(const Noun&, int64_t), const Noun& noun, int64_t count, bool few) {
  struct Call {
    void (*verb)(const Noun&, int64_t);
    const Noun& noun;
  };
  const Call call = {verb, noun};
  compute(
      [](const void* context, int64_t task, int) {
        const auto& c = *static_cast<const Call*>(context);
        c.verb(c.noun, task);
      },
      &call, count, few ? 1 : usable_threads(0), few ? 0 : 1e9);  // which is worth the lock
}

void convolve(const py::object& x, const py::object& weight, const py::object& bias, const py::object& y,
              const py::object& lengths, int64_t stride, int64_t dilation, int64_t left, int64_t right, int64_t groups,
              bool stream);

}  // namespace harken
