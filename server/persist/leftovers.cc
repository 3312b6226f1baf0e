#include "server/persist/leftovers.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/match.h"

namespace ckptd {

Leftovers::Leftovers(FileSystem* fs, AllowedRoots roots, std::string prefix, std::string own_prefix)
    : fs_(fs),
      roots_(std::move(roots)),
      prefix_(std::move(prefix)),
      own_prefix_(std::move(own_prefix)) {}

bool Leftovers::RemoveFrom(const std::string& dir) const {
  const FileDescriptor folder = roots_.OpenBelow(fs_, dir, O_RDONLY | O_DIRECTORY);
  if (!folder) return folder.get() == -ENOENT;
  std::vector<std::string> names;
  bool all_gone = fs_->ListAt(folder.get(), ".", &names) == 0;
  for (const std::string& name : names) {
    if (!absl::StartsWith(name, prefix_) || absl::StartsWith(name, own_prefix_)) continue;
    if (int error = fs_->UnlinkAt(folder.get(), name); error < 0 && error != -ENOENT) {
      all_gone = false;
    } else {
      spdlog::info("removed {}/{}, which an earlier daemon left", dir, name);
    }
  }
  return all_gone;
}

}  // namespace ckptd
