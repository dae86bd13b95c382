// operands.cpp - q, k and v: their types agree, their sizes fit, their leading axes broadcast.
#include "arrays.hpp"
#include "foreign.hpp"

namespace harken {
namespace {

using argument::k;
using argument::q;
using argument::v;

struct Operand {
  PyArrayObject* array;
  int leading;  // axes before (H, L, D)
  int64_t heads, rows, channels;
};

const char* article(Type type) { return type == Type::bf16 ? "ml_dtypes." : "np."; }

// Types mix as long as all are computed in float, or all in double.
void agree(const Request& request, Argument one, Type its, Argument other, Type others) {
  if ((its == Type::f64) == (others == Type::f64)) return;
  const char* name = name_of(other);
  py::str example("");  // how to mend it, for what is or becomes an ndarray
  if (PyArray_Check(request[other])) {
    example = py::str(", for example {}.astype({}{})").format(name, article(its), name_of(its));
  } else if (!is_foreign(request[other])) {
    example = py::str(", for example np.asarray({}, {}{})").format(name, article(its), name_of(its));
  }
  refuse(PyExc_TypeError, "%s is %s, %s is %s: give both the same dtype%U", name_of(one), name_of(its), name,
         name_of(others), example.ptr());
}

int read_head_axis(PyObject* given) {
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(given));
  if (!index) {
    PyErr_Clear();
    refuse(PyExc_TypeError, "head_axis is %R: wanted -3 for (..., H, L, D) or -2 for (..., L, H, D)", given);
  }
  int overflow;
  const long axis = PyLong_AsLongAndOverflow(index.ptr(), &overflow);
  if (axis != -3 && axis != -2) {
    refuse(PyExc_ValueError, "head_axis is %R: wanted -3 for (..., H, L, D) or -2 for (..., L, H, D)", given);
  }
  return int(axis);
}

Operand read_operand(Request& request, Argument argument, View& view) {
  PyArrayObject* array = request.array[argument];
  const int axes = PyArray_NDIM(array);
  const npy_intp *sizes = PyArray_DIMS(array), *strides = PyArray_STRIDES(array);
  if (axes < 2) {
    refuse(PyExc_ValueError, "%s has shape %S: wanted at least two axes, (length, channels)", name_of(argument),
           shape_text(array).ptr());
  }
  view.data = PyArray_BYTES(array);
  view.col = strides[axes - 1];
  if (axes == 2) {
    view.head = 0;
    view.row = strides[0];
    return {array, 0, 1, sizes[0], sizes[1]};
  }
  const bool in_pages = request.stored && argument != q, heads_last = request.heads_last && !in_pages;
  const int head = axes - (heads_last ? 2 : 3), row = axes - (heads_last ? 3 : 2);
  view.head = strides[head];
  view.row = strides[row];
  return {array, in_pages ? 0 : axes - 3, sizes[head], sizes[row], sizes[axes - 1]};
}

void check_sizes(const Operand& Q, const Operand& K, const Operand& V) {
  if (K.channels != Q.channels) {
    refuse(PyExc_ValueError, "q has %zd channels, k has %zd: a query and a key need the same number", Q.channels,
           K.channels);
  }
  if (V.rows != K.rows) {
    refuse(PyExc_ValueError, "v has %zd rows, k has %zd: keys and values come in pairs", V.rows, K.rows);
  }
  if (V.heads != K.heads) {
    refuse(PyExc_ValueError, "v has %zd heads, k has %zd: keys and values come in pairs", V.heads, K.heads);
  }
  if (K.heads == 0 ? Q.heads != 0 : Q.heads % K.heads != 0) {
    refuse(PyExc_ValueError, "k has %zd heads, q has %zd: q's heads must be a multiple of k's", K.heads, Q.heads);
  }
}

[[noreturn]] void refuse_leading(const Operand (&operands)[3]) {
  py::object text[3];
  for (int n = 0; n < 3; ++n) text[n] = shape_text(PyArray_DIMS(operands[n].array), operands[n].leading);
  refuse(PyExc_ValueError,
         "the leading axes of q %S, k %S and v %S do not broadcast: they must be equal, or 1, or missing",
         text[0].ptr(), text[1].ptr(), text[2].ptr());
}

// NumPy's rule: aligned at the right, an axis of size 1 or a missing one is repeated by a stride of 0.
void broadcast_leading(const Operand (&operands)[3], Problem& problem) {
  View* const views[] = {&problem.q, &problem.k, &problem.v};
  for (int axis = 0; axis < problem.batch_axes; ++axis) {
    int64_t size = 1;
    for (int n = 0; n < 3; ++n) {
      const int own = axis - (problem.batch_axes - operands[n].leading);
      const int64_t own_size = own < 0 ? 1 : PyArray_DIM(operands[n].array, own);
      views[n]->batch[axis] = own_size == 1 ? 0 : PyArray_STRIDE(operands[n].array, own);
      if (own_size == 1 || own_size == size) continue;
      if (size != 1) refuse_leading(operands);
      size = own_size;
    }
    problem.batch_shape[axis] = size;
  }
}

// Everything that is ever counted: the elements and bytes of each result, the scores, the tasks.
void check_total(const Operand (&operands)[3], Problem& problem) {
  int64_t rows = 1, elements, scores, bytes;
  bool overflow = false;
  problem.batches = 1;
  auto times = [&](int64_t a, int64_t b, int64_t* product) {  // an axis of size 0 hides no overflow of the others
    overflow |= __builtin_mul_overflow(a, b == 0 ? 1 : b, product);
  };
  for (int axis = 0; axis < problem.batch_axes; ++axis) {
    problem.batches *= overflow ? 0 : problem.batch_shape[axis];
    times(rows, problem.batch_shape[axis], &rows);
  }
  times(rows, problem.Hq, &rows);
  times(rows, problem.Lq, &rows);
  times(rows, problem.Dv, &elements);
  times(rows, problem.Lk, &scores);
  times(elements, sizeof(double), &bytes);
  times(scores, sizeof(double), &bytes);
  const int64_t channels = problem.D < problem.Dv ? problem.Dv : problem.D;
  times(channels, 1 << 16, &bytes);  // what a thread works in: a block of keys, a tile of queries
  times(channels, 1 << 8, &bytes);
  times(bytes, rows, &bytes);  // in decode, all rows of a group
  if (!overflow) return;
  refuse(PyExc_ValueError,
         "q %S, k %S and v %S make a problem of more than 2**63 bytes: nothing can hold or compute it",
         shape_text(operands[0].array).ptr(), shape_text(operands[1].array).ptr(), shape_text(operands[2].array).ptr());
}

}  // namespace

void read_operands(Request& request) {
  Problem& problem = request.problem;
  Type &of_q = problem.q.type, &of_k = problem.k.type, &of_v = problem.v.type;
  floating(request, q, &of_q);
  stored(request, k, of_q, &of_k);
  stored(request, v, of_q, &of_v);
  agree(request, q, of_q, k, of_k);
  agree(request, q, of_q, v, of_v);
  problem.type = wider(wider(of_q, of_k), of_v);
  problem.pages.table.data = problem.pages.origins.data = nullptr;

  request.heads_last = read_head_axis(request[argument::head_axis]) == -2;
  const Operand operands[3] = {read_operand(request, q, problem.q), read_operand(request, k, problem.k),
                               read_operand(request, v, problem.v)};
  const auto& [Q, K, V] = operands;
  check_sizes(Q, K, V);
  problem.Hq = Q.heads;
  problem.Hkv = K.heads == 0 ? 1 : K.heads;  // of nothing: there is no query head either, but Hq / Hkv exists
  problem.Lq = Q.rows;
  problem.Lk = K.rows;
  problem.D = Q.channels;
  problem.Dv = V.channels;

  request.one_head = PyArray_NDIM(Q.array) == 2 && PyArray_NDIM(K.array) == 2 && PyArray_NDIM(V.array) == 2;
  problem.batch_axes = Q.leading;
  if (problem.batch_axes < K.leading) problem.batch_axes = K.leading;
  if (problem.batch_axes < V.leading) problem.batch_axes = V.leading;
  request.leading_axes = problem.batch_axes;
  broadcast_leading(operands, problem);
  check_total(operands, problem);
}

}  // namespace harken
