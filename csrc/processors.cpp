// processors.cpp - affinity by sched_getaffinity, the quota from cgroup v2's cpu.max or v1's cpu.cfs_quota_us.
#include "processors.hpp"

#include <sched.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

namespace harken {
namespace {

constexpr double no_quota = 1e9;

int affinity() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  int count = CPU_COUNT(&set);
  return count > 0 ? count : 1;
}

double v2_quota(const std::string& folder) {  // "max 100000" or "200000 100000"
  std::ifstream file(folder + "/cpu.max");
  double quota, period;
  return file >> quota >> period && period > 0 ? quota / period : no_quota;
}

double v1_quota(const std::string& folder) {
  std::ifstream of_quota(folder + "/cpu.cfs_quota_us"), of_period(folder + "/cpu.cfs_period_us");
  double quota, period;
  return of_quota >> quota && of_period >> period && quota > 0 && period > 0 ? quota / period : no_quota;
}

// The least along a path: a group is bound by its parents' quotas too. Inside of a container the path that the kernel
// names may not exist, and the container's own group is the root.
template <class Read>
double least_along(const std::string& root, std::string path, Read read) {
  double least = read(root);
  while (!path.empty() && path != "/") {
    double quota = read(root + path);
    if (quota < least) least = quota;
    path.resize(path.rfind('/'));
  }
  return least;
}

double quota() {
  double least = no_quota;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/path" in v2, "4:cpu,cpuacct:/path" in v1
    std::istringstream fields(line);
    std::string id, controllers, path;
    std::getline(fields, id, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, path);
    double found = no_quota;
    if (controllers.empty()) {
      found = least_along("/sys/fs/cgroup", path, v2_quota);
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      found = least_along("/sys/fs/cgroup/" + controllers, path, v1_quota);
      double plain = least_along("/sys/fs/cgroup/cpu", path, v1_quota);
      if (plain < found) found = plain;
    }
    if (found < least) least = found;
  }
  return least;
}

}  // namespace

Processors processors() {
  int cpus = affinity();
  double allowed = quota();
  if (allowed >= cpus) return {cpus, false};
  return {allowed < 1 ? 1 : int(allowed), true};  // 7.65 processors are 7 threads
}

}  // namespace harken
