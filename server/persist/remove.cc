// How a path is removed. A file goes by one unlink. A folder is one checkpoint, too, and must not
// be seen, or be found after a power cut, with half of its files:
//
//  1. Remove what an attempt before this one has left under the dot-name of step 2.
//  2. Rename the folder to a dot-name of ours beside it, and fsync the folder that they are in.
//  3. Remove all that is in it, and itself.
//  4. fsync the folder that it was in. Only then is the removal durable.
//
// All of it goes by descriptors of folders that were opened without following a symlink.

#include <fcntl.h>

#include <cerrno>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/persist/names.h"
#include "server/persist/persister.h"

namespace ckptd {
namespace {

// Depth of folders in folders; a checkpoint has two or three.
constexpr int kMaxDepth = 100;

bool IsMissing(int error) { return error == -ENOENT || error == -ENOTDIR; }

absl::Status CannotRemove(const std::string& path, int error) {
  return OsError(absl::StrCat("path ", path), "remove it", -error);
}

absl::Status RemoveTree(FileSystem* fs, int dir, const std::string& name, const std::string& path,
                        int depth) {
  // O_NOFOLLOW: a symlink is -ENOTDIR, or -ELOOP, and is removed itself, as a file is.
  const FileDescriptor folder(fs, fs->OpenAt(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0));
  int error = folder.get();
  if (error == -ENOTDIR || error == -ELOOP) {
    error = fs->UnlinkAt(dir, name);
  } else if (folder) {
    if (depth == kMaxDepth) return CannotRemove(path, -ELOOP);
    std::vector<std::string> names;
    error = fs->ListAt(folder.get(), ".", &names);
    for (const std::string& below : names) {
      CKPTD_RETURN_IF_ERROR(
          RemoveTree(fs, folder.get(), below, absl::StrCat(path, "/", below), depth + 1));
    }
    if (error == 0) error = fs->RemoveDirectoryAt(dir, name);
  }
  if (error == 0 || error == -ENOENT) return absl::OkStatus();
  return CannotRemove(path, error);
}

}  // namespace

absl::Status RemovePath(FileSystem* fs, const AllowedRoots& roots, const Target& target,
                        Failpoints* failpoints) {
  const FileDescriptor dir = roots.OpenBelow(fs, target.dir, O_RDONLY | O_DIRECTORY);
  if (IsMissing(dir.get())) return absl::OkStatus();
  const std::string object = absl::StrCat("path ", target.path);
  if (!dir) {
    return roots.Error(object, absl::StrCat("open its folder ", target.dir), dir.get());
  }
  const auto pass = [&](absl::string_view failpoint) {
    if (failpoints != nullptr) failpoints->Pass(failpoint);
  };
  const auto sync = [&]() -> absl::Status {
    const int error = fs->Sync(dir.get());
    if (error == 0) return absl::OkStatus();
    return OsError(object, absl::StrCat("sync its folder ", target.dir), -error);
  };
  const std::string name = target.path.substr(target.path.rfind('/') + 1);
  const std::string hidden = RemovalName(name);
  const std::string hidden_path = absl::StrCat(target.dir, "/", hidden);
  CKPTD_RETURN_IF_ERROR(RemoveTree(fs, dir.get(), hidden, hidden_path, 0));
  struct stat info = {};
  int error = fs->LinkStatAt(dir.get(), name, &info);
  if (error == 0 && S_ISDIR(info.st_mode)) {
    error = fs->RenameAt(dir.get(), name, hidden);
    if (error == 0) {
      pass("remove.hidden");
      CKPTD_RETURN_IF_ERROR(sync());
      CKPTD_RETURN_IF_ERROR(RemoveTree(fs, dir.get(), hidden, hidden_path, 0));
      pass("remove.unlinked");
      return sync();
    }
    // An overlay cannot rename a folder that comes from below: there it goes file by file.
    if (error == -EXDEV) error = 0;
  }
  if (error < 0 && error != -ENOENT) return CannotRemove(target.path, error);
  CKPTD_RETURN_IF_ERROR(RemoveTree(fs, dir.get(), name, target.path, 0));
  pass("remove.unlinked");
  return sync();
}

}  // namespace ckptd
