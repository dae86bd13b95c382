// attend.cpp - harken.attention: read the arguments, let the backend answer, hand out the results.
#include "../backend.hpp"
#include "../parallel.hpp"
#include "foreign.hpp"
#include "request.hpp"

namespace harken {
namespace {

// Below this a call is over in about 10 us, and giving the lock away would cost as much as it gives: 0.1 us free, up to
// 5 ms (sys.getswitchinterval) where another thread takes it.
constexpr double work_worth_unlocking = 1e6;
// Signals are looked for every 20 ms: a call that ends sooner need not know on which thread it is.
constexpr double work_worth_interrupting = 1e7;

thread_local bool handles_signals = false;

double work(const Problem& problem) {
  return 2.0 * double(problem.batches) * double(problem.Hq) * double(problem.Lq) * double(problem.Lk) *
         double(problem.D + problem.Dv);
}

// Python runs signal handlers on its main thread only. A call on another one need not ask for the lock in vain.
bool on_main_thread() {
  const py::object main_thread = py::module_::import("threading").attr("main_thread")();
  return main_thread.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
}

Outcome compute(Request& request) {
  Problem& problem = request.problem;
  const Backend& backend = chosen();
  Plan plan = cut(problem, backend, request.threads);
  const double flops = work(problem);
  if (flops < work_worth_unlocking) return answer(backend, problem, plan);
  const bool outer = handles_signals;  // of a call that a signal handler, which makes this one, came into
  handles_signals = flops > work_worth_interrupting && on_main_thread();
  const py::gil_scoped_release unlocked;
  const Outcome outcome = answer(backend, problem, plan);
  handles_signals = outer;
  return outcome;
}

// A result as an array of q's library.
PyObject* in_kind(Request& request, PyArrayObject* array) {
  if (array == nullptr || !request.foreign) return reinterpret_cast<PyObject*>(array);
  return reinterpret_cast<PyObject*>(request.keep(give_foreign(request[argument::q], array).release().ptr()));
}

}  // namespace

bool signalled() {
  if (!handles_signals) return false;
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

PyObject* attend(PyObject* const* values) {
  Request request(values, Purpose::run);
  read_operands(request);
  read_options(request);
  make_results(request);
  merge_axes(request.problem);

  const Outcome outcome = compute(request);
  if (outcome == Outcome::out_of_memory) return PyErr_NoMemory();
  if (outcome == Outcome::interrupted) return nullptr;  // the signal handler has raised
  if (request.aside != nullptr && PyArray_CopyInto(request.result, request.aside) != 0) return nullptr;

  PyObject* out = request.given(argument::out) ? request[argument::out] : in_kind(request, request.result);
  PyObject* lse = in_kind(request, request.lse);
  PyObject* weights = in_kind(request, request.weights);
  if (lse != nullptr && weights != nullptr) return PyTuple_Pack(3, out, lse, weights);
  if (lse != nullptr) return PyTuple_Pack(2, out, lse);
  if (weights != nullptr) return PyTuple_Pack(2, out, weights);
  return Py_NewRef(out);
}

}  // namespace harken
