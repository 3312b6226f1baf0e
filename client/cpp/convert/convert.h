#ifndef CKPTD_CLIENT_CPP_CONVERT_CONVERT_H_
#define CKPTD_CLIENT_CPP_CONVERT_CONVERT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cpp/convert/state.h"
#include "client/cpp/core/connection.h"

namespace ckptd {

// A checkpoint on its way from one format to another one.
struct Conversion {
  // To be saved; its path is left to the caller.
  SaveSpec spec;
  // Keys of what the file notes beside its tensors, and the other format has no place for.
  std::vector<std::string> dropped;
  // Has the bytes that `spec` refers to, and the file that was read has not.
  State state;
};

// Makes of the bytes of a torch or safetensors file, which must outlive the result, what is to be
// saved with `backend`: "torch" and "xla" are given a pickle, others named tensors. A torch file
// becomes one of "torch" or "xla" as it is. Checks the file first, as far as it has checksums.
// Messages begin with `name`.
//
// DATA_LOSS (CORRUPT_CHECKPOINT) for a damaged file, FAILED_PRECONDITION (NOT_CONVERTIBLE,
// NOT_READABLE) for one of another format, or that the other format cannot hold.
absl::StatusOr<std::unique_ptr<Conversion>> ConvertCheckpoint(const std::string& name,
                                                              absl::string_view bytes,
                                                              const std::string& backend);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CONVERT_CONVERT_H_
