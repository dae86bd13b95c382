// ragged.cpp - the Problem of all batch rows, and what is each row's own.
#include "../ragged.hpp"

#include <string.h>

#include "ragged.hpp"
#include "request.hpp"

namespace harken {
namespace {

using argument::k;
using argument::q;
using argument::v;

struct Integers {
  const int64_t* at;
  int64_t count;
};

// An int64 array in C order, as the callers in harken keep it.
Integers integers_of(const py::object& object, int axes, const char* name) {
  auto* array = reinterpret_cast<PyArrayObject*>(object.ptr());
  const bool fits = PyArray_Check(object.ptr()) && PyArray_TYPE(array) == NPY_INT64 && PyArray_NDIM(array) == axes &&
                    PyArray_ISCARRAY_RO(array);
  if (!fits)
    refuse(PyExc_TypeError, "%s is %S: wanted an int64 array of %d axes, in C order", name, object.ptr(), axes);
  return {static_cast<const int64_t*>(PyArray_DATA(array)), PyArray_SIZE(array)};
}

double work(const Problem& problem, int64_t pairs) {
  return 2.0 * double(problem.Hq) * double(pairs) * double(problem.D + problem.Dv);
}

void one_leading_axis(Problem& problem, int64_t count) {
  problem.batch_axes = 1;
  problem.batch_shape[0] = problem.batches = count;
}

// Row b of an array of integers.
void lay(View& view, const Integers& integers, int64_t a_row) {
  view = {const_cast<char*>(reinterpret_cast<const char*>(integers.at)), Type::i64, 0, 0, sizeof(int64_t), {}};
  view.batch[0] = a_row * int64_t(sizeof(int64_t));
}

Outcome compute(Request& request, const Ragged& ragged, int64_t pairs) {
  const Backend& backend = chosen();
  const Unlocked unlocked(work(request.problem, pairs));
  return answer(backend, request.problem, ragged, request.threads);
}

py::object result(Request& request, Outcome outcome) {
  PyObject* made = hand_out(request, outcome);
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

// Every page that a row's keys lie in is one of k and v.
void check_pages(const Integers& table, const Integers& origins, const Integers& lengths, int64_t rows, int64_t pages) {
  const int64_t width = lengths.count == 0 ? 0 : table.count / lengths.count;
  for (int64_t b = 0; b < lengths.count; ++b) {
    const int64_t used = lengths.at[b] == 0 ? 0 : (origins.at[b] + lengths.at[b] - 1) / rows + 1;
    if (origins.at[b] < 0 || used > width) {
      refuse(PyExc_ValueError, "row %lld begins at %lld and has %lld keys: more than %lld pages of %lld hold",
             (long long)b, (long long)origins.at[b], (long long)lengths.at[b], (long long)width, (long long)rows);
    }
    for (int64_t n = 0; n < used; ++n) {
      const int64_t page = table.at[b * width + n];
      if (page >= 0 && page < pages) continue;
      refuse(PyExc_ValueError, "the table names page %lld of row %lld: there are %lld", (long long)page, (long long)b,
             (long long)pages);
    }
  }
}

// Where the keys of each batch row lie.
void lay_stored(Request& request, const py::object& table, const py::object& origins, const Integers& lengths) {
  Problem& problem = request.problem;
  const PyArrayObject *K = request.array[k], *V = request.array[v];
  const int64_t pages = PyArray_DIM(K, 0), rows = problem.Lk;
  if (PyArray_DIM(V, 0) != pages) refuse(PyExc_ValueError, "v has other pages than k");
  problem.k.batch[0] = problem.v.batch[0] = 0;
  if (table.is_none()) {
    problem.k.batch[0] = PyArray_STRIDE(K, 0);
    problem.v.batch[0] = PyArray_STRIDE(V, 0);
    for (int64_t b = 0; b < lengths.count; ++b)
      if (lengths.at[b] > rows || lengths.count > pages) refuse(PyExc_ValueError, "a row is longer than its page");
    return;
  }
  const Integers its = integers_of(table, 2, "table"), first = integers_of(origins, 1, "origins");
  if (PyArray_DIM(reinterpret_cast<PyArrayObject*>(table.ptr()), 0) != lengths.count || first.count != lengths.count) {
    refuse(PyExc_ValueError, "table and origins have other rows than lengths");
  }
  check_pages(its, first, lengths, rows, pages);
  lay(problem.pages.table, its, lengths.count == 0 ? 0 : its.count / lengths.count);
  lay(problem.pages.origins, first, 1);
  problem.pages.rows = rows;
  problem.pages.k_step = PyArray_STRIDE(K, 0);
  problem.pages.v_step = PyArray_STRIDE(V, 0);
}

void on_the_cpu(const Request& request, const char* what) {
  if (request.card < 0) return;
  refuse(PyExc_RuntimeError, "device is %R: harken computes %s on the CPU only; leave device=None",
         request[argument::device], what);
}

}  // namespace

py::object attend_packed(const py::object& attention, const py::object& queries, const py::object& keys,
                         const py::object& vals, const py::object& q_ends, const py::object& k_ends,
                         const py::dict& options) {
  PyObject* values[arguments];
  values_of(attention, queries, keys, vals, options, values);
  Request request(values, Purpose::run);
  read_operands(request);
  Problem& problem = request.problem;
  const Integers of_q = integers_of(q_ends, 1, "q_ends"), of_k = integers_of(k_ends, 1, "k_ends");
  const Ragged ragged = {of_q.count - 1, of_q.at, of_k.at, nullptr};

  const int64_t Tq = problem.Lq;
  int64_t pairs = 0;
  problem.Lq = problem.Lk = 0;
  for (int64_t s = 0; s < ragged.count; ++s) {
    const int64_t Lq = of_q.at[s + 1] - of_q.at[s], Lk = of_k.at[s + 1] - of_k.at[s];
    pairs += Lq * Lk;
    if (problem.Lq < Lq) problem.Lq = Lq;
    if (problem.Lk < Lk) problem.Lk = Lk;
  }
  one_leading_axis(problem, ragged.count);
  View* const packed[] = {&problem.q, &problem.k, &problem.v, &problem.out, &problem.lse};
  read_options(request);
  on_the_cpu(request, "packed sequences");
  problem.Lq = Tq;  // of the results
  make_results(request);
  for (View* view : packed) view->batch[0] = 0;
  return result(request, compute(request, ragged, pairs));
}

py::object attend_stored(const py::object& attention, const py::object& queries, const py::object& keys,
                         const py::object& vals, const py::object& table, const py::object& origins,
                         const py::object& lengths, const py::dict& options) {
  PyObject* values[arguments];
  values_of(attention, queries, keys, vals, options, values);
  Request request(values, Purpose::run);
  request.stored = true;
  read_operands(request);
  Problem& problem = request.problem;
  const Integers held = integers_of(lengths, 1, "lengths");
  if (request.leading_axes != 1 || problem.batch_shape[0] != held.count) {
    refuse(PyExc_ValueError, "q has shape %S: wanted 4 axes, with %lld batch rows, one for each row of the cache",
           shape_text(request.array[q]).ptr(), (long long)held.count);
  }
  lay_stored(request, table, origins, held);

  int64_t pairs = 0;
  bool alike = true;
  problem.Lk = 0;
  for (int64_t b = 0; b < held.count; ++b) {
    pairs += problem.Lq * held.at[b];
    alike &= held.at[b] == held.at[0];
    if (problem.Lk < held.at[b]) problem.Lk = held.at[b];
  }
  read_options(request);
  on_the_cpu(request, "a cache on the host");
  if (!table.is_none()) {
    problem.pages.k_scale_step = problem.k_scale.batch[0];
    problem.pages.v_scale_step = problem.v_scale.batch[0];
    problem.k_scale.batch[0] = problem.v_scale.batch[0] = 0;
  }
  make_results(request);
  if (!alike) return result(request, compute(request, {held.count, nullptr, nullptr, held.at}, pairs));
  merge_axes(problem);
  return result(request, harken::compute(request));
}

}  // namespace harken
