// staging.hpp - a problem whose arrays lie on the host becomes one of the card, and its results come back.
#pragma once

#include <string>
#include <vector>

#include "axes.hpp"

namespace harken {

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
    Tail tail;
    bool result;
    char* at;  // on the card
    size_t bytes;
  };

  void stage(View& view, const Tail& tail, bool result);
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
