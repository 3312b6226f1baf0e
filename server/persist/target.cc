#include "server/persist/target.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
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

// Opens `dir`, and makes it, and what is missing above it, before. Each is made in the folder that
// is open, by one name: a symlink that somebody puts there meanwhile makes nothing elsewhere.
FileDescriptor MakeFolder(FileSystem* fs, const AllowedRoots& roots, const std::string& dir,
                          mode_t mode) {
  constexpr int kFlags = O_PATH | O_DIRECTORY;
  FileDescriptor folder = roots.OpenBelow(fs, dir, kFlags);
  if (folder.get() != -ENOENT || dir == "/") return folder;
  FileDescriptor above = MakeFolder(fs, roots, ParentDir(dir), mode);
  if (!above) return above;
  const std::string name = dir.substr(dir.rfind('/') + 1);
  const int error = fs->MakeDirectoryAt(above.get(), name, mode);
  if (error < 0 && error != -EEXIST) return FileDescriptor(fs, error);
  return roots.OpenBelow(fs, dir, kFlags);
}

// The device of a canonical folder, or of the longest part of it that exists. Returns 0 or -errno.
int FindDevice(FileSystem* fs, std::string dir, uint64_t* device) {
  struct stat info = {};
  int error = fs->LinkStat(dir, &info);
  while (error == -ENOENT && dir != "/") {
    dir = ParentDir(dir);
    error = fs->LinkStat(dir, &info);
  }
  *device = info.st_dev;
  return error;
}

// Resolves a folder of which a part does not exist. What is missing is taken as it stands, but has
// no
// ".." in it either: one place has one name. Returns 0 or -errno.
int ResolveInParts(FileSystem* fs, const std::vector<absl::string_view>& parts, std::string* out) {
  std::string real = "/";
  std::vector<absl::string_view> missing;
  for (absl::string_view part : parts) {
    if (part == "..") {
      if (missing.empty()) {
        real = ParentDir(real);
      } else {
        missing.pop_back();
      }
      continue;
    }
    std::string next;
    const int error =
        missing.empty() ? fs->RealPath(absl::StrCat(real, "/", part), &next) : -ENOENT;
    if (error == -ENOENT) {
      missing.push_back(part);
    } else if (error < 0) {
      return error;
    } else {
      real = next;
    }
  }
  *out = missing.empty() ? real
                         : absl::StrCat(real == "/" ? "" : real, "/", absl::StrJoin(missing, "/"));
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

absl::StatusOr<Target> ResolveTarget(FileSystem* fs, const AllowedRoots& roots,
                                     const std::string& path) {
  CKPTD_RETURN_IF_ERROR(CheckPath(path));
  // "//" and "/./" lead nowhere.
  const std::vector<absl::string_view> parts =
      absl::StrSplit(absl::string_view(path).substr(0, path.rfind('/')), '/',
                     [](absl::string_view part) { return !part.empty() && part != "."; });
  Target target;
  int error = fs->RealPath(absl::StrCat("/", absl::StrJoin(parts, "/")), &target.dir);
  if (error == -ENOENT) error = ResolveInParts(fs, parts, &target.dir);
  if (error < 0) return OsError(Object(path), "resolve it", -error);
  error = FindDevice(fs, target.dir, &target.device);
  if (error < 0) return OsError(Object(path), "look at its folder", -error);
  if (target.dir == "/") target.dir.clear();
  target.path = target.dir + path.substr(path.rfind('/'));
  if (target.dir.empty()) target.dir = "/";
  if (target.path.size() >= PATH_MAX) {
    return InvalidPath(path, "is longer than 4095 bytes when its symlinks are resolved");
  }
  CKPTD_RETURN_IF_ERROR(roots.Check(Object(path), target.dir));
  return target;
}

absl::StatusOr<Target> PrepareTarget(FileSystem* fs, const AllowedRoots& roots,
                                     const std::string& path, mode_t umask) {
  CKPTD_ASSIGN_OR_RETURN(Target target, ResolveTarget(fs, roots, path));
  const FileDescriptor folder = MakeFolder(fs, roots, target.dir, 0777 & ~umask);
  if (!folder) {
    return roots.Error(Object(path), absl::StrCat("make its folder ", target.dir), folder.get());
  }
  // Once more: a part that did not exist may have been "..".
  CKPTD_ASSIGN_OR_RETURN(target, ResolveTarget(fs, roots, path));
  struct stat info = {};
  const std::string name = target.path.substr(target.path.rfind('/') + 1);
  const int error = fs->LinkStatAt(folder.get(), name, &info);
  if (error < 0 && error != -ENOENT) return OsError(Object(path), "look at it", -error);
  if (error == 0 && S_ISDIR(info.st_mode)) return OsError(Object(path), "save there", EISDIR);
  if (int denied = fs->AccessAt(folder.get(), ".", W_OK | X_OK); denied < 0) {
    return OsError(Object(path), absl::StrCat("write into its folder ", target.dir), -denied);
  }
  return target;
}

}  // namespace ckptd
