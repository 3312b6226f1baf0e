#include "client/cpp/core/save_state.h"

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"

namespace ckptd {

bool HasEnded(const v1::Save& save) {
  switch (save.state()) {
    case v1::Save::SUCCEEDED:
    case v1::Save::SUPERSEDED:
    case v1::Save::FAILED:
    case v1::Save::CANCELLED:
      return true;
    default:
      return false;
  }
}

absl::Status Outcome(const v1::Save& save) {
  if (!HasEnded(save)) return absl::InternalError(absl::StrCat(save.name(), ": has not ended"));
  if (save.state() == v1::Save::SUCCEEDED || save.state() == v1::Save::SUPERSEDED) {
    return absl::OkStatus();
  }
  absl::Status error = FromRpc(save.error());
  if (error.ok()) error = absl::UnknownError("the daemon gave no reason");
  return Annotate(error, absl::StrCat(save.name(), " to ", save.path()));
}

}  // namespace ckptd
