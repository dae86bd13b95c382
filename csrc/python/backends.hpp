// backends.hpp - the choice of an instruction set, as Python makes and sees it.
#pragma once

#include "../backend.hpp"
#include "errors.hpp"

namespace harken {

py::list backend_names();  // what this machine runs, best first
py::list compiled_backend_names();
void choose_backend(const py::object& name);  // None: the best again
void choose_backend_by_environment();         // HARKEN_BACKEND
void choose_form(const py::object& name);     // None: the fastest again, by the table of plan.cpp
py::str why_backend();

py::dict build_facts();  // for harken.info()

}  // namespace harken
