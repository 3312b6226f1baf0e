#include "client/cli/file_kind.h"

#include <algorithm>
#include <string>

#include "plugins/safetensors/safetensors_file.h"
#include "plugins/torch/read/torch_file.h"
#include "proto/status/status_macros.h"

namespace ckptd::cli {

absl::StatusOr<FileKind> KindOf(const CheckpointFile& file) {
  std::string head(std::min<uint64_t>(file.size_bytes(), kTorchHeadBytes), '\0');
  CKPTD_RETURN_IF_ERROR(file.Read(0, head.data(), head.size()));
  if (BeginsAsZip(head)) return FileKind::kTorch;
  if (BeginsAsLegacyTorch(head)) return FileKind::kTorchLegacy;
  if (BeginsAsSafetensors(head, file.size_bytes())) return FileKind::kSafetensors;
  return FileKind::kOther;
}

}  // namespace ckptd::cli
