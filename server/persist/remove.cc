#include <fcntl.h>

#include <cerrno>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/persist/persister.h"

namespace ckptd {
namespace {

// Depth of folders in folders; a checkpoint has two or three.
constexpr int kMaxDepth = 100;

absl::Status RemoveTree(FileSystem* fs, const std::string& path, int depth) {
  struct stat info = {};
  int error = fs->LinkStat(path, &info);
  if (error == -ENOENT || error == -ENOTDIR) return absl::OkStatus();
  if (error == 0 && S_ISDIR(info.st_mode)) {
    if (depth == kMaxDepth) return OsError(absl::StrCat("path ", path), "remove it", ELOOP);
    std::vector<std::string> names;
    error = fs->List(path, &names);
    for (const std::string& name : names) {
      CKPTD_RETURN_IF_ERROR(RemoveTree(fs, absl::StrCat(path, "/", name), depth + 1));
    }
    if (error == 0) error = fs->RemoveDirectory(path);
  } else if (error == 0) {
    error = fs->Unlink(path);
  }
  if (error == 0 || error == -ENOENT) return absl::OkStatus();
  return OsError(absl::StrCat("path ", path), "remove it", -error);
}

}  // namespace

absl::Status RemovePath(FileSystem* fs, const Target& target) {
  CKPTD_RETURN_IF_ERROR(RemoveTree(fs, target.path, 0));
  const FileDescriptor dir(fs, fs->Open(target.dir, O_RDONLY | O_DIRECTORY, 0));
  if (dir.get() == -ENOENT || dir.get() == -ENOTDIR) return absl::OkStatus();
  const int error = dir ? fs->Sync(dir.get()) : dir.get();
  if (error < 0) return OsError(absl::StrCat("folder ", target.dir), "sync it", -error);
  return absl::OkStatus();
}

}  // namespace ckptd
