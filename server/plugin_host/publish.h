#ifndef CKPTD_SERVER_PLUGIN_HOST_PUBLISH_H_
#define CKPTD_SERVER_PLUGIN_HOST_PUBLISH_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/core/unique_fd.h"
#include "plugins/abi/plugin.h"

namespace ckptd {

// Told the bytes written; returns false to stop.
using WriteProgress = std::function<bool(uint64_t)>;

// What ckptd_host promises under these names. Errors are those of OsError (docs/errors.md), or
// CANCELLED.
absl::Status PublishFile(const std::string& path, const ckptd_bytes* pieces, size_t count,
                         const WriteProgress& progress);
// A folder that is nobody's leftover as long as this lives.
struct HiddenFolder {
  std::string path;
  UniqueFd lock;
};
absl::StatusOr<HiddenFolder> MakeHiddenFolder(const std::string& path);
// Durable when its folder is published.
absl::Status WriteFileIn(const std::string& path, const ckptd_bytes* pieces, size_t count,
                         const WriteProgress& progress);
// `made`: all that the call has made.
absl::Status PublishFolder(const std::vector<HiddenFolder>& made, const std::string& folder,
                           const std::string& path);
absl::Status RemoveDurably(const std::string& path);

}  // namespace ckptd

#endif  // CKPTD_SERVER_PLUGIN_HOST_PUBLISH_H_
