#include "server/persist/allowed_roots.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/status/error_info.h"
#include "server/os/errors.h"

namespace ckptd {
namespace {

// `path` as seen from `root`, "." for itself; empty where it is not beneath it.
std::string Below(const std::string& root, const std::string& path) {
  if (path == root) return ".";
  const std::string prefix = root == "/" ? root : root + "/";
  return absl::StartsWith(path, prefix) ? path.substr(prefix.size()) : "";
}

}  // namespace

absl::StatusOr<AllowedRoots> AllowedRoots::Open(FileSystem* fs,
                                                const std::vector<std::string>& dirs) {
  AllowedRoots allowed;
  for (const std::string& dir : dirs) {
    const std::string object = absl::StrCat("--allow-root ", dir);
    auto root = std::make_shared<Root>();
    if (int error = fs->RealPath(dir, &root->path); error < 0) {
      return OsError(object, "find it", -error);
    }
    root->folder = FileDescriptor(fs, fs->Open(root->path, O_PATH | O_DIRECTORY, 0));
    if (!root->folder) return OsError(object, "open it", -root->folder.get());
    if (int error = fs->Stat(root->folder.get(), &root->info); error < 0) {
      return OsError(object, "look at it", -error);
    }
    const FileDescriptor probe(fs, fs->OpenBeneath(root->folder.get(), ".", O_PATH | O_DIRECTORY));
    if (!probe) return OsError(object, "hold paths beneath it (openat2)", -probe.get());
    allowed.roots_.push_back(std::move(root));
  }
  std::sort(allowed.roots_.begin(), allowed.roots_.end(),
            [](const auto& a, const auto& b) { return a->path.size() > b->path.size(); });
  return allowed;
}

absl::Status AllowedRoots::NotAllowed(absl::string_view object) const {
  std::vector<std::string> paths;
  paths.reserve(roots_.size());
  for (const auto& root : roots_) paths.push_back(root->path);
  const std::string roots = absl::StrJoin(paths, ", ");
  return MakeError(absl::StatusCode::kPermissionDenied, "PATH_NOT_ALLOWED",
                   absl::StrCat(object, ": is not beneath ", roots,
                                ", where this daemon may work, or a symlink in it leads out; "
                                "choose a path beneath, or start ckptd with another --allow-root"),
                   {{"object", std::string(object)}, {"allowed_roots", roots}});
}

absl::Status AllowedRoots::Check(absl::string_view object, const std::string& resolved) const {
  const bool allowed =
      roots_.empty() || std::any_of(roots_.begin(), roots_.end(), [&](const auto& root) {
        return !Below(root->path, resolved).empty();
      });
  return allowed ? absl::OkStatus() : NotAllowed(object);
}

FileDescriptor AllowedRoots::OpenBelow(FileSystem* fs, const std::string& resolved,
                                       int flags) const {
  if (roots_.empty()) return FileDescriptor(fs, fs->Open(resolved, flags, 0));
  for (const auto& root : roots_) {
    const std::string below = Below(root->path, resolved);
    if (below.empty()) continue;
    return FileDescriptor(fs, fs->OpenBeneath(root->folder.get(), below, flags));
  }
  return FileDescriptor(fs, -EXDEV);
}

FileDescriptor AllowedRoots::OpenFile(FileSystem* fs, const std::string& path) const {
  std::string resolved = path;
  if (!roots_.empty()) {
    if (int error = fs->RealPath(path, &resolved); error < 0) return FileDescriptor(fs, error);
  }
  return OpenBelow(fs, resolved, O_RDONLY);
}

bool AllowedRoots::IsRoot(const struct stat& info) const {
  return std::any_of(roots_.begin(), roots_.end(), [&](const auto& root) {
    return root->info.st_dev == info.st_dev && root->info.st_ino == info.st_ino;
  });
}

absl::Status AllowedRoots::Error(absl::string_view object, absl::string_view action,
                                 int error) const {
  if (error == -EXDEV && !roots_.empty()) return NotAllowed(object);
  return OsError(object, action, -error);
}

}  // namespace ckptd
