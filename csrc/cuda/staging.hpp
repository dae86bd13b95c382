// staging.hpp - a problem whose arrays lie on the host becomes one of the card, and its results come back.
#pragma once

#include <string>
#include <vector>

#include "../problem.hpp"

namespace harken {

constexpr int most_axes = max_batch_axes + 3;

// The axes of an array from the outermost on. A stride of 0 is an axis of size 1 as far as memory goes.
struct Axes {
  int count = 0;
  int64_t sizes[most_axes], strides[most_axes];
  int64_t element;

  void add(int64_t size, int64_t stride) {
    sizes[count] = stride == 0 && size > 0 ? 1 : size;
    strides[count++] = stride;
  }
  int64_t bytes() const {
    int64_t product = element;
    for (int axis = 0; axis < count; ++axis) product *= sizes[axis];
    return product;
  }
};

// While it lives, `problem` is the same as the one given with every array on the card that is meant.
class Staged {
 public:
  Staged(const Problem& given, int card, void* stream);
  Staged(const Staged&) = delete;
  ~Staged();

  Problem problem;

  // Results to where they are wanted. True: some were, and they are there now; false: the work may still go on.
  bool bring_back();

 private:
  struct Array {  // what lies on the host
    View *view, host;
    int64_t head, row, col;  // sizes
    bool result;
    char* at;  // on the card
    size_t bytes;
  };

  void stage(View& view, int64_t head, int64_t row, int64_t col, bool result);
  void check_there(const Axes& axes, const View& view, int where) const;
  void stage_lists();
  char* reserve(size_t bytes);

  const int card_;
  void* const stream_;
  std::vector<Array> arrays_;
  std::vector<char*> held_;
  std::vector<std::string> packed_;  // what copies read
};

}  // namespace harken
