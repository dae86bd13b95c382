// ragged.hpp - calls whose batch rows have lengths of their own: packed sequences, and what a cache stores.
#pragma once

#include "numpy.hpp"

namespace harken {

// q (Tq, Hq, D), k (Tk, Hkv, D), v (Tk, Hkv, Dv); ends: (n + 1) int64 from 0 to Tq, to Tk, that never fall. `attention`
// is the function whose options these are. Gives out (Tq, Hq, Dv), or (out, lse (Hq, Tq)).
py::object attend_packed(const py::object& attention, const py::object& q, const py::object& k, const py::object& v,
                         const py::object& q_ends, const py::object& k_ends, const py::dict& options);

// q (B, Hq, Lq, D), k (pages, Hkv, rows, D), v (pages, Hkv, rows, Dv); lengths: (B) int64, the keys of each batch row.
// They lie in page b from its first row on, or where `table` (B, n) int64 and `origins` (B) int64 say; see Pages.
py::object attend_stored(const py::object& attention, const py::object& q, const py::object& k, const py::object& v,
                         const py::object& table, const py::object& origins, const py::object& lengths,
                         const py::dict& options);

}  // namespace harken
