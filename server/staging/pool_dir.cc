#include "server/staging/pool_dir.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/staging/image.h"

namespace ckptd {
namespace {

absl::Status MakeParents(FileSystem* fs, const std::string& dir) {
  for (size_t slash = dir.find('/', 1); slash != std::string::npos;
       slash = dir.find('/', slash + 1)) {
    const std::string parent = dir.substr(0, slash);
    if (int error = fs->MakeDirectory(parent, 0755);
        error < 0 && error != -EEXIST && error != -EROFS && error != -EACCES) {
      return OsError(absl::StrCat("folder ", parent), "create it", -error);
    }
  }
  return absl::OkStatus();
}

int RemoveImages(FileSystem* fs, const std::string& dir, const std::set<std::string>& keep) {
  int removed = 0;
  const auto names = ListImages(fs, dir);
  if (!names.ok()) return 0;
  for (const std::string& name : *names) {
    if (keep.count(name) == 0 && fs->Unlink(absl::StrCat(dir, "/", name)) == 0) ++removed;
  }
  return removed;
}

}  // namespace

absl::Status PreparePrivateDir(FileSystem* fs, const std::string& dir) {
  const std::string object = absl::StrCat("folder ", dir);
  CKPTD_RETURN_IF_ERROR(MakeParents(fs, dir));
  if (int error = fs->MakeDirectory(dir, 0700); error < 0 && error != -EEXIST) {
    return OsError(object, "create it", -error);
  }
  struct stat info = {};
  if (int error = fs->LinkStat(dir, &info); error < 0) return OsError(object, "use it", -error);
  if (!S_ISDIR(info.st_mode)) return OsError(object, "use it", ENOTDIR);
  if (info.st_uid != geteuid() || (info.st_mode & 022) != 0) {
    return MakeError(absl::StatusCode::kPermissionDenied, "PERMISSION_DENIED",
                     absl::StrCat(object, ": belongs to uid ", info.st_uid, " with mode ",
                                  absl::Hex(((info.st_mode >> 6) & 7) << 8 |
                                                ((info.st_mode >> 3) & 7) << 4 | (info.st_mode & 7),
                                            absl::kZeroPad3),
                                  "; it must belong to uid ", geteuid(),
                                  " and be closed to others: chmod 700 it, or choose another"));
  }
  if ((info.st_mode & 077) != 0) {
    spdlog::warn("{}: others may look into it; chmod 700 keeps them out", object);
  }
  return absl::OkStatus();
}

absl::StatusOr<FileDescriptor> PreparePoolDir(FileSystem* fs, const std::string& dir) {
  const std::string object = absl::StrCat("pool ", dir);
  CKPTD_RETURN_IF_ERROR(PreparePrivateDir(fs, dir));
  FileDescriptor lock(fs, fs->Open(dir, O_RDONLY | O_DIRECTORY, 0));
  if (!lock) return OsError(object, "open it", -lock.get());
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "ALREADY_RUNNING",
                     absl::StrCat(object,
                                  ": another ckptd is using it; stop that one, or give this one "
                                  "its own --pool-dir"));
  }
  if (fs->Type(dir) != TMPFS_MAGIC) {
    spdlog::warn(
        "{}: is not on a tmpfs; saves stall the trainer for as long as that storage "
        "takes. Use a folder below /dev/shm",
        object);
  }
  return lock;
}

absl::StatusOr<std::vector<std::string>> ListImages(FileSystem* fs, const std::string& dir) {
  std::vector<std::string> names;
  if (int error = fs->List(dir, &names); error < 0) {
    return OsError(absl::StrCat("pool ", dir), "list its images", -error);
  }
  names.erase(std::remove_if(names.begin(), names.end(),
                             [](const std::string& name) { return !IsImageName(name); }),
              names.end());
  return names;
}

void RemoveStrays(FileSystem* fs, const std::string& dir, const std::set<std::string>& keep) {
  const int removed = RemoveImages(fs, dir, keep);
  if (removed > 0) {
    spdlog::warn("pool {}: removed {} images of saves that were not accepted", dir, removed);
  }
  RemoveImages(fs, NoteDir(dir), keep);
  RemoveImages(fs, FreeDir(dir), {});
  fs->RemoveDirectory(FreeDir(dir));
}

absl::StatusOr<uint64_t> DefaultBudget(FileSystem* fs, const std::string& dir,
                                       uint64_t memory_limit) {
  struct statvfs info = {};
  if (int error = fs->StatVfs(dir, &info); error < 0) {
    return OsError(absl::StrCat("pool ", dir), "find its size", -error);
  }
  return std::min(memory_limit, uint64_t{info.f_blocks} * info.f_frsize) / 4;
}

}  // namespace ckptd
