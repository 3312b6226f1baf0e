#include "server/os/failpoints.h"

#include <algorithm>
#include <csignal>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"

namespace ckptd {

absl::Status Failpoints::Set(absl::string_view spec) {
  const size_t colon = spec.find(':');
  const absl::string_view name = spec.substr(0, colon);
  int count = 1;
  const bool counted = colon == absl::string_view::npos ||
                       (absl::SimpleAtoi(spec.substr(colon + 1), &count) && count >= 1);
  const bool known =
      std::find(std::begin(kFailpoints), std::end(kFailpoints), name) != std::end(kFailpoints);
  if (!spec.empty() && (!known || !counted)) {
    return MakeError(
        absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
        absl::StrCat("CKPTD_FAILPOINT '", spec, "': is no NAME or NAME:N of docs/crash-matrix.md"));
  }
  name_ = std::string(name);
  left_ = count;
  return absl::OkStatus();
}

void Failpoints::Count() {
  if (left_.fetch_sub(1) == 1) std::raise(SIGKILL);
}

}  // namespace ckptd
