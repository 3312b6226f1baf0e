#include "client/cpp/core/checkpoint_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace ckptd {

absl::StatusOr<CheckpointFile> CheckpointFile::Open(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    if (errno == ENOENT) {
      return absl::NotFoundError(absl::StrCat("Checkpoint file not found: ", path));
    }
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open the checkpoint"));
  }
  struct stat info = {};
  if (fstat(fd.get(), &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot stat the checkpoint"));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a file"));
  }
  return CheckpointFile(path, std::move(fd), static_cast<uint64_t>(info.st_size));
}

absl::Status CheckpointFile::Read(uint64_t offset, void* to, size_t length) const {
  if (offset > size_bytes_ || length > size_bytes_ - offset) {
    return absl::OutOfRangeError(
        absl::StrCat(path_, ": has ", size_bytes_, " bytes, not ", length, " at ", offset));
  }
  auto* out = static_cast<uint8_t*>(to);
  while (length > 0) {
    const ssize_t n = pread(fd_.get(), out, length, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path_, ": cannot read"));
    if (n == 0) return absl::OutOfRangeError(absl::StrCat(path_, ": was cut while it was read"));
    out += n;
    offset += static_cast<uint64_t>(n);
    length -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace ckptd
