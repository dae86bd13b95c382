// interface.cpp - the functions of interface.h: what a call means, which kernel takes it, faults in words.
#include "interface.h"

#include <string.h>

#include <new>

#include "card.hpp"
#include "fault.hpp"
#include "flow.hpp"
#include "kernels.hpp"
#include "staging.hpp"

#define HARKEN_EXPORT extern "C" __attribute__((visibility("default")))

namespace harken {
namespace {

thread_local std::string last_error;

template <class Body>
int answered(Body body) noexcept {
  try {
    body();
    return HARKEN_OK;
  } catch (const Fault& fault) {
    last_error = fault.text;
    return fault.status;
  } catch (const std::bad_alloc&) {
    last_error = "the host is out of memory";
    return HARKEN_OUT_OF_MEMORY;
  }
}

const Problem& problem_of(const harken_cuda_call& call) {
  if (call.problem_bytes != sizeof(Problem))
    throw Fault{HARKEN_MISUSED, "a problem has " + std::to_string(call.problem_bytes) + " bytes, wanted " +
                                    std::to_string(sizeof(Problem)) + ": caller and library are of different versions"};
  return *static_cast<const Problem*>(call.problem);
}

// The first of those allowed that takes the problem, and why none before it does.
int choose(const harken_cuda_call& call, const Problem& problem, std::string& why) {
  const int capability = card::capability(call.card);
  for (int n = 0; n < kernel_count; ++n) {
    if ((call.kernels >> n & 1) == 0) continue;
    const Kernel& kernel = *kernels[n];
    const char* lacks = kernel.lacks(problem);
    const bool runs = capability == kernel.capability || (kernel.newer && capability > kernel.capability);
    if (!lacks && runs) return n;
    why += (why.empty() ? "" : "; ") + std::string(kernel.name) + ": ";
    why += lacks ? lacks
                 : "wants compute capability " + std::to_string(kernel.capability / 10) + "." +
                       std::to_string(kernel.capability % 10) + (kernel.newer ? " or newer" : "");
  }
  throw Fault{HARKEN_NO_KERNEL, why.empty() ? "no kernel is allowed" : why};
}

// While it lives, memory that a kernel works in.
class Workspace {
 public:
  Workspace(int64_t bytes, void* stream)
      : at(bytes == 0 ? nullptr : static_cast<char*>(card::allocate(size_t(bytes), stream))), stream_(stream) {}
  Workspace(const Workspace&) = delete;
  ~Workspace() {
    if (at) card::release(at, stream_);
  }
  char* const at;

 private:
  void* const stream_;
};

}  // namespace
}  // namespace harken

using namespace harken;

HARKEN_EXPORT int harken_cuda_interface(void) { return HARKEN_CUDA_INTERFACE; }
HARKEN_EXPORT const char* harken_cuda_build(void) { return card::build(); }
HARKEN_EXPORT const char* harken_cuda_error(void) { return last_error.c_str(); }

HARKEN_EXPORT int harken_cuda_cards(int32_t* count) {
  *count = 0;
  return answered([&] { *count = card::count(); });
}

HARKEN_EXPORT int harken_cuda_capability(int32_t card, int32_t* capability) {
  return answered([&] { *capability = card::capability(card); });
}

HARKEN_EXPORT int harken_cuda_card(int32_t card, harken_cuda_card_facts* facts) {
  return answered([&] { *facts = card::facts(card); });
}

HARKEN_EXPORT int32_t harken_cuda_kernels(void) { return kernel_count; }

HARKEN_EXPORT int harken_cuda_kernel(int32_t kernel, harken_cuda_kernel_facts* facts) {
  return answered([&] {
    if (kernel < 0 || kernel >= kernel_count)
      throw Fault{HARKEN_MISUSED, "there is no kernel " + std::to_string(kernel)};
    const Kernel& of = *kernels[kernel];
    *facts = {of.name, of.idea, of.source, of.capability, of.newer};
  });
}

HARKEN_EXPORT int harken_cuda_plan(const harken_cuda_call* call, harken_cuda_plan_facts* plan) {
  return answered([&] {
    std::string why;
    const Problem& problem = problem_of(*call);
    const int kernel = choose(*call, problem, why);
    const Grid grid = kernels[kernel]->grid(problem);
    *plan = {kernel, grid.threads, grid.blocks, grid.shared_bytes, kernels[kernel]->workspace(problem), {}};
    strncpy(plan->why, why.c_str(), sizeof plan->why - 1);
  });
}

HARKEN_EXPORT int harken_cuda_attend(const harken_cuda_call* call) {
  return answered([&] {
    std::string why;
    const Problem& problem = problem_of(*call);
    choose(*call, problem, why);
    const card::Meant meant(call->card);
    auto queue = [&](const Problem& on_card, void* stream) {
      const Kernel& kernel = *kernels[choose(*call, on_card, why)];
      const Workspace workspace(kernel.workspace(on_card), stream);
      kernel.attend(on_card, workspace.at, stream);
    };
    if (flows(problem)) return flow(problem, call->card, queue);
    Staged staged(problem, call->card, call->stream);
    queue(staged.problem, call->stream);
    staged.bring_back();
  });
}

HARKEN_EXPORT int harken_cuda_allocate(int32_t card, size_t bytes, void* stream, void** at) {
  return answered([&] {
    const card::Meant meant(card);
    *at = card::allocate(bytes, stream);
  });
}

HARKEN_EXPORT int harken_cuda_release(int32_t card, void* at, void* stream) {
  return answered([&] {
    const card::Meant meant(card);
    card::release(at, stream);
  });
}

HARKEN_EXPORT int harken_cuda_copy(int32_t card, void* to, const void* from, size_t bytes, void* stream) {
  return answered([&] {
    const card::Meant meant(card);
    card::copy(to, from, bytes, stream);
  });
}

HARKEN_EXPORT int harken_cuda_copy_rows(int32_t card, void* to, int64_t to_step, const void* from, int64_t from_step,
                                        size_t bytes, size_t rows, void* stream) {
  return answered([&] {
    const card::Meant meant(card);
    card::copy_rows(to, to_step, from, from_step, bytes, rows, stream);
  });
}

HARKEN_EXPORT int harken_cuda_where(const void* at, int32_t* card) {
  return answered([&] { *card = card::where(at); });
}

HARKEN_EXPORT int harken_cuda_pin(int32_t card, size_t bytes, void** at) {
  return answered([&] {
    const card::Meant meant(card);
    *at = card::pin(bytes);
  });
}

HARKEN_EXPORT int harken_cuda_unpin(int32_t card, void* at) {
  return answered([&] {
    const card::Meant meant(card);
    card::unpin(at);
  });
}

HARKEN_EXPORT int harken_cuda_clear(int32_t card, void* at, size_t bytes, void* stream) {
  return answered([&] {
    const card::Meant meant(card);
    card::clear(at, bytes, stream);
  });
}

HARKEN_EXPORT int harken_cuda_wait(int32_t card, void* stream) {
  return answered([&] {
    const card::Meant meant(card);
    card::wait(stream);
  });
}
