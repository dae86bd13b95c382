// kernels.hpp - the table of kernels: what each is, which problems it takes, how it is run.
#pragma once

#include "../problem.hpp"
#include "words.hpp"

namespace harken {

struct Kernel {
  const char *name, *idea;
  const char* source;                    // hash of the text it is made of
  int capability;                        // compute capability that runs it, 80 or 90
  bool newer;                            // does every newer one, too? Not what is made for sm_90a
  const char* (*lacks)(const Problem&);  // what the problem asks that it does not do; null: nothing
  Grid (*grid)(const Problem&);          // how it would be launched
  int64_t (*workspace)(const Problem&);  // bytes of the card that it works in
  void (*attend)(const Problem&, char* workspace, void* stream);
};

extern const Kernel* const kernels[];  // fastest first
extern const int kernel_count;

}  // namespace harken
