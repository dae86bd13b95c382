// backends.cpp - the choice of an instruction set, as Python makes and sees it.
#include "backends.hpp"

#include <stdlib.h>

#include <string>
#include <utility>

#include "../parallel.hpp"

namespace harken {
namespace {

#ifdef __clang__
constexpr const char* compiler = __VERSION__;  // says Clang itself
#else
constexpr const char* compiler = "GCC " __VERSION__;
#endif

const char* chosen_by = nullptr;  // nullptr: nobody, it is the best

py::list names_of(const Backend* const* (*table)(int*)) {
  int count = 0;
  const Backend* const* const all = table(&count);
  py::list names;
  for (int n = 0; n < count; ++n) names.append(all[n]->name);
  return names;
}

py::str joined(const py::list& names) { return py::str(", ").attr("join")(names); }

py::list feature_names(uint32_t features) {
  static const std::pair<uint32_t, const char*> all[] = {
      {has_avx2, "avx2"}, {has_fma, "fma"}, {has_f16c, "f16c"}, {has_avx512, "avx512"}, {has_amx, "amx"}};
  py::list names;
  for (const auto& [feature, name] : all) {
    if (features & feature) names.append(name);
  }
  return names;
}

// What stands in the way of a name: it is unknown, or the processor lacks something, or the build does.
py::str no_such_backend(const py::str& name) {
  const bool compiled = compiled_backend_names().contains(name);
  return py::str("there is no backend {!r} {}: wanted one of {}")
      .format(name, compiled ? "on this machine, though it is in this build" : "in this build",
              joined(backend_names()));
}

}  // namespace

py::list backend_names() { return names_of(backends); }
py::list compiled_backend_names() { return names_of(compiled_backends); }

void choose_backend(const py::object& name) {
  if (name.is_none()) {
    force(nullptr);
    chosen_by = nullptr;
    return;
  }
  if (!py::isinstance<py::str>(name)) {
    refuse(PyExc_TypeError, "name is %R: wanted one of %U, or None for the best", name.ptr(),
           joined(backend_names()).ptr());
  }
  if (!force(name.cast<std::string>().c_str())) refuse(PyExc_ValueError, "%U", no_such_backend(name).ptr());
  chosen_by = "set_backend";
}

void choose_form(const py::object& name) {
  if (!force_form(name.is_none() ? nullptr : name.cast<std::string>().c_str()))
    refuse(PyExc_ValueError, "there is no form %R", name.ptr());
}

void choose_backend_by_environment() {
  const char* name = getenv("HARKEN_BACKEND");
  if (name == nullptr || *name == 0) return;
  if (!force(name)) throw py::import_error("HARKEN_BACKEND: " + no_such_backend(name).cast<std::string>());
  chosen_by = "HARKEN_BACKEND";
}

py::str why_backend() {
  const py::str runs = joined(backend_names());
  if (chosen_by == nullptr) return py::str("the best of what this machine runs: {}").format(runs);
  return py::str("chosen by {}, of {}").format(chosen_by, runs);
}

py::dict build_facts() {
  using namespace py::literals;
  return py::dict("version"_a = HARKEN_VERSION, "compiler"_a = compiler, "build_type"_a = HARKEN_BUILD_TYPE,
                  "numpy_api"_a = NPY_FEATURE_VERSION_STRING, "features"_a = feature_names(machine_features()),
                  "compiled"_a = compiled_backend_names(), "available"_a = backend_names(), "chosen"_a = chosen().name,
                  "why_chosen"_a = why_backend(), "threads"_a = get_threads(), "why_threads"_a = why_threads(),
                  "openmp"_a = openmp_runtime());
}

}  // namespace harken
