#include "client/cpp/core/process.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace ckptd {
namespace {

constexpr size_t kMaxIdBytes = 63;

std::string HostName() {
  std::array<char, 256> name = {};
  if (gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

std::string AsId(absl::string_view text) {
  std::string id;
  bool replaced = false;
  for (char c : text) {
    const bool fits =
        absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
    if (fits || !replaced) id.push_back(fits ? c : '-');
    replaced = !fits;
  }
  id.resize(std::min(id.size(), kMaxIdBytes));
  return id.find_first_not_of("-.") == std::string::npos ? "job" : id;
}

bool IsJob(const char* text) {
  return text != nullptr && *text != 0 && absl::string_view(text) != "none";
}

}  // namespace

uint32_t CurrentUmask() {
  constexpr uint32_t kUsual = 022;
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    absl::string_view value = line;
    if (!absl::ConsumePrefix(&value, "Umask:")) continue;
    return static_cast<uint32_t>(std::strtoul(std::string(value).c_str(), nullptr, 8));
  }
  return kUsual;
}

std::string DefaultClientName() {
  std::ifstream comm("/proc/self/comm");
  std::string program;
  if (!std::getline(comm, program)) program = "?";
  return absl::StrCat(HostName(), ":", getpid(), " ", program);
}

std::string JobId(const std::string& wanted) {
  if (IsJob(wanted.c_str())) return AsId(wanted);
  // NOLINTBEGIN(concurrency-mt-unsafe): reads only; setenv beside threads is the caller's bug.
  for (const char* variable : {"CKPTD_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"}) {
    if (const char* value = std::getenv(variable); IsJob(value)) return AsId(value);
  }
  // NOLINTEND(concurrency-mt-unsafe)
  return AsId(absl::StrCat(HostName().substr(0, kMaxIdBytes / 2), "-", getpid()));
}

std::string NewSaveId(uint64_t counter) {
  std::random_device random;
  return absl::StrFormat("%d-%d-%06x", getpid(), counter, random() & 0xFFFFFF);
}

}  // namespace ckptd
