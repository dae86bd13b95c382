// kept.cpp - one block a thread, which grows, and is given back after a run that took very much.
#include "kept.hpp"

#include <cstdlib>

namespace harken {
namespace {

constexpr size_t most_kept = 64 << 20;

struct Memory {
  char* at = nullptr;
  size_t bytes = 0;
  bool busy = false;

  bool grow(size_t wanted) {
    if (wanted <= bytes) return true;
    std::free(at);
    bytes = (wanted + 4095) / 4096 * 4096;
    at = bytes < wanted ? nullptr : static_cast<char*>(std::aligned_alloc(4096, bytes));
    if (!at) bytes = 0;
    return at != nullptr;
  }
  void shrink() {
    std::free(at);
    at = nullptr;
    bytes = 0;
  }
  ~Memory() { std::free(at); }
};
thread_local Memory kept;

}  // namespace

Kept::Kept(size_t bytes) : own_(kept.busy) {
  Memory own;
  Memory& memory = own_ ? own : kept;
  at_ = memory.grow(bytes) ? memory.at : nullptr;
  if (own_) {
    own.at = nullptr;
  } else {
    kept.busy = true;
  }
}

Kept::~Kept() {
  if (own_) {
    std::free(at_);
    return;
  }
  kept.busy = false;
  if (kept.bytes > most_kept) kept.shrink();
}

}  // namespace harken
