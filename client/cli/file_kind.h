#ifndef CKPTD_CLIENT_CLI_FILE_KIND_H_
#define CKPTD_CLIENT_CLI_FILE_KIND_H_

#include "absl/status/statusor.h"
#include "client/cpp/core/checkpoint_file.h"
#include "plugins/torch/read/verify.h"

namespace ckptd::cli {

// What a file is, by its first bytes.
enum class FileKind {
  kTorch,        // a zip, as torch.save writes since 1.6
  kTorchLegacy,  // what it wrote before
  kSafetensors,
  kOther,
};

absl::StatusOr<FileKind> KindOf(const CheckpointFile& file);

// Reads `file`, which must outlive what it is given to.
class FileReader {
 public:
  explicit FileReader(const CheckpointFile* file) : file_(file) {}
  absl::Status operator()(uint64_t offset, void* to, size_t length) const {
    return file_->Read(offset, to, length);
  }

 private:
  const CheckpointFile* file_;
};

}  // namespace ckptd::cli

#endif  // CKPTD_CLIENT_CLI_FILE_KIND_H_
