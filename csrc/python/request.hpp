// request.hpp - one call as Python made it: the Problem, and what keeps the memory alive that the Problem points to.
#pragma once

#include <optional>

#include "../backend.hpp"
#include "call.hpp"
#include "errors.hpp"

namespace harken {

enum class Purpose { run, describe };  // describe: check everything, allocate no result

struct Request {
  Request(PyObject* const* values, Purpose purpose) : values(values), purpose(purpose) {}
  Request(const Request&) = delete;
  ~Request() {
    while (kept_count > 0) Py_DECREF(kept[--kept_count]);
  }

  PyObject* operator[](Argument argument) const { return values[argument]; }
  bool given(Argument argument) const { return values[argument] != Py_None; }

  // Takes over a reference for as long as the request lives.
  PyArrayObject* keep(PyObject* object) {
    kept[kept_count++] = object;
    return reinterpret_cast<PyArrayObject*>(object);
  }

  PyObject* const* values;
  const Purpose purpose;

  Problem problem;      // 7 KiB: written where used, never cleared or copied
  int leading_axes;     // of the result, before they are merged
  bool one_head;        // q, k and v are 2-D: so are the results
  bool heads_last;      // head_axis=-2: (..., L, H, D)
  bool stored = false;  // k and v are (pages, Hkv, rows, D), whose first axis is none of q's
  bool return_lse, return_weights;
  const char* precision;
  int card = -1;                         // of device=; -1: the CPU
  uintptr_t stream = 0;                  // of CUDA, which orders the work
  PyObject* make = nullptr;              // make(shape, dtype, zero): a result where q lies
  int threads;                           // 0: the default
  int64_t q_start, q_length, kv_length;  // where the views point if an int was given

  bool foreign = false;             // q is an array of another library, and so will the results be
  uint32_t converted = 0;           // bit a: argument a is computed from a converted copy
  PyArrayObject* result = nullptr;  // what is returned as out
  PyArrayObject* aside = nullptr;   // where out is computed first when it cannot be written in place
  PyArrayObject *lse = nullptr, *weights = nullptr;
  PyArrayObject* array[arguments] = {};  // the arrays that are read, as NumPy sees them

 private:
  int kept_count = 0;
  PyObject* kept[4 * arguments];  // fourteen arguments in at most four steps, lists; results, each in two forms
};

// While it lives the lock is free, if so many operations are worth that, and Ctrl-C ends the work.
class Unlocked {
 public:
  explicit Unlocked(double flops);
  ~Unlocked();

 private:
  bool outer_;
  std::optional<py::gil_scoped_release> released_;
};

// Each fills its part of the Problem, in this order, or raises.
void read_operands(Request& request);                   // q, k, v, head_axis: types, sizes, leading axes
void read_options(Request& request);                    // everything else but out
void make_results(Request& request);                    // out, lse, weights
void read_mask(Request& request);                       // after the lengths and q_start: what stands where decides
void merge_axes(Problem& problem);                      // leading axes that all strides step through as one
Outcome compute(Request& request);                      // the Problem, by the chosen backend
PyObject* hand_out(Request& request, Outcome outcome);  // out, or a tuple: out, lse, weights; nullptr: raised

// Right-aligned broadcasting by NumPy's rule to (leading axes..., sizes[0], ..., sizes[count - 1]). Strides of the last
// go to strides[]. `meaning` says in words what the last are.
void broadcast(const Request& request, Argument argument, PyArrayObject* array, View& view, int count,
               const int64_t* sizes, int64_t* strides, const char* meaning);

// To (leading axes..., Hq, Lq, Lk).
void read_pairs(Request& request, Argument argument, PyArrayObject* array, View& view);

// Has a signal handler raised? What the threads of a long call ask; see set_interrupt.
bool signalled();

}  // namespace harken
