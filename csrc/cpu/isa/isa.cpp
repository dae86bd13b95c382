// isa.cpp - compiled once per instruction set, with its flags: the generic text in its words, and its table entry.
//
// Whatever this file includes has internal linkage and no standard library, so that the linker can never take an inline
// function compiled for a newer processor into code that must run on every one. It exports one symbol, its Backend.
#include "../../backend.hpp"

#include HARKEN_ISA_HEADER

#include "../decode.hpp"
#include "../matrix.hpp"

namespace harken {
namespace {

// Subnormal numbers cost 25 to 90 times a normal one's time when logits are sharp; a task takes them for zero, and
// leaves the caller's control and status register as it was.
struct FlushedSubnormals {
  unsigned before = _mm_getcsr();
  FlushedSubnormals() { _mm_setcsr(0x1f80 | 0x8040); }  // all exceptions masked, to nearest, FTZ and DAZ
  ~FlushedSubnormals() { _mm_setcsr(before); }
};

using Engine = decltype(engine(0));

template <class M>
int64_t scratch_of_matrix(const Problem& p, const Plan& plan) {
  if constexpr (M::exists) return most(matrix_scratch(p, plan), up(p.Dv, lanes<float>) * sizeof(float));
  return 0;
}

template <class M>
void attend_by_matrix(const Problem& p, const Plan& plan, int64_t task, char* scratch) {
  if constexpr (M::exists) attend_matrix<M>(p, plan, task, scratch);
}

template <class T>
int64_t scratch_in(const Problem& p, const Plan& plan) {
  Workspace<T> work;
  DecodeSpace<T> space;
  int64_t bytes = plan.form == Form::decode ? set_up(p, nullptr, space) : set_up(p, plan, nullptr, work);
  return most(bytes, up(p.Dv, lanes<T>) * sizeof(T));
}

bool in_double(const Problem& p) { return p.type == Type::f64; }

int64_t scratch(const Problem& p, const Plan& plan) {
  if (plan.form == Form::matrix) return scratch_of_matrix<Engine>(p, plan);
  return in_double(p) ? scratch_in<double>(p, plan) : scratch_in<float>(p, plan);
}

void attend(const Problem& p, const Plan& plan, int64_t task, char* scratch) {
  FlushedSubnormals mode;
  if (plan.form == Form::matrix) {
    attend_by_matrix<Engine>(p, plan, task, scratch);
  } else if (plan.form == Form::decode) {
    in_double(p) ? attend_decode<double>(p, plan, task, scratch) : attend_decode<float>(p, plan, task, scratch);
  } else {
    in_double(p) ? attend_tiled<double>(p, plan, task, scratch) : attend_tiled<float>(p, plan, task, scratch);
  }
}

void merge(const Problem& p, const Plan& plan, int64_t tile, char* scratch) {
  FlushedSubnormals mode;
  in_double(p) ? merge_ranges<double>(p, plan, tile, scratch) : merge_ranges<float>(p, plan, tile, scratch);
}

}  // namespace

extern const Backend HARKEN_ISA_BACKEND;
const Backend HARKEN_ISA_BACKEND = {HARKEN_ISA_NAME,
                                    needs | Engine::needs,
                                    {{lanes<float>, columns * lanes<float>}, {lanes<double>, columns * lanes<double>}},
                                    Engine::exists,
                                    scratch,
                                    attend,
                                    merge};

}  // namespace harken
