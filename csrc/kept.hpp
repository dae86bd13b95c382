// kept.hpp - the memory that a calling thread's runs work in, kept between calls so that a hot call allocates nothing.
#pragma once

#include <stddef.h>

namespace harken {

// Borrows it for one run. A call from a signal handler that came in the middle of another gets memory of its own.
class Kept {
 public:
  explicit Kept(size_t bytes);
  Kept(const Kept&) = delete;
  ~Kept();

  char* at() const { return at_; }  // at a multiple of 4096; null: there is not so much

 private:
  char* at_;
  bool own_;
};

}  // namespace harken
