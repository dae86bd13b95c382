// isa.cpp - compiled once per instruction set, with its flags: the generic text in its words, and its table entry.
//
// Whatever this file includes has internal linkage and no standard library, so that the linker can never take an inline
// function compiled for a newer processor into code that must run on every one. It exports one symbol, its Backend.
#include "../../backend.hpp"

#include HARKEN_ISA_HEADER

#include "../brief.hpp"
#include "../decode.hpp"
#include "../matrix.hpp"
#include "../modes.hpp"

namespace harken {
namespace {

// A matrix engine computes in float.
template <class M, class T>
constexpr bool engaged = M::exists && sizeof(T) == 4;

template <class T, class M = Engine>
int64_t scratch_in(const Problem& p, const Plan& plan) {
  Workspace<T> work;
  BriefSpace<T> brief;
  DecodeSpace<T> decode;
  int64_t bytes = 0;
  switch (plan.form) {
    case Form::tiled: bytes = set_up(p, plan, nullptr, work); break;
    case Form::brief: bytes = set_up(p, plan, nullptr, brief); break;
    case Form::decode: bytes = set_up(p, nullptr, decode); break;
    case Form::matrix:
      if constexpr (engaged<M, T>) bytes = matrix_scratch(p, plan);
  }
  return most(bytes, up(p.Dv, lanes<T>) * sizeof(T));
}

template <class T, class M = Engine>
void attend_in(const Problem& p, const Plan& plan, int64_t task, char* scratch) {
  switch (plan.form) {
    case Form::tiled: return attend_tiled<T>(p, plan, task, scratch);
    case Form::brief: return attend_brief<T>(p, plan, task, scratch);
    case Form::decode: return attend_decode<T>(p, plan, task, scratch);
    case Form::matrix:
      if constexpr (engaged<M, T>) return attend_matrix<M>(p, plan, task, scratch);
  }
}

bool in_double(const Problem& p) { return p.type == Type::f64; }

int64_t scratch(const Problem& p, const Plan& plan) {
  return in_double(p) ? scratch_in<double>(p, plan) : scratch_in<float>(p, plan);
}

void attend(const Problem& p, const Plan& plan, int64_t task, char* scratch) {
  FlushedSubnormals mode;
  in_double(p) ? attend_in<double>(p, plan, task, scratch) : attend_in<float>(p, plan, task, scratch);
}

void merge(const Problem& p, const Plan& plan, int64_t tile, char* scratch) {
  FlushedSubnormals mode;
  in_double(p) ? merge_ranges<double>(p, plan, tile, scratch) : merge_ranges<float>(p, plan, tile, scratch);
}

}  // namespace

extern const Layers HARKEN_ISA_LAYERS;
extern const Backend HARKEN_ISA_BACKEND;
const Backend HARKEN_ISA_BACKEND = {HARKEN_ISA_NAME,
                                    needs | Engine::needs,
                                    {{lanes<float>, columns * lanes<float>}, {lanes<double>, columns * lanes<double>}},
                                    Engine::exists,
                                    scratch,
                                    attend,
                                    merge,
                                    &HARKEN_ISA_LAYERS};

}  // namespace harken
