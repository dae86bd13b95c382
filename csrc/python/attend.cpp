// attend.cpp - harken.attention: read the arguments, let the backend answer, hand out the results.
#include "../backend.hpp"
#include "../parallel.hpp"
#include "card.hpp"
#include "foreign.hpp"
#include "request.hpp"

namespace harken {
namespace {

// Below this a call is over in about 10 us, and giving the lock away would cost as much as it gives: 0.1 us free, up to
// 5 ms (sys.getswitchinterval) where another thread takes it.
constexpr double work_worth_unlocking = 1e6;
// Signals are looked for every 20 ms: a call that ends sooner need not know on which thread it is.
constexpr double work_worth_interrupting = 1e7;

thread_local bool handles_signals = false;  // a signal handler may call in the middle of a call

// Python runs signal handlers on its main thread only. A call on another one need not ask for the lock in vain.
bool on_main_thread() {
  const py::object main_thread = py::module_::import("threading").attr("main_thread")();
  return main_thread.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
}

}  // namespace

Unlocked::Unlocked(double flops) : outer_(handles_signals) {
  if (flops < work_worth_unlocking) return;
  handles_signals = flops > work_worth_interrupting && on_main_thread();
  released_.emplace();
}

Unlocked::~Unlocked() { handles_signals = outer_; }

namespace {

// The results as arrays of q's library. A given out stays as it is.
[[gnu::cold]] void answer_in_kind(Request& request, PyObject*& out, PyObject*& lse, PyObject*& weights) {
  for (PyObject** result : {&out, &lse, &weights}) {
    if (*result == nullptr || *result == request[argument::out]) continue;
    py::object given = give_foreign(request[argument::q], reinterpret_cast<PyArrayObject*>(*result));
    *result = reinterpret_cast<PyObject*>(request.keep(given.release().ptr()));
  }
}

}  // namespace

bool signalled() {
  if (!handles_signals) return false;
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

namespace {

PyObject* attend_here(PyObject* const* values) {
  Request request(values, Purpose::run);
  read_operands(request);
  read_options(request);
  make_results(request);
  merge_axes(request.problem);

  return hand_out(request, compute(request));
}

}  // namespace

PyObject* attend(PyObject* const* values) { return where_it_lies(attend_here, "attend", values); }

Outcome compute(Request& request) {
  if (request.card >= 0) {
    const auto problem = reinterpret_cast<uintptr_t>(&request.problem);
    py::module_::import("harken.cuda.plan").attr("attend")(problem, sizeof(Problem), request.card, request.stream);
    return Outcome::done;
  }
  const Backend& backend = chosen();
  Plan plan = cut(request.problem, backend, request.threads);
  const Unlocked unlocked(work(request.problem));
  return answer(backend, request.problem, plan);
}

PyObject* hand_out(Request& request, Outcome outcome) {
  if (outcome == Outcome::out_of_memory) return PyErr_NoMemory();
  if (outcome == Outcome::interrupted) return nullptr;  // the signal handler has raised
  if (request.aside != nullptr && PyArray_CopyInto(request.result, request.aside) != 0) return nullptr;

  PyObject* lse = reinterpret_cast<PyObject*>(request.lse);
  PyObject* weights = reinterpret_cast<PyObject*>(request.weights);
  PyObject* out = request.given(argument::out) ? request[argument::out] : reinterpret_cast<PyObject*>(request.result);
  if (request.foreign) answer_in_kind(request, out, lse, weights);
  if (lse != nullptr && weights != nullptr) return PyTuple_Pack(3, out, lse, weights);
  if (lse != nullptr) return PyTuple_Pack(2, out, lse);
  if (weights != nullptr) return PyTuple_Pack(2, out, weights);
  return Py_NewRef(out);
}

}  // namespace harken
