#ifndef CKPTD_SERVER_PERSIST_ALLOWED_ROOTS_H_
#define CKPTD_SERVER_PERSIST_ALLOWED_ROOTS_H_

#include <sys/stat.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/os/file_system.h"

namespace ckptd {

// Where checkpoints may be: beneath the folders of --allow-root, or anywhere. It is the kernel that
// decides, by openat2 from descriptors that were opened at the start: a symlink that somebody puts
// into a path at any moment leads nowhere else. Copies share the descriptors. Thread-safe.
class AllowedRoots {
 public:
  // Anywhere.
  AllowedRoots() = default;

  // Beneath each of `dirs`; anywhere if there is none. Fails with one sentence for the user where
  // one of them is no folder or the kernel cannot hold a path beneath it. `fs` must outlive all
  // copies.
  static absl::StatusOr<AllowedRoots> Open(FileSystem* fs, const std::vector<std::string>& dirs);

  // PATH_NOT_ALLOWED unless `resolved`, a path without symlinks, is at or beneath a root. Good for
  // an early and clear error; what holds is OpenBelow.
  absl::Status Check(absl::string_view object, const std::string& resolved) const;

  // Opens a file or folder that exists. `resolved` had no symlinks when the caller looked. The
  // descriptor, or -errno in its place: -EXDEV where it is not allowed.
  FileDescriptor OpenBelow(FileSystem* fs, const std::string& resolved, int flags) const;

  // Opens the file that `path`, symlinks included, leads to, for reading. The same.
  FileDescriptor OpenFile(FileSystem* fs, const std::string& path) const;

  // Whether checkpoints may be anywhere.
  bool AllowsAll() const { return roots_.empty(); }

  // Whether a folder is one of the roots itself.
  bool IsRoot(const struct stat& info) const;

  // OsError, but PATH_NOT_ALLOWED for what OpenBelow and OpenFile have refused.
  absl::Status Error(absl::string_view object, absl::string_view action, int error) const;

 private:
  struct Root {
    std::string path;  // resolved
    FileDescriptor folder;
    struct stat info = {};
  };

  absl::Status NotAllowed(absl::string_view object) const;

  // The longest path first.
  std::vector<std::shared_ptr<const Root>> roots_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_PERSIST_ALLOWED_ROOTS_H_
