// layers.cpp - the layers around attention, as harken.layers calls them: contiguous arrays of one type, sizes agreed.
#include "layers.hpp"

#include <string.h>

#include <algorithm>
#include <new>

#include "../backend.hpp"
#include "../kept.hpp"
#include "../layers/layers.hpp"
#include "../parallel.hpp"
#include "errors.hpp"
#include "request.hpp"

namespace harken {
namespace {

PyArrayObject* contiguous(const py::object& array, const char* name) {
  auto* x = reinterpret_cast<PyArrayObject*>(array.ptr());
  if (!PyArray_Check(array.ptr()) || !PyArray_IS_C_CONTIGUOUS(x) || !PyArray_ISBEHAVED_RO(x) ||
      (PyArray_TYPE(x) != NPY_FLOAT && PyArray_TYPE(x) != NPY_DOUBLE)) {
    refuse(PyExc_TypeError, "%s is no contiguous array of float32 or float64", name);
  }
  return x;
}

// An array that has the type of another, or None.
const void* numbers(const py::object& array, const char* name, const PyArrayObject* like, npy_intp size) {
  if (array.is_none()) return nullptr;
  auto* x = contiguous(array, name);
  if (PyArray_TYPE(x) != PyArray_TYPE(like) || PyArray_SIZE(x) != size) {
    refuse(PyExc_ValueError, "%s is not of the type and size that x asks for", name);
  }
  return PyArray_DATA(x);
}

void* target(const py::object& array, const char* name, const PyArrayObject* like, npy_intp size) {
  const void* data = numbers(array, name, like, size);
  if (data && !PyArray_ISWRITEABLE(reinterpret_cast<PyArrayObject*>(array.ptr()))) {
    refuse(PyExc_ValueError, "%s is read-only", name);
  }
  return const_cast<void*>(data);
}

bool in_double(const PyArrayObject* x) { return PyArray_TYPE(x) == NPY_DOUBLE; }

}  // namespace

void compute(void (*task)(const void*, int64_t, int), const void* context, int64_t count, int threads, double flops) {
  bool done;
  {
    const Unlocked unlocked(flops);
    done = run({task, context}, count, count < threads ? int(count) : threads);
  }
  if (!done) {
    if (PyErr_CheckSignals() == 0) PyErr_SetNone(PyExc_KeyboardInterrupt);
    throw py::error_already_set();
  }
}

namespace {

constexpr int64_t few_pieces = 3;          // 20 us: another thread would be awake when they are done
constexpr int64_t few_products = 400'000;  // 10 us

// Where there is no engine, up to so many rows a product that packs nothing is faster than NumPy's, which takes 2.7
// times as long at 13 rows and as long at 70.
constexpr int64_t few_rows = 64;
// On an engine W is split as it is read, from so many rows on: one thread, a product that packs nothing over it, 8 rows
// 0.87, 11 rows 1.18, 16 rows 1.4, 32 rows 2.1. Panels over it, until x as tiles leaves the L2 or rows are many: 64
// rows 1.9, 128 rows 1.4, 256 of 384 inputs 1.15, 512 of them 0.95 to 1.1; 160 rows of 1536 inputs 1.3, 192 rows 0.97.
constexpr int64_t split_rows = 11, most_split_rows = 256, most_split_bytes = 3 << 19;

bool multiplied_as_split(const Linear& p) {
  return p.rows >= split_rows && p.rows <= most_split_rows && p.rows * p.inputs * 6 <= most_split_bytes;
}

constexpr int64_t panel_rows = 56;  // in panels from so many on, where not

Activation activation(const char* name) {
  constexpr struct {
    const char* name;
    Activation activation;
  } list[] = {{"gelu", Activation::gelu}, {"gelu_tanh", Activation::gelu_tanh}, {"identity", Activation::identity},
              {"relu", Activation::relu}, {"sigmoid", Activation::sigmoid},     {"silu", Activation::silu},
              {"tanh", Activation::tanh}};
  for (const auto& entry : list)
    if (strcmp(entry.name, name) == 0) return entry.activation;
  refuse(PyExc_ValueError, "activation is '%s': wanted gelu, gelu_tanh, identity, relu, sigmoid, silu or tanh", name);
}

// y = f(x + b), all contiguous and of one type; y may be x.
void activate(const char* name, const py::object& x, const py::object& bias, const py::object& y) {
  const auto* from = contiguous(x, "x");
  const npy_intp n = PyArray_SIZE(from), C = bias.is_none() ? 1 : PyArray_DIM(from, PyArray_NDIM(from) - 1);
  const Pointwise p = {activation(name),
                       in_double(from),
                       PyArray_DATA(from),
                       numbers(bias, "bias", from, C),
                       target(y, "y", from, n),
                       n,
                       C};
  compute_noun(chosen().layers->activate, p, p.pieces(), p.pieces() <= few_pieces);
}

// On a matrix engine, part after part.
void multiply_panels(const Linear& linear) {
  const Layers& layers = *chosen().layers;
  Panels p = {linear};
  const int64_t fit = std::max<int64_t>(Panels::most_weights / linear.inputs / 32 * 32, 32);
  const int64_t wide = std::min(linear.outputs, fit), high = std::min(linear.rows, Panels::most_rows);
  Kept memory(p.bytes(wide) + p.bytes(high));
  if (!memory.at()) throw std::bad_alloc();
  p.w = memory.at();
  p.x = p.w + p.bytes(wide);
  for (p.col0 = 0; p.col0 < linear.outputs; p.col0 += wide) {
    p.cols = std::min(wide, linear.outputs - p.col0);
    compute_noun(layers.pack_weight, p, Panels::tiles(p.cols), false);
    for (p.row0 = 0; p.row0 < linear.rows; p.row0 += high) {
      p.rows = std::min(high, linear.rows - p.row0);
      compute_noun(layers.pack_rows, p, Panels::tiles(p.rows), false);
      compute_noun(layers.multiply_panels, p, p.tasks(), false);
    }
  }
}

// On a matrix engine, all rows at once: W is split into its terms as it is read.
void multiply_split(const Linear& linear) {
  const Layers& layers = *chosen().layers;
  Panels p = {linear, 0, linear.rows, 0, linear.outputs, nullptr, nullptr};
  Kept memory(p.bytes(linear.rows));
  if (!memory.at()) throw std::bad_alloc();
  p.x = memory.at();
  compute_noun(layers.pack_beside, p, (linear.rows + 15) / 16, true);
  compute_noun(layers.multiply_split, p, p.across(),
               double(linear.rows) * linear.outputs * linear.inputs <= few_products);
}

// y = f(x W^T + b): x (rows, inputs), W (outputs, inputs). False, and nothing done, where NumPy's product is faster.
bool multiply(const char* name, const py::object& x, const py::object& weight, const py::object& bias,
              const py::object& y) {
  const auto *from = contiguous(x, "x"), *w = contiguous(weight, "weight");
  if (PyArray_NDIM(from) != 2 || PyArray_NDIM(w) != 2 || PyArray_DIM(from, 1) != PyArray_DIM(w, 1)) {
    refuse(PyExc_ValueError, "x and weight are no matrices of rows of the same size");
  }
  const int64_t rows = PyArray_DIM(from, 0), outputs = PyArray_DIM(w, 0), inputs = PyArray_DIM(w, 1);
  const Linear p = {activation(name),
                    in_double(from),
                    PyArray_DATA(from),
                    numbers(weight, "weight", from, PyArray_SIZE(w)),
                    numbers(bias, "bias", from, outputs),
                    target(y, "y", from, rows * outputs),
                    rows,
                    inputs,
                    outputs};
  const bool engine = chosen().engine && !p.in_double && inputs > 0 && inputs % 32 == 0;
  if (engine && multiplied_as_split(p)) {
    multiply_split(p);
  } else if (engine && rows >= panel_rows) {
    multiply_panels(p);
  } else if (rows <= few_rows) {
    compute_noun(chosen().layers->multiply, p, p.tasks(), double(rows) * outputs * inputs <= few_products);
  } else {
    return false;
  }
  return true;
}

// y = norm(s) w + b, s = x + residual, along the last axis of (rows, C).
void normalize(bool centered, const py::object& x, const py::object& residual, const py::object& weight,
               const py::object& bias, double eps, const py::object& y, const py::object& sum) {
  const auto* from = contiguous(x, "x");
  if (PyArray_NDIM(from) != 2) refuse(PyExc_ValueError, "x is no matrix of rows");
  const npy_intp n = PyArray_SIZE(from), rows = PyArray_DIM(from, 0), C = PyArray_DIM(from, 1);
  const Normalization p = {centered,
                           in_double(from),
                           PyArray_DATA(from),
                           numbers(residual, "residual", from, n),
                           numbers(weight, "weight", from, C),
                           numbers(bias, "bias", from, C),
                           target(y, "y", from, n),
                           target(sum, "sum", from, n),
                           C > 0 ? rows : 0,
                           C,
                           eps};
  compute_noun(chosen().layers->normalize, p, p.pieces(), p.pieces() <= few_pieces);
}

}  // namespace

void bind_layers(py::module_& module) {
  module.def("_activate", activate, py::arg("name"), py::arg("x"), py::arg("bias").none(true), py::arg("y"),
             "y = f(x + b), number by number.");
  module.def("_convolve", convolve, "What harken.layers.Conv1D calls.");
  module.def("_linear", multiply, py::arg("name"), py::arg("x"), py::arg("weight"), py::arg("bias").none(true),
             py::arg("y"), "y = f(x W^T + b).");
  module.def("_normalize", normalize, py::arg("centered"), py::arg("x"), py::arg("residual").none(true),
             py::arg("weight").none(true), py::arg("bias").none(true), py::arg("eps"), py::arg("y"),
             py::arg("sum").none(true), "y = norm(x + residual) w + b, along the last axis.");
}

}  // namespace harken
