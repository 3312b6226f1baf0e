#ifndef CKPTD_CLIENT_CPP_TORCH_CHECKPOINT_IO_H_
#define CKPTD_CLIENT_CPP_TORCH_CHECKPOINT_IO_H_

#include <ATen/core/ivalue.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ckptd {

// How a training program keeps its checkpoints: the CheckpointIO of Lightning's Trainer, in C++.
// A checkpoint is an IValue of dicts, lists, tuples, numbers, strings and tensors.
class CheckpointIO {
 public:
  virtual ~CheckpointIO() = default;

  // Saves `checkpoint` to `path`. When it returns, the caller may change or free everything in it.
  // An error says that this save, or one accepted before it, has failed.
  virtual absl::Status Save(const c10::IValue& checkpoint, const std::string& path) = 0;

  // The checkpoint at `path`, with whatever was saved there before. NOT_FOUND where there is none.
  virtual absl::StatusOr<c10::IValue> Load(const std::string& path) = 0;

  // Removes the checkpoint at `path`; a missing one is no error.
  virtual absl::Status Remove(const std::string& path) = 0;

  // Waits until everything is on storage, and tells the first failure that was not told before.
  virtual absl::Status Teardown() = 0;
};

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_TORCH_CHECKPOINT_IO_H_
