#include "server/persist/target.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"

namespace ckptd {
namespace {

std::string Object(const std::string& path) { return absl::StrCat("path ", path); }

absl::Status InvalidPath(const std::string& path, absl::string_view why) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PATH",
                   absl::StrCat(Object(path.substr(0, 200)), ": ", why), {{"path", path}});
}

// Makes a folder and its entry durable: a checkpoint that survives a power cut must be found.
// Returns 0 or -errno.
int MakeOne(FileSystem* fs, const std::string& dir, mode_t mode) {
  if (int error = fs->MakeDirectory(dir, mode); error < 0) return error;
  const FileDescriptor parent(fs, fs->Open(ParentDir(dir), O_RDONLY | O_DIRECTORY, 0));
  return parent ? fs->Sync(parent.get()) : parent.get();
}

// Makes `dir` and what is missing above it. Returns 0 or -errno.
int MakeDirectories(FileSystem* fs, const std::string& dir, mode_t mode) {
  int error = MakeOne(fs, dir, mode);
  if (error == -ENOENT && dir != "/") {
    error = MakeDirectories(fs, ParentDir(dir), mode);
    if (error < 0) return error;
    error = MakeOne(fs, dir, mode);
  }
  if (error != -EEXIST) return error;
  // It may be a file; only realpath tells for a symlink.
  std::string real;
  if (int result = fs->RealPath(absl::StrCat(dir, "/."), &real); result < 0) return result;
  return 0;
}

}  // namespace

std::string ParentDir(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status CheckPath(const std::string& path) {
  if (path.empty() || path[0] != '/') {
    return InvalidPath(path, "is not absolute; give the whole path, beginning with /");
  }
  if (path.size() >= PATH_MAX) return InvalidPath(path, "is longer than 4095 bytes");
  if (path.find('\0') != std::string::npos) return InvalidPath(path, "has a zero byte in it");
  const std::string name = path.substr(path.rfind('/') + 1);
  if (name.empty() || name == "." || name == "..") {
    return InvalidPath(path, "does not end in a file's name");
  }
  if (name.size() > NAME_MAX) return InvalidPath(path, "its last part is longer than 255 bytes");
  return absl::OkStatus();
}

absl::StatusOr<Target> ResolveTarget(FileSystem* fs, const std::string& path) {
  CKPTD_RETURN_IF_ERROR(CheckPath(path));
  // The longest part of the folder that exists, resolved, and the rest as it stands.
  std::string dir = path.substr(0, path.rfind('/'));
  std::string rest = path.substr(path.rfind('/'));
  Target target;
  for (;;) {
    const int error = fs->RealPath(dir.empty() ? "/" : dir, &target.dir);
    if (error == 0) break;
    if (error != -ENOENT || dir.empty()) return OsError(Object(path), "resolve it", -error);
    const size_t slash = dir.rfind('/');
    rest.insert(0, dir.substr(slash));
    dir.resize(slash);
  }
  struct stat info = {};
  if (int error = fs->LinkStat(target.dir, &info); error < 0) {
    return OsError(Object(path), "look at its folder", -error);
  }
  target.device = info.st_dev;
  if (target.dir == "/") target.dir.clear();
  target.path = target.dir + rest;
  target.dir = target.path.substr(0, target.path.rfind('/'));
  if (target.dir.empty()) target.dir = "/";
  return target;
}

absl::StatusOr<Target> PrepareTarget(FileSystem* fs, const std::string& path, mode_t umask) {
  CKPTD_RETURN_IF_ERROR(CheckPath(path));
  const std::string dir = path.substr(0, path.rfind('/'));
  if (!dir.empty()) {
    if (int error = MakeDirectories(fs, dir, 0777 & ~umask); error < 0) {
      return OsError(Object(path), absl::StrCat("make its folder ", dir), -error);
    }
  }
  CKPTD_ASSIGN_OR_RETURN(Target target, ResolveTarget(fs, path));
  struct stat info = {};
  const int error = fs->LinkStat(target.path, &info);
  if (error < 0 && error != -ENOENT) return OsError(Object(path), "look at it", -error);
  if (error == 0 && S_ISDIR(info.st_mode)) return OsError(Object(path), "save there", EISDIR);
  if (int denied = fs->Access(target.dir, W_OK | X_OK); denied < 0) {
    return OsError(Object(path), absl::StrCat("write into its folder ", target.dir), -denied);
  }
  return target;
}

}  // namespace ckptd
