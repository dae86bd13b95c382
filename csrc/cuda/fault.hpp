// fault.hpp - what went wrong, in words, on its way to the caller of the C interface.
#pragma once

#include <string>

#include "interface.h"

namespace harken {

struct Fault {
  int status;  // HARKEN_FAILED and the others
  std::string text;
};

}  // namespace harken
