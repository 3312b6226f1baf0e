#include "server/os/errors.h"

#include <cerrno>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"

namespace ckptd {
namespace {

struct Meaning {
  absl::StatusCode code;
  absl::string_view reason;
  absl::string_view advice;
};

Meaning MeaningOf(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return {absl::StatusCode::kResourceExhausted, "STORAGE_FULL",
              "; free space there, or save somewhere else"};
    case EROFS:
      return {absl::StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE",
              "; remount it writable, or save somewhere else"};
    case EACCES:
    case EPERM:
      return {absl::StatusCode::kPermissionDenied, "PERMISSION_DENIED",
              "; the daemon's user needs to be allowed to write there"};
    case ENOTDIR:
      return {absl::StatusCode::kFailedPrecondition, "NOT_A_DIRECTORY",
              "; a part of the path is a file: choose another path"};
    case EISDIR:
      return {absl::StatusCode::kFailedPrecondition, "PATH_IS_DIRECTORY",
              "; choose another path, or remove the folder"};
    case ENAMETOOLONG:
    case ELOOP:
      return {absl::StatusCode::kInvalidArgument, "INVALID_PATH", "; choose another path"};
    case EMFILE:
    case ENFILE:
      return {absl::StatusCode::kResourceExhausted, "STORAGE_ERROR",
              "; raise the limit on open files (ulimit -n)"};
    default:
      return {absl::StatusCode::kInternal, "STORAGE_ERROR", ""};
  }
}

}  // namespace

absl::Status OsError(absl::string_view object, absl::string_view action, int error) {
  const Meaning meaning = MeaningOf(error);
  return MakeError(meaning.code, meaning.reason,
                   absl::StrCat(object, ": cannot ", action, ": ",
                                std::generic_category().message(error), meaning.advice),
                   {{"object", std::string(object)}, {"errno", absl::StrCat(error)}});
}

}  // namespace ckptd
