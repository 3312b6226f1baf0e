#include "server/persist/names.h"

#include <random>

#include "absl/strings/str_cat.h"

namespace ckptd {

std::string TempPrefix(absl::string_view daemon_id) {
  return absl::StrCat(".ckptd-", daemon_id, "-");
}

std::string MakeTempName(absl::string_view prefix) {
  std::random_device random;
  return absl::StrCat(prefix, absl::Hex(random(), absl::kZeroPad8));
}

}  // namespace ckptd
