#ifndef CKPTD_PLUGINS_SAFETENSORS_SAFETENSORS_FILE_H_
#define CKPTD_PLUGINS_SAFETENSORS_SAFETENSORS_FILE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "plugins/safetensors/header.h"
#include "plugins/torch/read/verify.h"

namespace ckptd {

// What the header of a safetensors file says.
struct SafetensorsFile {
  std::string header;  // as it stands there
  uint64_t data_offset = 0;
  std::vector<safetensors::Entry> entries;      // in the order of their bytes, from data_offset on
  std::map<std::string, std::string> metadata;  // __metadata__
};

// Whether a file of that size begins so; nine bytes of it are enough.
bool BeginsAsSafetensors(absl::string_view head, uint64_t size_bytes);

// Reads the header, whoever wrote it. `name` is for messages. DATA_LOSS (CORRUPT_CHECKPOINT) where
// it does not describe exactly the file.
absl::StatusOr<SafetensorsFile> ReadSafetensors(const std::string& name, uint64_t size_bytes,
                                                ReadAt read);

// Checks the header, and the whole file against the checksum that ckptd writes (docs/formats.md).
// DATA_LOSS (CORRUPT_CHECKPOINT) where it is damaged; FAILED_PRECONDITION (NOT_VERIFIABLE) where
// there is no checksum. The records that it counts are tensors.
absl::StatusOr<VerifiedCheckpoint> VerifySafetensors(const std::string& name, uint64_t size_bytes,
                                                     ReadAt read);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_SAFETENSORS_SAFETENSORS_FILE_H_
