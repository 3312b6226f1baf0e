#include "server/persist/link.h"

#include <fcntl.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/os/errors.h"

namespace ckptd {
namespace {

constexpr int kFolderFlags = O_RDONLY | O_DIRECTORY;

std::string Object(const Target& target) { return absl::StrCat("checkpoint ", target.path); }

std::string NameOf(const Target& target) { return target.path.substr(target.path.rfind('/') + 1); }

absl::Status CannotOpen(const AllowedRoots& roots, const Target& target, int error) {
  return roots.Error(Object(target), absl::StrCat("open its folder ", target.dir), error);
}

}  // namespace

absl::StatusOr<bool> IsFree(FileSystem* fs, const AllowedRoots& roots, const Target& target) {
  const FileDescriptor dir = roots.OpenBelow(fs, target.dir, kFolderFlags);
  if (dir.get() == -ENOENT) return false;
  if (!dir) return CannotOpen(roots, target, dir.get());
  struct stat info = {};
  const int error = fs->LinkStatAt(dir.get(), NameOf(target), &info);
  if (error < 0 && error != -ENOENT) return OsError(Object(target), "look at it", -error);
  return error == -ENOENT;
}

absl::StatusOr<bool> PutLink(FileSystem* fs, const AllowedRoots& roots, const Target& target,
                             const std::string& image) {
  const FileDescriptor dir = roots.OpenBelow(fs, target.dir, kFolderFlags);
  if (!dir) return CannotOpen(roots, target, dir.get());
  const std::string name = NameOf(target);
  const int error = fs->SymlinkAt(image, dir.get(), name);
  if (error == 0) return true;
  if (error == -EEXIST) {
    std::string to;
    return fs->ReadLinkAt(dir.get(), name, &to) == 0 && to == image;
  }
  return OsError(Object(target), "link it to its staging image", -error);
}

absl::Status RemoveLink(FileSystem* fs, const AllowedRoots& roots, const Target& target,
                        const std::string& image) {
  const FileDescriptor dir = roots.OpenBelow(fs, target.dir, kFolderFlags);
  if (dir.get() == -ENOENT || dir.get() == -ENOTDIR) return absl::OkStatus();
  if (!dir) return CannotOpen(roots, target, dir.get());
  const std::string name = NameOf(target);
  std::string to;
  int error = fs->ReadLinkAt(dir.get(), name, &to);
  if (error == -ENOENT || error == -EINVAL) return absl::OkStatus();
  if (error == 0) {
    if (to != image) return absl::OkStatus();
    error = fs->UnlinkAt(dir.get(), name);
  }
  // A link that a power cut brings back would lead nowhere, and nobody would know of it.
  if (error == 0) error = fs->Sync(dir.get());
  if (error == 0 || error == -ENOENT) return absl::OkStatus();
  return OsError(Object(target), "remove the link to its staging image", -error);
}

}  // namespace ckptd
