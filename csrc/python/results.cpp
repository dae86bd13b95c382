// results.cpp - the arrays that a call fills: out, lse and weights, new or given.
#include "arrays.hpp"
#include "foreign.hpp"

namespace harken {
namespace {

struct Shape {
  int axes;
  npy_intp sizes[max_batch_axes + 3];

  void append(int64_t size) { sizes[axes++] = size; }
  bool is_of(PyArrayObject* array) const {
    return PyArray_NDIM(array) == axes && PyArray_CompareLists(PyArray_DIMS(array), sizes, axes);
  }
};

// Where the axes of a result stand behind the leading ones; -1: it has no such axis.
struct Places {
  int head, row, col;
};

Shape shape_of(const Request& request, const Places& places, int64_t row_size, int64_t col_size) {
  const Problem& problem = request.problem;
  Shape shape;
  shape.axes = 0;
  for (int axis = 0; axis < request.leading_axes; ++axis) shape.append(problem.batch_shape[axis]);
  for (int place = 0; place < 3; ++place) {
    if (place == places.head) shape.append(problem.Hq);
    if (place == places.row) shape.append(row_size);
    if (place == places.col) shape.append(col_size);
  }
  return shape;
}

void lay(const Request& request, const Places& places, const npy_intp* strides, View& view) {
  const int leading = request.leading_axes;
  for (int axis = 0; axis < leading; ++axis) view.batch[axis] = strides[axis];
  view.head = places.head < 0 ? 0 : strides[leading + places.head];
  view.row = strides[leading + places.row];
  view.col = places.col < 0 ? 0 : strides[leading + places.col];
}

// A new array that begins with a cache line: of one that does not, JAX would make a copy.
[[gnu::cold]] PyObject* aligned(Shape& shape, PyArray_Descr* steals_descr, bool zero) {
  constexpr npy_intp line = 64;
  npy_intp bytes = PyDataType_ELSIZE(steals_descr);
  for (int axis = 0; axis < shape.axes; ++axis) bytes *= shape.sizes[axis];
  bytes += line;
  PyObject* memory = zero ? PyArray_ZEROS(1, &bytes, NPY_UINT8, 0) : PyArray_EMPTY(1, &bytes, NPY_UINT8, 0);
  if (memory == nullptr) {
    Py_DECREF(steals_descr);
    return nullptr;
  }
  char* begin = PyArray_BYTES(reinterpret_cast<PyArrayObject*>(memory));
  begin += -reinterpret_cast<uintptr_t>(begin) % line;
  PyObject* array = PyArray_NewFromDescr(&PyArray_Type, steals_descr, shape.axes, shape.sizes, nullptr, begin,
                                         NPY_ARRAY_WRITEABLE, nullptr);
  if (array == nullptr) {
    Py_DECREF(memory);
    return nullptr;
  }
  PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array), memory);
  return array;
}

// A new array in the memory of the card that q lies on.
[[gnu::cold]] PyObject* on_card(const Request& request, const Shape& shape, PyArray_Descr* steals_descr, bool zero) {
  const auto descr = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(steals_descr));
  return py::handle(request.make)(shape_text(shape.sizes, shape.axes), descr, zero).release().ptr();
}

// A new array in C order. One that is only described has a place but no memory.
PyArrayObject* make(Request& request, const Places& places, Shape& shape, int type_number, bool zero, View& view) {
  PyArray_Descr* descr = PyArray_DescrFromType(type_number);
  if (request.purpose == Purpose::describe) {
    npy_intp strides[max_batch_axes + 3], stride = PyDataType_ELSIZE(descr);
    Py_DECREF(descr);
    for (int axis = shape.axes - 1; axis >= 0; --axis) {
      strides[axis] = stride;
      stride *= shape.sizes[axis];
    }
    lay(request, places, strides, view);
    view.data = reinterpret_cast<char*>(&request.problem);
    return nullptr;
  }
  PyObject* array =
      request.make != nullptr ? on_card(request, shape, descr, zero)
      : request.foreign       ? aligned(shape, descr, zero)
      : zero ? PyArray_Zeros(shape.axes, shape.sizes, descr, 0)
             : PyArray_NewFromDescr(&PyArray_Type, descr, shape.axes, shape.sizes, nullptr, nullptr, 0, nullptr);
  PyArrayObject* made = request.keep(must(array));
  lay(request, places, PyArray_STRIDES(made), view);
  view.data = PyArray_BYTES(made);
  return made;
}

struct Bounds {
  const char *first, *last;  // last is past the end
};

Bounds bounds_of(PyArrayObject* array) {
  Bounds bounds = {PyArray_BYTES(array), PyArray_BYTES(array) + PyArray_ITEMSIZE(array)};
  for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
    if (PyArray_DIM(array, axis) == 0) return {nullptr, nullptr};
    const npy_intp reach = PyArray_STRIDE(array, axis) * (PyArray_DIM(array, axis) - 1);
    (reach < 0 ? bounds.first : bounds.last) += reach;
  }
  return bounds;
}

// Do two arrays share an element? NumPy looks at the strides, for a bounded time.
bool may_overlap(PyArrayObject* one, PyArrayObject* other) {
  const py::object verdict = py::module_::import("numpy").attr("may_share_memory")(
      py::handle(reinterpret_cast<PyObject*>(one)), py::handle(reinterpret_cast<PyObject*>(other)), 1);
  return verdict.cast<bool>();
}

// From the shortest stride to the longest, every axis must step over all that the ones before it reach.
bool overlaps_itself(PyArrayObject* array) {
  if (PyArray_IS_C_CONTIGUOUS(array) || PyArray_SIZE(array) == 0) return false;
  npy_intp reach = PyArray_ITEMSIZE(array), past = -1;
  for (;;) {
    npy_intp shortest = NPY_MAX_INTP, extent = 0;
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
      const npy_intp stride =
          PyArray_STRIDE(array, axis) < 0 ? -PyArray_STRIDE(array, axis) : PyArray_STRIDE(array, axis);
      if (PyArray_DIM(array, axis) == 1 || stride <= past || stride > shortest) continue;
      if (stride == shortest) return true;
      shortest = stride;
      extent = stride * (PyArray_DIM(array, axis) - 1);
    }
    if (shortest == NPY_MAX_INTP) return false;
    if (shortest < reach) return true;
    reach += extent;
    past = shortest;
  }
}

PyArrayObject* check_out(Request& request, const Shape& shape, int type_number) {
  PyObject* given = request[argument::out];
  if (!PyArray_Check(given) && is_foreign(given)) {
    given = reinterpret_cast<PyObject*>(request.keep(view_foreign(given, "out").release().ptr()));
  }
  if (!PyArray_Check(given)) {
    refuse(PyExc_TypeError, "out is %s: wanted a NumPy array that the result is written to", Py_TYPE(given)->tp_name);
  }
  refuse_subclass(argument::out, given);
  auto* out = reinterpret_cast<PyArrayObject*>(given);
  if (PyArray_TYPE(out) != type_number) {
    refuse(PyExc_TypeError, "out is %S, wanted %s, the dtype of q", reinterpret_cast<PyObject*>(PyArray_DESCR(out)),
           name_of(request.problem.q.type));
  }
  if (!shape.is_of(out)) {
    refuse(PyExc_ValueError, "out has shape %S, wanted %S", shape_text(out).ptr(),
           shape_text(shape.sizes, shape.axes).ptr());
  }
  if (!PyArray_ISWRITEABLE(out)) refuse(PyExc_ValueError, "out is read-only: wanted an array that can be written to");
  if (overlaps_itself(out)) {
    refuse(PyExc_ValueError,
           "out has strides %S for shape %S, so that elements share memory: wanted one place for each",
           shape_text(PyArray_STRIDES(out), PyArray_NDIM(out)).ptr(), shape_text(out).ptr());
  }
  return out;
}

bool writable_in_place(const Request& request, PyArrayObject* out) {
  if (!PyArray_ISBEHAVED(out)) return false;  // not aligned, or not in native byte order
  const Bounds bounds = bounds_of(out);
  for (PyArrayObject* array : request.array) {
    if (array == nullptr) continue;
    const Bounds others = bounds_of(array);  // nearly always this decides
    if (bounds.first < others.last && others.first < bounds.last && may_overlap(out, array)) return false;
  }
  return true;
}

}  // namespace

void make_results(Request& request) {
  Problem& problem = request.problem;
  const int type_number = PyArray_TYPE(request.array[argument::q]);

  const Places pairs = request.one_head ? Places{-1, 0, 1} : Places{0, 1, 2};
  const Places out_places = request.heads_last && !request.one_head ? Places{1, 0, 2} : pairs;
  Shape shape = shape_of(request, out_places, problem.Lq, problem.Dv);
  problem.out.type = problem.q.type;
  if (request.given(argument::out)) {
    request.result = check_out(request, shape, type_number);
    if (writable_in_place(request, request.result)) {
      lay(request, out_places, PyArray_STRIDES(request.result), problem.out);
      problem.out.data = PyArray_BYTES(request.result);
    } else {
      if (request.make != nullptr) {
        refuse(PyExc_ValueError, "out overlaps an input: on a card wanted memory of its own");
      }
      request.converted |= 1u << argument::out;
      request.aside = make(request, out_places, shape, type_number, false, problem.out);
    }
  } else {
    request.result = make(request, out_places, shape, type_number, false, problem.out);
  }

  problem.lse.data = problem.weights.data = nullptr;
  if (request.return_lse) {
    const Places places = {pairs.head, pairs.row, -1};
    problem.lse.type = problem.type == Type::f64 ? Type::f64 : Type::f32;
    shape = shape_of(request, places, problem.Lq, 0);
    request.lse = make(request, places, shape, problem.type == Type::f64 ? NPY_DOUBLE : NPY_FLOAT, false, problem.lse);
  }
  if (request.return_weights) {
    problem.weights.type = problem.q.type;
    shape = shape_of(request, pairs, problem.Lq, problem.Lk);
    request.weights = make(request, pairs, shape, type_number, true, problem.weights);
  }
}

void merge_axes(Problem& problem) {
  bool one = true;  // as in the shortest calls, of which the rest takes 2 %
  for (int axis = 0; axis < problem.batch_axes; ++axis) one &= problem.batch_shape[axis] == 1;
  if (one) {
    problem.batch_axes = 0;
    return;
  }
  View* const all[] = {
      &problem.q,       &problem.k,       &problem.v,           &problem.out,           &problem.lse,
      &problem.weights, &problem.w,       &problem.mask,        &problem.bias,          &problem.scales,
      &problem.slopes,  &problem.sinks,   &problem.q_starts,    &problem.q_lengths,     &problem.kv_lengths,
      &problem.k_scale, &problem.v_scale, &problem.pages.table, &problem.pages.origins, &problem.lists.number};
  View* present[sizeof all / sizeof *all];
  int count = 0, kept = 0;
  for (View* view : all) {
    if (view->data != nullptr) present[count++] = view;
  }
  for (int axis = 0; axis < problem.batch_axes; ++axis) {
    const int64_t size = problem.batch_shape[axis];
    if (size == 1) continue;
    bool one_step = kept > 0;  // is a step of the axis before as long as all of this one?
    for (int n = 0; n < count && one_step; ++n) {
      one_step = present[n]->batch[kept - 1] == present[n]->batch[axis] * size;
    }
    const int place = one_step ? kept - 1 : kept++;
    problem.batch_shape[place] = one_step ? problem.batch_shape[place] * size : size;
    for (int n = 0; n < count; ++n) present[n]->batch[place] = present[n]->batch[axis];
  }
  problem.batch_axes = kept;
}

}  // namespace harken
