#include "server/plugin_host/publish.h"

#include <fcntl.h>
#include <stdio.h>  // NOLINT(modernize-deprecated-headers): renameat2
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <random>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/cpp/core/unique_fd.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/persist/target.h"

namespace ckptd {
namespace {

constexpr absl::string_view kHidden = ".ckptd-plugin-";
constexpr size_t kStep = size_t{8} << 20;
constexpr size_t kMostFilesToSync = 100;

absl::Status Error(const std::string& object, absl::string_view action) {
  return OsError(object, action, errno);
}

absl::StatusOr<std::string> MakeFolderOf(const std::string& path) {
  if (path.size() < 2 || path[0] != '/' || path.back() == '/') {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PATH",
                     absl::StrCat(path, ": is no absolute path of a file or folder"));
  }
  std::string folder = ParentDir(path);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return OsError(folder, "make the folder", error.value());
  return folder;
}

absl::StatusOr<UniqueFd> Open(const std::string& path, int flags) {
  UniqueFd fd(open(path.c_str(), flags | O_CLOEXEC, 0666));
  if (fd.get() < 0) return Error(path, "open");
  return fd;
}

absl::Status Sync(const std::string& path) {
  CKPTD_ASSIGN_OR_RETURN(const UniqueFd fd, Open(path, O_RDONLY));
  return fsync(fd.get()) == 0 ? absl::OkStatus() : Error(path, "sync");
}

// Whoever makes a hidden file or folder keeps a lock on it: what can be locked is a leftover.
void RemoveLeftovers(const std::string& folder) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (!absl::StartsWith(entry.path().filename().string(), std::string(kHidden))) continue;
    const UniqueFd fd(open(entry.path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (fd.get() < 0 || flock(fd.get(), LOCK_EX | LOCK_NB) != 0) continue;
    std::filesystem::remove_all(entry.path(), error);
  }
}

std::string HiddenName(const std::string& folder) {
  std::random_device random;
  return absl::StrFormat("%s%s%s%08x%08x", folder, absl::EndsWith(folder, "/") ? "" : "/", kHidden,
                         random(), random());
}

// Whether what was just made is this call's: another one may have taken it for a leftover before it
// was locked.
bool Lock(const UniqueFd& fd) {
  struct stat status = {};
  return flock(fd.get(), LOCK_EX) == 0 && fstat(fd.get(), &status) == 0 && status.st_nlink > 0;
}

absl::StatusOr<HiddenFolder> MakeHidden(const std::string& folder, bool is_folder) {
  for (;;) {
    HiddenFolder made{HiddenName(folder), {}};
    if (is_folder && mkdir(made.path.c_str(), 0777) != 0) {
      return Error(made.path, "make the folder");
    }
    auto fd = Open(made.path, is_folder ? O_RDONLY | O_DIRECTORY : O_WRONLY | O_CREAT | O_EXCL);
    if (!fd.ok() && is_folder && errno == ENOENT) continue;
    if (!fd.ok()) return fd.status();
    made.lock = *std::move(fd);
    if (Lock(made.lock)) return made;
  }
}

absl::Status WriteAll(int fd, const std::string& path, const ckptd_bytes* pieces, size_t count,
                      const WriteProgress& progress) {
  uint64_t written = 0;
  for (size_t i = 0; i < count; ++i) {
    const char* from = static_cast<const char*>(pieces[i].data);
    for (size_t left = pieces[i].length; left > 0;) {
      const ssize_t got = write(fd, from, std::min(left, kStep));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Error(path, "write");
      from += got;
      left -= static_cast<size_t>(got);
      written += static_cast<uint64_t>(got);
      if (!progress(static_cast<uint64_t>(got))) {
        return MakeError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST",
                         absl::StrCat(path, ": was cancelled after ", written, " bytes"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ForEachIn(const std::string& folder,
                       const std::function<absl::Status(const std::string&)>& visit) {
  std::error_code error;
  std::filesystem::recursive_directory_iterator it(folder, error);
  for (; !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
    if (it->is_symlink()) continue;
    CKPTD_RETURN_IF_ERROR(visit(it->path().string()));
  }
  return error ? OsError(folder, "read the folder", error.value()) : absl::OkStatus();
}

// Each sync waits for the device, however little there is to do, so that 20 000 take minutes; one
// of the whole file system takes as long as what others have written to it. What has failed since
// the folder was opened, which is before anything was written there, is told either way.
absl::Status SyncTree(const HiddenFolder& folder) {
  size_t files = 0;
  CKPTD_RETURN_IF_ERROR(ForEachIn(folder.path, [&files](const std::string&) {
    ++files;
    return absl::OkStatus();
  }));
  if (files > kMostFilesToSync) {
    return syncfs(folder.lock.get()) == 0 ? absl::OkStatus() : Error(folder.path, "sync");
  }
  CKPTD_RETURN_IF_ERROR(ForEachIn(folder.path, Sync));
  return Sync(folder.path);
}

}  // namespace

// 1. write a hidden file, 2. sync it, 3. rename it over the path, 4. sync the folder.
absl::Status PublishFile(const std::string& path, const ckptd_bytes* pieces, size_t count,
                         const WriteProgress& progress) {
  CKPTD_ASSIGN_OR_RETURN(const std::string folder, MakeFolderOf(path));
  RemoveLeftovers(folder);
  CKPTD_ASSIGN_OR_RETURN(const HiddenFolder hidden, MakeHidden(folder, /*is_folder=*/false));
  absl::Status status = WriteAll(hidden.lock.get(), path, pieces, count, progress);
  if (status.ok() && fsync(hidden.lock.get()) != 0) status = Error(path, "sync");
  if (status.ok() && rename(hidden.path.c_str(), path.c_str()) != 0) {
    status = Error(path, "replace");
  }
  if (!status.ok()) {
    unlink(hidden.path.c_str());
    return status;
  }
  return Sync(folder);
}

absl::StatusOr<HiddenFolder> MakeHiddenFolder(const std::string& path) {
  CKPTD_ASSIGN_OR_RETURN(const std::string folder, MakeFolderOf(path));
  RemoveLeftovers(folder);
  return MakeHidden(folder, /*is_folder=*/true);
}

absl::Status WriteFileIn(const std::string& path, const ckptd_bytes* pieces, size_t count,
                         const WriteProgress& progress) {
  CKPTD_ASSIGN_OR_RETURN(const UniqueFd fd, Open(path, O_WRONLY | O_CREAT | O_EXCL));
  return WriteAll(fd.get(), path, pieces, count, progress);
}

// 1. sync all that is in it, 2. give it the name, by exchange where that is taken, 3. sync the
// folder above, 4. remove what was there.
absl::Status PublishFolder(const std::vector<HiddenFolder>& made, const std::string& folder,
                           const std::string& path) {
  const auto it = std::find_if(made.begin(), made.end(),
                               [&](const HiddenFolder& one) { return one.path == folder; });
  if (it == made.end()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PATH",
                     absl::StrCat(folder, ": is no folder that make_folder has made in this call"));
  }
  CKPTD_RETURN_IF_ERROR(SyncTree(*it));
  bool exchanged = false;
  int result = renameat2(AT_FDCWD, folder.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE);
  if (result != 0 && errno == EEXIST) {
    exchanged = true;
    result = renameat2(AT_FDCWD, folder.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE);
  }
  if (result != 0 && errno == EINVAL) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "STORAGE_ERROR",
                     absl::StrCat(path,
                                  ": its file system cannot exchange two folders; save to a "
                                  "path that is not there yet"));
  }
  if (result != 0) return Error(path, "replace");
  CKPTD_RETURN_IF_ERROR(Sync(ParentDir(path)));
  if (!exchanged) return absl::OkStatus();
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  return error ? OsError(folder, "remove", error.value()) : absl::OkStatus();
}

absl::Status RemoveDurably(const std::string& path) {
  struct stat status = {};
  if (lstat(path.c_str(), &status) != 0) {
    return errno == ENOENT || errno == ENOTDIR ? absl::OkStatus() : Error(path, "look at");
  }
  const std::string folder = ParentDir(path);
  if (!S_ISDIR(status.st_mode)) {
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return Error(path, "remove");
    return Sync(folder);
  }
  const std::string hidden = HiddenName(folder);
  if (rename(path.c_str(), hidden.c_str()) != 0) return Error(path, "remove");
  CKPTD_RETURN_IF_ERROR(Sync(folder));
  std::error_code error;
  std::filesystem::remove_all(hidden, error);
  return error ? OsError(path, "remove", error.value()) : absl::OkStatus();
}

}  // namespace ckptd
