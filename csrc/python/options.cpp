// options.cpp - what turns scores into weights, and who may look: numbers, words, and arrays that broadcast.
#include <math.h>

#include <string>

#include "arrays.hpp"

namespace harken {
namespace {

constexpr int64_t farthest = unbounded / 2;  // a position; position plus window still fits

bool flag(const Request& request, Argument argument) {
  PyObject* given = request[argument];
  if (given == Py_False) return false;
  if (given == Py_True) return true;
  if (!PyArray_IsScalar(given, Bool))
    refuse(PyExc_TypeError, "%s is %R: wanted True or False", name_of(argument), given);
  return PyObject_IsTrue(given) == 1;
}

bool is_bool(PyObject* given) { return PyBool_Check(given) || PyArray_IsScalar(given, Bool); }

// An integer of any size, as the nearest one that int64 holds. False: it is no integer.
bool integer(PyObject* given, int64_t* value) {
  if (is_bool(given) || !PyIndex_Check(given)) return false;
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(given));
  if (!index) {  // an array of several
    PyErr_Clear();
    return false;
  }
  int overflow;
  *value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0) *value = overflow < 0 ? INT64_MIN : INT64_MAX;
  return true;
}

// A float, an int, a NumPy scalar of either. False: it is something else.
bool number(PyObject* given, double* value) {
  if (PyFloat_Check(given)) {
    *value = PyFloat_AS_DOUBLE(given);
    return true;
  }
  if (is_bool(given) ||
      !(PyLong_Check(given) || PyArray_IsScalar(given, Integer) || PyArray_IsScalar(given, Floating))) {
    return false;
  }
  *value = PyFloat_AsDouble(given);
  if (PyErr_Occurred()) {  // 10**400
    PyErr_Clear();
    *value = HUGE_VAL;
  }
  return true;
}

// Which of the words it is.
template <int n>
int word(const Request& request, Argument argument, const char* const (&words)[n], const char* wanted) {
  PyObject* given = request[argument];
  if (!PyUnicode_Check(given)) refuse(PyExc_TypeError, "%s is %R: wanted %s", name_of(argument), given, wanted);
  for (int which = 0; which < n; ++which) {
    if (PyUnicode_CompareWithASCIIString(given, words[which]) == 0) return which;
  }
  refuse(PyExc_ValueError, "%s is %R: wanted %s", name_of(argument), given, wanted);
}

void read_per_head(Request& request, Argument argument, View& view) {
  PyArrayObject* array = doubles(request, argument);
  view.type = Type::f64;
  broadcast(request, argument, array, view, 1, &request.problem.Hq, &view.head, "(..., Hq)");
}

void read_scale(Request& request) {
  Problem& problem = request.problem;
  PyObject* given = request[argument::scale];
  problem.scales.data = nullptr;
  if (given == Py_None) {
    problem.scale = problem.score != Score::dot || problem.D == 0 ? 1 : 1 / sqrt(double(problem.D));
  } else if (number(given, &problem.scale)) {
    if (!isfinite(problem.scale)) refuse(PyExc_ValueError, "scale is %R: wanted a finite number", given);
  } else {
    if (is_bool(given)) refuse(PyExc_TypeError, "scale is %R: wanted a number, or None for the default", given);
    read_per_head(request, argument::scale, problem.scales);
  }
}

void read_softcap(Request& request) {
  PyObject* given = request[argument::softcap];
  double& softcap = request.problem.softcap;
  softcap = 0;
  if (given == Py_None) return;
  if (!number(given, &softcap)) {
    refuse(PyExc_TypeError, "softcap is %R: wanted a number above 0, or None for no cap", given);
  }
  if (!(softcap > 0 && isfinite(softcap))) {
    refuse(PyExc_ValueError, "softcap is %R: wanted a finite number above 0, or None for no cap", given);
  }
}

void read_window(Request& request) {
  Problem& problem = request.problem;
  PyObject* given = request[argument::window];
  problem.left = problem.right = unbounded;
  if (given != Py_None) {
    int64_t size;
    if (integer(given, &size)) {
      refuse(PyExc_TypeError,
             "window is %R: wanted (left, right), the keys seen on each side, for example window=(%R, %R)", given,
             given, given);
    }
    if (!PyTuple_Check(given) && !PyList_Check(given)) {
      refuse(PyExc_TypeError, "window is %R: wanted (left, right), the keys seen on each side", given);
    }
    if (PySequence_Fast_GET_SIZE(given) != 2) {
      refuse(PyExc_ValueError, "window is %R: wanted two sides, (left, right)", given);
    }
    int64_t* const sides[] = {&problem.left, &problem.right};
    for (int n = 0; n < 2; ++n) {
      PyObject* side = PySequence_Fast_GET_ITEM(given, n);
      if (side == Py_None) continue;
      if (!integer(side, &size)) {
        refuse(PyExc_TypeError, "window is %R: each side is an integer, or None for an unbounded one", given);
      }
      if (size < 0) {
        refuse(PyExc_ValueError, "window is %R: a side counts keys, 0 or more; None is unbounded", given);
      }
      *sides[n] = size < unbounded ? size : unbounded;
    }
  }
  if (flag(request, argument::causal)) problem.right = 0;
}

// One integer a batch row, between least and most.
void read_rows(Request& request, Argument argument, View& view, int64_t* own, int64_t least, int64_t most,
               const char* what) {
  view.data = nullptr;
  if (!request.given(argument)) return;
  view.type = Type::i64;
  const bool lengths = what != nullptr;
  if (integer(request[argument], own)) {
    if (lengths && (*own < least || *own > most)) {
      refuse(PyExc_ValueError, "%s is %R: wanted 0 to %lld, the %s", name_of(argument), request[argument],
             (long long)most, what);
    }
    *own = *own < least ? least : *own > most ? most : *own;
    view.data = reinterpret_cast<char*>(own);
    memset(view.batch, 0, sizeof(int64_t) * request.problem.batch_axes);
    return;
  }
  PyArrayObject* array = integers(request, argument);
  auto* values = static_cast<int64_t*>(PyArray_DATA(array));
  for (npy_intp n = 0; n < PyArray_SIZE(array); ++n) {
    if (lengths && (values[n] < least || values[n] > most)) {
      refuse(PyExc_ValueError, "%s holds %lld: wanted 0 to %lld, the %s", name_of(argument), (long long)values[n],
             (long long)most, what);
    }
    values[n] = values[n] < least ? least : values[n] > most ? most : values[n];
  }
  broadcast(request, argument, array, view, 0, nullptr, nullptr, "the leading axes");
}

void read_w(Request& request) {
  Problem& problem = request.problem;
  View& w = problem.w;
  w.data = nullptr;
  if (!request.given(argument::w)) return;
  if (problem.score != Score::additive) {
    refuse(PyExc_ValueError, "w is given, and score is %R: only score='additive' weighs channels; leave w=None",
           request[argument::score]);
  }
  const int64_t sizes[] = {problem.Hq, problem.D};
  int64_t strides[2];
  PyArrayObject* array = floating(request, argument::w, &w.type);
  broadcast(request, argument::w, array, w, 2, sizes, strides, "(..., Hq, D)");
  w.head = strides[0];
  w.row = 0;
  w.col = strides[1];
}

// What k or v is multiplied by: an array that broadcasts to it, with one factor for all, for each head, for each row or
// for each channel.
void read_storage_scale(Request& request, Argument argument, Argument of, View& view, const View& scaled, int64_t D) {
  const Problem& problem = request.problem;
  view.data = nullptr;
  view.row = view.col = 0;
  const char* name = name_of(of);
  if (!request.given(argument)) {
    if (scaled.type != Type::i8) return;
    refuse(
        PyExc_ValueError,
        "%s is int8 and %s is missing: give the factors that its integers were divided by, as harken.quantize returns "
        "them",
        name, name_of(argument));
  }
  PyArrayObject* array = factors(request, argument);
  view.type = problem.type == Type::f64 ? Type::f64 : Type::f32;
  PyArrayObject* own = request.array[of];
  const int axes = PyArray_NDIM(own), given = PyArray_NDIM(array);
  bool fits = given <= axes;
  int64_t strides[3] = {};  // of the head, the row, the column
  for (int axis = 0; axis < axes && fits; ++axis) {
    const int at = axis - (axes - given);
    const int64_t size = at < 0 ? 1 : PyArray_DIM(array, at), stride = size == 1 ? 0 : PyArray_STRIDE(array, at);
    fits = size == 1 || size == PyArray_DIM(own, axis);
    const int from_end = axes - axis;  // 1: column
    if (from_end <= 3) {
      const bool swapped = request.heads_last && !request.stored && axes > 2 && from_end > 1;
      strides[swapped ? from_end - 2 : 3 - from_end] = stride;
    } else {
      view.batch[axis + problem.batch_axes + 3 - axes] = stride;
    }
  }
  for (int axis = 0; axis < problem.batch_axes + 3 - axes; ++axis) view.batch[axis] = 0;
  if (!fits) {
    refuse(PyExc_ValueError, "%s has shape %S: wanted one that broadcasts to %S, the shape of %s", name_of(argument),
           shape_text(array).ptr(), shape_text(own).ptr(), name);
  }
  view.data = PyArray_BYTES(array);
  view.head = strides[0];
  view.row = strides[1];
  view.col = strides[2];
  if (view.row == 0 || view.col == 0 || problem.Lk == 0 || D == 0) return;
  refuse(
      PyExc_ValueError,
      "%s has shape %S: wanted one factor for each row of %s or for each of its channels, not for each element; of a "
      "product of both give one, and multiply %s by the other",
      name_of(argument), shape_text(array).ptr(), name, of == argument::k ? "q" : "the result");
}

void read_device(Request& request) {
  PyObject* given = request[argument::device];
  if (given == Py_None) return;
  if (!PyUnicode_Check(given)) refuse(PyExc_TypeError, "device is %R: wanted None, 'cpu' or 'cuda'", given);
  if (PyUnicode_CompareWithASCIIString(given, "cpu") == 0) return;
  const std::string name = py::handle(given).cast<std::string>(), number = name.substr(name.find(':') + 1);
  const bool numbered = !number.empty() && number.size() < 4 && number.find_first_not_of("0123456789") == number.npos;
  if (name != "cuda" && !(name.compare(0, 5, "cuda:") == 0 && numbered)) {
    refuse(PyExc_ValueError, "device is %R: wanted None, 'cpu', 'cuda' or 'cuda:1'", given);
  }
  request.card = py::module_::import("harken.cuda.plan").attr("require")(name).cast<int>();
}

}  // namespace

void broadcast(const Request& request, Argument argument, PyArrayObject* array, View& view, int count,
               const int64_t* sizes, int64_t* strides, const char* meaning) {
  const Problem& problem = request.problem;
  const int axes = PyArray_NDIM(array), wanted = problem.batch_axes + count;
  bool fits = axes <= wanted;
  view.data = PyArray_BYTES(array);
  for (int axis = 0; axis < wanted && fits; ++axis) {
    const int own = axis - (wanted - axes), tail = axis - problem.batch_axes;
    const int64_t size = tail < 0 ? problem.batch_shape[axis] : sizes[tail];
    const int64_t own_size = own < 0 ? 1 : PyArray_DIM(array, own);
    fits = own_size == 1 || own_size == size;
    (tail < 0 ? view.batch[axis] : strides[tail]) = own_size == 1 ? 0 : PyArray_STRIDE(array, own);
  }
  if (fits) return;
  npy_intp shape[max_batch_axes + 3];
  for (int axis = 0; axis < wanted; ++axis) {
    shape[axis] = axis < problem.batch_axes ? problem.batch_shape[axis] : sizes[axis - problem.batch_axes];
  }
  refuse(PyExc_ValueError, "%s has shape %S: wanted one that broadcasts to %S, %s", name_of(argument),
         shape_text(array).ptr(), shape_text(shape, wanted).ptr(), meaning);
}

void read_pairs(Request& request, Argument argument, PyArrayObject* array, View& view) {
  const Problem& problem = request.problem;
  const int64_t sizes[] = {problem.Hq, problem.Lq, problem.Lk};
  int64_t strides[3];
  broadcast(request, argument, array, view, 3, sizes, strides, "(..., Hq, Lq, Lk)");
  view.head = strides[0];
  view.row = strides[1];
  view.col = strides[2];
}

void read_options(Request& request) {
  Problem& problem = request.problem;
  static const char* const scores[] = {"dot", "cosine", "additive"};
  static const char* const precisions[] = {"highest", "high", "medium"};
  problem.score = Score(word(request, argument::score, scores, "'dot', 'cosine' or 'additive'"));
  const auto which = word(request, argument::precision, precisions, "'highest', 'high' or 'medium'");
  request.problem.precision = Precision(which);
  request.precision = precisions[which];
  request.return_lse = flag(request, argument::return_lse);
  request.return_weights = flag(request, argument::return_weights);
  read_device(request);
  read_scale(request);
  read_softcap(request);
  read_window(request);

  read_storage_scale(request, argument::k_scale, argument::k, problem.k_scale, problem.k, problem.D);
  read_storage_scale(request, argument::v_scale, argument::v, problem.v_scale, problem.v, problem.Dv);

  problem.bias.data = problem.slopes.data = problem.sinks.data = nullptr;
  if (request.given(argument::bias)) {
    read_pairs(request, argument::bias, floating(request, argument::bias, &problem.bias.type), problem.bias);
  }
  read_w(request);
  if (request.given(argument::alibi)) read_per_head(request, argument::alibi, problem.slopes);
  if (request.given(argument::sinks)) read_per_head(request, argument::sinks, problem.sinks);

  read_rows(request, argument::q_start, problem.q_starts, &request.q_start, -farthest, farthest, nullptr);
  read_rows(request, argument::q_lengths, problem.q_lengths, &request.q_length, 0, problem.Lq, "queries in q");
  read_rows(request, argument::kv_lengths, problem.kv_lengths, &request.kv_length, 0, problem.Lk, "keys in k");

  read_mask(request);

  request.threads = 0;
  if (request.given(argument::threads)) {
    int64_t threads;
    PyObject* given = request[argument::threads];
    if (!integer(given, &threads)) refuse(PyExc_TypeError, "threads is %R: wanted an integer, 1 or more", given);
    if (threads < 1) refuse(PyExc_ValueError, "threads is %R: wanted 1 or more, or None for the default", given);
    request.threads = threads < INT32_MAX ? int(threads) : INT32_MAX;
  }
}

}  // namespace harken
