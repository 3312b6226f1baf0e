#ifndef CKPTD_CLIENT_CPP_CORE_VERIFY_H_
#define CKPTD_CLIENT_CPP_CORE_VERIFY_H_

#include "absl/status/statusor.h"
#include "client/cpp/core/checkpoint_file.h"
#include "plugins/torch/read/verify.h"

namespace ckptd {

// VerifyBytes of the whole file, which tells the errors. Those of reading come as they are.
absl::StatusOr<VerifiedCheckpoint> VerifyCheckpoint(const CheckpointFile& file);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_VERIFY_H_
