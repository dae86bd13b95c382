// processors.hpp - how many processors this process may use: its affinity and its container's quota, whichever is less.
#pragma once

namespace harken {

struct Processors {
  int usable;
  bool quota_binds;  // the quota is the lesser
};

Processors processors();

}  // namespace harken
