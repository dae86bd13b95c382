// backend.hpp - the table of instruction sets: what each needs, how it tiles, what it does.
//
// A build or a machine without an instruction set has a shorter table; nobody else asks.
#pragma once

#include "plan.hpp"
#include "problem.hpp"

namespace harken {

enum Feature : uint32_t {
  has_avx2 = 1,
  has_fma = 2,
  has_f16c = 4,
  has_avx512 = 8,
  has_amx = 16
};  // avx512: F, BW, DQ, VL

struct Layers;  // layers/layers.hpp

struct Tiling {
  int lanes;    // of one register
  int queries;  // of one register tile: lanes x columns
};

struct Layers;  // what it does of the layers around attention

struct Backend {
  const char* name;
  uint32_t needs;                                   // Features
  Tiling tiling[2];                                 // computing in float, in double
  bool engine;                                      // has one that multiplies bfloat16 matrices
  int64_t (*scratch)(const Problem&, const Plan&);  // bytes that one thread works in
  void (*attend)(const Problem&, const Plan&, int64_t task, char* scratch);
  void (*merge)(const Problem&, const Plan&, int64_t tile, char* scratch);  // the ranges of one tile, in order
  const Layers* layers;
};

const Backend* const* backends(int* count);  // those this machine runs, best first
const Backend* const* compiled_backends(int* count);
uint32_t machine_features();
const Backend& chosen();       // the forced one, else the first
bool force(const char* name);  // false: no such backend here. nullptr: the first again

enum class Outcome { done, interrupted, out_of_memory };
Outcome answer(const Backend& backend, const Problem& problem, Plan& plan);

}  // namespace harken
