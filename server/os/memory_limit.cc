#include "server/os/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ckptd {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// "max", a missing file or anything else that is no number is no limit.
uint64_t ReadNumber(const std::string& file) {
  std::ifstream in(file);
  std::string word;
  uint64_t number = 0;
  if (!(in >> word) || !absl::SimpleAtoi(word, &number)) return kNoLimit;
  return number;
}

uint64_t TotalRam(const std::string& root) {
  std::ifstream in(root + "proc/meminfo");
  std::string key;
  uint64_t kib = 0;
  while (in >> key >> kib) {
    if (key == "MemTotal:") return kib * 1024;
    in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return kNoLimit;
}

// The smallest limit from `group` up to the top of the hierarchy mounted at `mount`.
uint64_t GroupLimit(const std::string& mount, std::string group, const std::string& file) {
  uint64_t limit = kNoLimit;
  for (;;) {
    limit = std::min(limit, ReadNumber(absl::StrCat(mount, group, "/", file)));
    const size_t slash = group.rfind('/');
    if (group.empty() || slash == std::string::npos) return limit;
    group.resize(slash);
  }
}

}  // namespace

uint64_t MemoryLimit(const std::string& root) {
  uint64_t limit = TotalRam(root);
  const std::string mount = root + "sys/fs/cgroup";
  std::ifstream in(root + "proc/self/cgroup");
  std::string line;
  while (std::getline(in, line)) {
    // "0::/path" is version 2, "4:memory:/path" version 1.
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::string group = parts[2] == "/" ? "" : parts[2];
    if (parts[1].empty()) limit = std::min(limit, GroupLimit(mount, group, "memory.max"));
    for (const auto& controller : absl::StrSplit(parts[1], ',')) {
      if (controller != "memory") continue;
      limit = std::min(limit, GroupLimit(mount + "/memory", group, "memory.limit_in_bytes"));
    }
  }
  return limit;
}

}  // namespace ckptd
