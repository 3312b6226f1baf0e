#ifndef CKPTD_CLIENT_CPP_TORCH_CAPTURE_H_
#define CKPTD_CLIENT_CPP_TORCH_CAPTURE_H_

#include <ATen/core/ivalue.h>
#include <c10/core/Storage.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/core/connection.h"

namespace ckptd {

// An object taken apart into what torch.save would write: data.pkl and the storages it names.
struct Capture {
  std::string object;
  // One for each storage, named "0", "1", ... in the order in which the object names them. The
  // memory is that of the tensors themselves: they must not change while it is read.
  std::vector<TensorView> tensors;
  // Keeps the memory of `tensors`.
  std::vector<c10::Storage> storages;
};

// Captures `value` without copying a tensor, but for those on another device than the CPU. The
// pickle needs nothing but torch to be loaded, and loads with weights_only=True.
//
// Shared stays shared: tensors of one storage name one storage, which is written whole, and an
// object met twice is written once. Undefined tensors become None.
//
// INVALID_ARGUMENT, naming the place, for what a file of plain tensors cannot hold: scripted
// objects, sparse and quantized tensors, one storage seen as two dtypes.
//
// Why not torch::jit::Pickler: it writes typed lists (List[int]) as calls into torch.jit that
// weights_only=True refuses, dtypes newer than the storage classes under names that Python does
// not know, and a storage seen as two dtypes as wrong data.
absl::StatusOr<Capture> CaptureObject(const c10::IValue& value);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_TORCH_CAPTURE_H_
