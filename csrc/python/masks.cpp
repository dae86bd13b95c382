// masks.cpp - mask=: a boolean array, or an expression of harken.masks that becomes sides, intervals and an array.
#include "arrays.hpp"

namespace harken {
namespace {

void read_array(Request& request, PyArrayObject* array) {
  request.problem.mask.type = Type::boolean;
  read_pairs(request, argument::mask, array, request.problem.mask);
}

bool is_expression(PyObject* given) {
  if (PyArray_Check(given) || PyList_Check(given) || PyTuple_Check(given)) return false;
  return py::isinstance(given, py::module_::import("harken.masks").attr("Mask"));
}

// The numbers of the lists broadcast to (..., Hq, Lq); the lists themselves are the same for all.
void read_lists(Request& request, const py::tuple& lists) {
  Problem& problem = request.problem;
  PyArrayObject* parts[3];
  for (int n = 0; n < 3; ++n) parts[n] = request.keep(Py_NewRef(py::object(lists[n]).ptr()));
  problem.lists.number.type = Type::i64;
  const int64_t sizes[] = {problem.Hq, problem.Lq};
  int64_t strides[2];
  broadcast(request, argument::mask, parts[0], problem.lists.number, 2, sizes, strides, "(..., Hq, Lq)");
  problem.lists.number.head = strides[0];
  problem.lists.number.row = strides[1];
  problem.lists.begin = static_cast<const int64_t*>(PyArray_DATA(parts[1]));
  problem.lists.intervals = static_cast<const Interval*>(PyArray_DATA(parts[2]));
}

// The leading axes, then Hq.
py::tuple leading(const Problem& problem) {
  py::tuple shape(problem.batch_axes + 1);
  for (int axis = 0; axis < problem.batch_axes; ++axis) shape[axis] = py::int_(problem.batch_shape[axis]);
  shape[problem.batch_axes] = py::int_(problem.Hq);
  return shape;
}

}  // namespace

void read_mask(Request& request) {
  Problem& problem = request.problem;
  problem.mask.data = problem.lists.number.data = nullptr;
  if (!request.given(argument::mask)) return;
  PyObject* given = request[argument::mask];
  if (!is_expression(given)) return read_array(request, booleans(request, argument::mask));

  auto object = [&](Argument argument) { return py::handle(request[argument]); };
  const py::tuple parts =
      py::handle(given).attr("_compile")(leading(problem), problem.Lq, problem.Lk, object(argument::q_start),
                                         object(argument::q_lengths), object(argument::kv_lengths));
  int64_t* const sides[] = {&problem.left, &problem.right};
  for (int n = 0; n < 2; ++n) {
    const py::object side = parts[n];
    if (!side.is_none() && side.cast<int64_t>() < *sides[n]) *sides[n] = side.cast<int64_t>();
  }
  const py::object array = parts[2], lists = parts[3];
  if (!array.is_none()) {
    auto* booleans = request.keep(Py_NewRef(array.ptr()));
    request.array[argument::mask] = booleans;
    read_array(request, booleans);
  }
  if (!lists.is_none()) read_lists(request, lists);
}

}  // namespace harken
