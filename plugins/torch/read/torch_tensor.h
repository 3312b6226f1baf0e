#ifndef CKPTD_PLUGINS_TORCH_READ_TORCH_TENSOR_H_
#define CKPTD_PLUGINS_TORCH_READ_TORCH_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "plugins/torch/pickle/reader.h"

namespace ckptd {

// A tensor as a pickle of torch.save describes it.
struct TorchTensor {
  std::string dtype;        // as torch names it: "float32"
  uint64_t item_bytes = 0;  // 0 for a dtype that is not known here
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements
  std::string location;          // where it was: "cpu", "cuda:0", "meta"

  // Its memory: the record data/STORAGE, from element `offset` on. Several tensors may have one
  // storage. Empty for one without memory, on the device meta.
  std::string storage;
  uint64_t storage_bytes = 0;  // of the whole storage
  int64_t offset = 0;          // in elements

  bool requires_grad = false;
  bool parameter = false;   // an nn.Parameter
  bool conjugate = false;   // it is the conjugate of its memory
  bool negative = false;    // it is the negative of its memory
  bool attributes = false;  // it has attributes in Python, which are not told here

  // In TorchTable::tensors: the first one that is the same memory, seen in the same way; itself
  // where there is none before. Tensors without elements are never the same.
  size_t same_as = 0;

  uint64_t element_count() const;
  // Row-major and without gaps.
  bool contiguous() const;
};

// Reads a call of the pickle that makes a tensor, as torch.save writes it; false where it makes
// something else. INVALID_ARGUMENT for a tensor that is none, or reaches beyond its storage; such
// messages have no object in front.
absl::StatusOr<bool> ReadTorchTensor(const PickleNode& call, TorchTensor* tensor);

// "float32" for the global that is that dtype; empty for everything else.
absl::string_view TorchDtypeOf(const PickleNode& node);

// Whether the elements of such a tensor lie inside `storage_items` elements. Sizes and strides are
// not negative.
bool FitsStorage(int64_t offset, const std::vector<int64_t>& shape,
                 const std::vector<int64_t>& strides, uint64_t storage_items);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_READ_TORCH_TENSOR_H_
