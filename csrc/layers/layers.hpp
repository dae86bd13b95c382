// layers.hpp - what the layers around attention ask of an instruction set: the table of its verbs.
//
// A layer has a noun of its own in this folder, plain data as Problem is, checked before it exists; its algorithm is
// generic text in cpu/layers/, compiled once per instruction set into this table.
#pragma once

#include "convolution.hpp"
#include "pointwise.hpp"
#include "recurrence.hpp"

namespace harken {

struct Layers {
  void (*activate)(const Pointwise&, int64_t piece);
  void (*convolve)(const Convolution&, int64_t task, char* scratch);
  Recurrent recurrent;
};

}  // namespace harken
