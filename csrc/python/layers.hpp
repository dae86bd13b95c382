// layers.hpp - the layers around attention: arrays that Python has checked become plain data, and the backend answers.
#pragma once

#include "numpy.hpp"

namespace harken {

void bind_layers(py::module_& module);
void bind_recurrence(py::module_& module);

}  // namespace harken
