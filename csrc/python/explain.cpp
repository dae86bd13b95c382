// explain.cpp - harken.explain: the plan of a call that is not made.
#include <string>

#include "../parallel.hpp"
#include "backends.hpp"
#include "card.hpp"
#include "request.hpp"

namespace harken {
namespace {

py::object shape_or_none(const Request& request, Argument argument) {
  return request.array[argument] == nullptr ? py::object(py::none()) : shape_text(request.array[argument]);
}

py::tuple converted(const Request& request) {
  py::list names;
  for (int n = 0; n < arguments; ++n) {
    if (request.converted & 1u << n) names.append(name_of(Argument(n)));
  }
  return names;
}

py::object plan_of(const Request& request) {
  using namespace py::literals;
  const Problem& problem = request.problem;
  if (request.card >= 0) {
    const auto address = reinterpret_cast<uintptr_t>(&problem);
    return py::module_::import("harken.cuda.plan").attr("explain")(address, sizeof(Problem), request.card);
  }
  const Backend& backend = chosen();
  const Plan plan = cut(problem, backend, request.threads);
  static const char* const names[] = {"highest", "high", "medium"};
  const bool fewer_terms = plan.form == Form::matrix && problem.type == Type::f32;
  const char* const precision = names[fewer_terms ? 3 - plan.terms : 0];
  const py::str why =
      precision == std::string(request.precision)
          ? py::str("what was asked for")
          : py::str("{!r} was asked for, and this form multiplies numbers as they are").format(request.precision);
  return py::module_::import("harken.explain")
      .attr("Plan")("backend"_a = backend.name, "form"_a = name_of(plan.form), "dtype"_a = name_of(problem.q.type),
                    "storage"_a = py::make_tuple(name_of(problem.k.type), name_of(problem.v.type)),
                    "computed_in"_a = problem.type == Type::f64 ? "float64" : "float32", "precision"_a = precision,
                    "q"_a = shape_or_none(request, argument::q), "k"_a = shape_or_none(request, argument::k),
                    "v"_a = shape_or_none(request, argument::v), "batches"_a = problem.batches, "heads"_a = plan.heads,
                    "tiles"_a = plan.tiles, "tile_rows"_a = plan.tile_rows, "ranges"_a = plan.ranges,
                    "range_keys"_a = plan.range_keys, "key_block"_a = plan.key_block, "tasks"_a = plan.tasks,
                    "threads"_a = plan.threads, "scratch_bytes"_a = plan.scratch_bytes,
                    "partial_bytes"_a = plan.partial_bytes * plan.ranges * plan.wave,
                    "converted"_a = converted(request), "why_backend"_a = why_backend(), "why_form"_a = plan.why_form,
                    "why_ranges"_a = plan.why_ranges, "why_threads"_a = plan.why_threads, "why_precision"_a = why);
}

PyObject* explain_here(PyObject* const* values) {
  Request request(values, Purpose::describe);
  read_operands(request);
  read_options(request);
  make_results(request);
  merge_axes(request.problem);
  return plan_of(request).release().ptr();
}

}  // namespace

PyObject* explain(PyObject* const* values) { return where_it_lies(explain_here, "explain", values); }

}  // namespace harken
