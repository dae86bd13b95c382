// card.hpp - calls whose arrays lie on a card: the binding reads what they are, and never what they hold.
#pragma once

#include "numpy.hpp"

namespace harken {

// q, k, v and the options as NumPy arrays whose memory is the card's. make(shape, dtype, zero) gives such an array for
// each result, and `stream` orders the work. Gives what attention gives.
py::object attend_on_card(const py::object& attention, const py::object& q, const py::object& k, const py::object& v,
                          const py::object& make, const py::object& stream, const py::dict& options);

// Refuses an array that lies on a card, so that a function that computes there can tell.
[[noreturn]] void refuse_on_card(const char* name, int card);

// What `body` answers; if an array lies on a card, what the function of this name in harken.cuda.arrays does.
PyObject* where_it_lies(PyObject* (*body)(PyObject* const*), const char* name, PyObject* const* values);

}  // namespace harken
