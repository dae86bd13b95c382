// layers.hpp - what the layers around attention ask of an instruction set: the table of its verbs.
//
// A layer has a noun of its own in this folder, plain data as Problem is, checked before it exists; its algorithm is
// generic text in cpu/layers/, compiled once per instruction set into this table.
#pragma once

#include "convolution.hpp"
#include "linear.hpp"
#include "normalization.hpp"
#include "pointwise.hpp"
#include "recurrence.hpp"
#include "rotation.hpp"

namespace harken {

struct Layers {
  void (*activate)(const Pointwise&, int64_t piece);
  void (*convolve)(const Convolution&, int64_t task, char* scratch);
  void (*pack_positions)(const Stretch&, int64_t piece, char* scratch);  // these three on a matrix engine
  void (*pack_taps)(const Stretch&, int64_t tile, char* scratch);
  void (*convolve_stretch)(const Stretch&, int64_t task, char* scratch);
  void (*multiply)(const Linear&, int64_t task);
  void (*pack_rows)(const Panels&, int64_t tile);  // and these
  void (*pack_weight)(const Panels&, int64_t tile);
  void (*multiply_panels)(const Panels&, int64_t task);
  void (*pack_beside)(const Panels&, int64_t tile);
  void (*multiply_split)(const Panels&, int64_t task);
  void (*normalize)(const Normalization&, int64_t piece);
  Recurrent recurrent;
  void (*rotate)(const Rotation&, int64_t piece);
};

}  // namespace harken
