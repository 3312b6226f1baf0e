#ifndef CKPTD_CLIENT_CPP_CORE_CHECKPOINT_FILE_H_
#define CKPTD_CLIENT_CPP_CORE_CHECKPOINT_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/core/unique_fd.h"

namespace ckptd {

// The bytes of one checkpoint, open for reading. They stay what they are for as long as this
// object lives, also when the path gets another checkpoint or is removed: a published file is never
// written to. Thread-safe.
class CheckpointFile {
 public:
  // `path` is for messages only.
  CheckpointFile(std::string path, UniqueFd fd, uint64_t size_bytes)
      : path_(std::move(path)), fd_(std::move(fd)), size_bytes_(size_bytes) {}

  // A file of this machine's, without asking a daemon. NOT_FOUND where there is none.
  static absl::StatusOr<CheckpointFile> Open(const std::string& path);

  // Copies [offset, offset + length) to `to`. OUT_OF_RANGE where that is not inside the file.
  absl::Status Read(uint64_t offset, void* to, size_t length) const;

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_bytes_; }
  // Remains this object's.
  int fd() const { return fd_.get(); }

 private:
  std::string path_;
  UniqueFd fd_;
  uint64_t size_bytes_;
};

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_CHECKPOINT_FILE_H_
