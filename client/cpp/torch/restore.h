#ifndef CKPTD_CLIENT_CPP_TORCH_RESTORE_H_
#define CKPTD_CLIENT_CPP_TORCH_RESTORE_H_

#include <ATen/core/ivalue.h>

#include "absl/status/statusor.h"
#include "client/cpp/core/checkpoint_file.h"

namespace ckptd {

// The object in a checkpoint that torch.save or the "torch" backend wrote. Runs nothing that the
// file names: it takes what torch.load(weights_only=True) takes and an IValue can hold.
//
//   dict, OrderedDict         -> Dict(Any, Any) in the same order; `_metadata` is left out
//   list, tuple, torch.Size   -> List(Any), Tuple
//   None bool int float complex str bytes torch.device -> the same; bytes as a string
//   Tensor, Parameter         -> Tensor on the CPU, whatever device it was saved from
//
// Tensors that shared a storage share one again, and objects met twice are one object. The memory
// is the caller's own.
//
// INVALID_ARGUMENT, naming what and where, for any other content (sets, dtypes that this LibTorch
// does not have, classes) and for files that are not such checkpoints.
absl::StatusOr<c10::IValue> RestoreObject(const CheckpointFile& file);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_TORCH_RESTORE_H_
