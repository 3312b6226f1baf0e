#ifndef CKPTD_PLUGINS_TORCH_PICKLE_TENSOR_H_
#define CKPTD_PLUGINS_TORCH_PICKLE_TENSOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "plugins/torch/pickle/writer.h"

namespace ckptd {

// A tensor that is all of its storage, row-major.
struct PickledTensor {
  std::string storage;  // its key: the record data/STORAGE
  std::string dtype;    // as torch names it: "float32"
  std::vector<int64_t> shape;
  uint64_t size_bytes = 0;
  bool requires_grad = false;
  bool is_parameter = false;
  // As PickleWriter::Put takes it.
  const void* identity = nullptr;
};

// Writes it as torch.save does. False, and nothing is written, where torch has no such dtype, or
// dtype and shape are not of size_bytes.
bool PickleTensor(const PickledTensor& tensor, PickleWriter& writer);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_PICKLE_TENSOR_H_
