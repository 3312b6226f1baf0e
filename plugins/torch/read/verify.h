#ifndef CKPTD_PLUGINS_TORCH_READ_VERIFY_H_
#define CKPTD_PLUGINS_TORCH_READ_VERIFY_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ckptd {

// A checkpoint that was found to be whole.
struct VerifiedCheckpoint {
  uint64_t record_count = 0;
  uint64_t size_bytes = 0;
};

// Copies [offset, offset + length) of a file to `to`; that always lies inside it.
using ReadAt = absl::FunctionRef<absl::Status(uint64_t offset, void* to, size_t length)>;

// Checks a torch file of `size_bytes` bytes whole, without unpickling: end records, directory,
// local headers, and the CRC-32 of every record, computed from the bytes that a reader would take
// for it. What no reader looks at is not compared: time stamps, padding, data descriptors. `name`
// is for messages. Takes 64 bytes of memory for each entry of the directory, and a few MiB.
//
// DATA_LOSS with reason CORRUPT_CHECKPOINT where it is damaged; the metadata tells `offset`, the
// byte where the damaged record or structure begins, and `record`, its name, if it is one.
// FAILED_PRECONDITION with reason NOT_VERIFIABLE where there are no checksums to compare: the file
// is no zip, or was written without them. Other errors are those of `read`.
absl::StatusOr<VerifiedCheckpoint> VerifyBytes(const std::string& name, uint64_t size_bytes,
                                               ReadAt read);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_READ_VERIFY_H_
