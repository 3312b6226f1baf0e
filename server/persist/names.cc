#include "server/persist/names.h"

#include <cstdint>
#include <random>

#include "absl/strings/str_cat.h"

namespace ckptd {

std::string TempPrefix(absl::string_view daemon_id) {
  return absl::StrCat(".ckptd-", daemon_id, "-");
}

std::string MakeOwnPrefix(absl::string_view daemon_id) {
  return absl::StrCat(MakeTempName(TempPrefix(daemon_id)), "-");
}

std::string MakeTempName(absl::string_view prefix) {
  std::random_device random;
  return absl::StrCat(prefix, absl::Hex(random(), absl::kZeroPad8));
}

std::string RemovalName(const std::string& name) {
  uint64_t hash = 14695981039346656037U;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211U;
  return absl::StrCat(".ckptd-", absl::Hex(hash, absl::kZeroPad16));
}

}  // namespace ckptd
