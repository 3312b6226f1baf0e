#ifndef CKPTD_SERVER_PERSIST_TARGET_H_
#define CKPTD_SERVER_PERSIST_TARGET_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/os/file_system.h"
#include "server/persist/allowed_roots.h"

namespace ckptd {

// A path as the daemon knows it: its folder without symlinks, and the name in it, which may itself
// be a symlink. Two paths to the same place have the same `path`, the key of the one order.
struct Target {
  std::string dir;
  std::string path;
  // The device that the folder is on, as far as it exists; 0 where that is not known.
  uint64_t device = 0;
};

// The folder that a canonical path is in.
std::string ParentDir(const std::string& path);

// Checks what can be known of a path without touching it: absolute, not too long, ends in a name.
// INVALID_ARGUMENT (INVALID_PATH) otherwise.
absl::Status CheckPath(const std::string& path);

// The target of `path`. Components that do not exist yet are taken as they stand; ".." behind one
// leads back from it.
// PERMISSION_DENIED (PATH_NOT_ALLOWED) where it is outside of `roots`.
absl::StatusOr<Target> ResolveTarget(FileSystem* fs, const AllowedRoots& roots,
                                     const std::string& path);

// The same for a save: makes the missing folders, with mode 0777 & ~`umask`, and checks that a file
// can be put there: not a folder, and its parent writable. The folders are durable when a Persister
// has put something into them.
absl::StatusOr<Target> PrepareTarget(FileSystem* fs, const AllowedRoots& roots,
                                     const std::string& path, mode_t umask);

}  // namespace ckptd

#endif  // CKPTD_SERVER_PERSIST_TARGET_H_
