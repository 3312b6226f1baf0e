#include "client/cpp/core/verify.h"

#include "plugins/torch/read/zip_directory.h"

namespace ckptd {

absl::StatusOr<VerifiedCheckpoint> VerifyCheckpoint(const CheckpointFile& file) {
  return VerifyBytes(
      file.path(), file.size_bytes(), [&file](uint64_t offset, void* to, size_t length) {
        absl::Status status = file.Read(offset, to, length);
        if (!absl::IsOutOfRange(status)) return status;
        return CorruptCheckpoint(file.path(), offset, "the file was cut while it was read");
      });
}

}  // namespace ckptd
