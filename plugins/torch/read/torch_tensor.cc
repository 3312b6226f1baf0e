#include "plugins/torch/read/torch_tensor.h"

#include <array>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "plugins/torch/read/dtypes.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using NodeKind = PickleNode::Kind;
using Nodes = std::vector<PickleNode*>;

// The classes of which _rebuild_from_type_v2 makes a tensor that is nothing more.
constexpr std::array<absl::string_view, 3> kTensorClasses = {
    "torch Tensor", "torch.nn.parameter Parameter", "torch.nn.parameter Buffer"};

bool Truth(const PickleNode& node) { return node.kind == NodeKind::kBool && node.integer != 0; }

absl::StatusOr<std::vector<int64_t>> Ints(const PickleNode& node) {
  if (node.kind != NodeKind::kTuple) {
    return absl::InvalidArgumentError("has sizes or strides that are no tuple");
  }
  std::vector<int64_t> values;
  values.reserve(node.items.size());
  for (const PickleNode* item : node.items) {
    if (item->kind != NodeKind::kInt || item->integer < 0) {
      return absl::InvalidArgumentError("has sizes or strides that are no numbers");
    }
    values.push_back(item->integer);
  }
  return values;
}

// ('storage', class, key, location, number of elements)
absl::Status ReadStorage(const PickleNode& node, TorchTensor* tensor) {
  const PickleNode* id = node.argument;
  if (node.kind != NodeKind::kPersistent || id->kind != NodeKind::kTuple || id->items.size() < 5 ||
      id->items[0]->text != "storage" || id->items[1]->kind != NodeKind::kGlobal ||
      id->items[2]->kind != NodeKind::kString || id->items[3]->kind != NodeKind::kString ||
      id->items[4]->kind != NodeKind::kInt) {
    return absl::InvalidArgumentError("has no storage");
  }
  absl::string_view type = id->items[1]->text;
  uint64_t item_bytes = 1;
  if (absl::ConsumePrefix(&type, "torch ")) {
    const TorchDtype* dtype = FindDtypeOfStorage(type);
    tensor->dtype = dtype == nullptr ? absl::Utf8SafeCHexEscape(type) : std::string(dtype->name);
    item_bytes = tensor->item_bytes = dtype == nullptr ? 0 : dtype->item_bytes;
  }
  const int64_t numel = id->items[4]->integer;
  if (numel < 0 ||
      __builtin_mul_overflow(static_cast<uint64_t>(numel), item_bytes, &tensor->storage_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("has a storage of ", numel, " elements"));
  }
  tensor->storage = id->items[2]->text;
  tensor->location = id->items[3]->text;
  return absl::OkStatus();
}

void SetDtype(absl::string_view name, TorchTensor* tensor) {
  const TorchDtype* dtype = FindDtype(name);
  tensor->dtype = absl::Utf8SafeCHexEscape(name);
  tensor->item_bytes = dtype == nullptr ? 0 : dtype->item_bytes;
}

void ReadMarks(const PickleNode& metadata, TorchTensor* tensor) {
  if (metadata.kind != NodeKind::kDict) return;
  for (size_t i = 0; i + 1 < metadata.items.size(); i += 2) {
    if (metadata.items[i]->text == "conj") tensor->conjugate = Truth(*metadata.items[i + 1]);
    if (metadata.items[i]->text == "neg") tensor->negative = Truth(*metadata.items[i + 1]);
  }
}

// (storage, offset, sizes, strides[, requires_grad, hooks[, dtype][, metadata]])
absl::Status ReadStrided(const Nodes& arguments, bool v3, TorchTensor* tensor) {
  if (arguments.size() < (v3 ? 7 : 4) || arguments[1]->kind != NodeKind::kInt) {
    return absl::InvalidArgumentError("is a tensor without an offset, sizes or dtype");
  }
  CKPTD_RETURN_IF_ERROR(ReadStorage(*arguments[0], tensor));
  if (v3) SetDtype(TorchDtypeOf(*arguments[6]), tensor);
  if (tensor->dtype.empty()) return absl::InvalidArgumentError("has a storage without a dtype");
  tensor->offset = arguments[1]->integer;
  CKPTD_ASSIGN_OR_RETURN(tensor->shape, Ints(*arguments[2]));
  CKPTD_ASSIGN_OR_RETURN(tensor->strides, Ints(*arguments[3]));
  const uint64_t item_bytes = tensor->item_bytes;
  const bool known = item_bytes > 0 && tensor->location != "meta";
  if (tensor->shape.size() != tensor->strides.size() ||
      (known && !FitsStorage(tensor->offset, tensor->shape, tensor->strides,
                             tensor->storage_bytes / item_bytes))) {
    return absl::InvalidArgumentError("is a tensor that reaches beyond its storage");
  }
  if (arguments.size() > 4) tensor->requires_grad = Truth(*arguments[4]);
  const size_t metadata = v3 ? 7 : 6;
  if (arguments.size() > metadata) ReadMarks(*arguments[metadata], tensor);
  if (tensor->location == "meta") tensor->storage.clear();
  return absl::OkStatus();
}

// (dtype, sizes, strides, requires_grad)
absl::Status ReadMeta(const Nodes& arguments, TorchTensor* tensor) {
  if (arguments.size() < 4) return absl::InvalidArgumentError("is a tensor without sizes");
  SetDtype(TorchDtypeOf(*arguments[0]), tensor);
  CKPTD_ASSIGN_OR_RETURN(tensor->shape, Ints(*arguments[1]));
  CKPTD_ASSIGN_OR_RETURN(tensor->strides, Ints(*arguments[2]));
  if (tensor->dtype.empty() || tensor->shape.size() != tensor->strides.size()) {
    return absl::InvalidArgumentError("is a tensor without a dtype or strides");
  }
  tensor->requires_grad = Truth(*arguments[3]);
  tensor->location = "meta";
  return absl::OkStatus();
}

absl::StatusOr<bool> ReadCall(const PickleNode& node, int depth, TorchTensor* tensor);

absl::Status ReadInner(const PickleNode& node, int depth, TorchTensor* tensor) {
  CKPTD_ASSIGN_OR_RETURN(const bool is_tensor, ReadCall(node, depth + 1, tensor));
  if (is_tensor) return absl::OkStatus();
  return absl::InvalidArgumentError("is a tensor made of something that is none");
}

// What `function` makes of `arguments`, if that is a tensor; false where it is none.
absl::StatusOr<bool> ReadTensor(const std::string& function, const Nodes& arguments, int depth,
                                TorchTensor* tensor) {
  absl::string_view name = function;
  if (!absl::ConsumePrefix(&name, "torch._utils _rebuild_")) return false;
  if (name == "tensor" || name == "tensor_v2" || name == "tensor_v3") {
    CKPTD_RETURN_IF_ERROR(ReadStrided(arguments, name == "tensor_v3", tensor));
  } else if (name == "meta_tensor_no_storage") {
    CKPTD_RETURN_IF_ERROR(ReadMeta(arguments, tensor));
  } else if ((name == "parameter" || name == "parameter_with_state") && arguments.size() >= 2) {
    CKPTD_RETURN_IF_ERROR(ReadInner(*arguments[0], depth, tensor));
    tensor->requires_grad = Truth(*arguments[1]);
    tensor->parameter = true;
    tensor->attributes |= name == "parameter_with_state";
  } else if (name == "device_tensor_from_cpu_tensor" && arguments.size() >= 4) {
    CKPTD_RETURN_IF_ERROR(ReadInner(*arguments[0], depth, tensor));
    tensor->requires_grad = Truth(*arguments[3]);
    tensor->location = arguments[2]->text;
  } else {
    return false;
  }
  return true;
}

absl::StatusOr<bool> ReadCall(const PickleNode& node, int depth, TorchTensor* tensor) {
  constexpr int kMaxWrappers = 4;
  if (node.kind != NodeKind::kCall || depth > kMaxWrappers) return false;
  const Nodes& arguments = node.argument->items;
  if (node.function->text == "torch._tensor _rebuild_from_type_v2") {
    // (function, class, arguments, state)
    if (arguments.size() != 4 || !absl::c_linear_search(kTensorClasses, arguments[1]->text) ||
        arguments[2]->kind != NodeKind::kTuple) {
      return false;
    }
    CKPTD_ASSIGN_OR_RETURN(const bool is_tensor,
                           ReadTensor(arguments[0]->text, arguments[2]->items, depth, tensor));
    tensor->attributes = true;
    tensor->parameter |= arguments[1]->text == kTensorClasses[1];
    return is_tensor;
  }
  tensor->attributes |= node.state != nullptr;
  return ReadTensor(node.function->text, arguments, depth, tensor);
}

}  // namespace

absl::string_view TorchDtypeOf(const PickleNode& node) {
  absl::string_view name = node.text;
  if (node.kind != NodeKind::kGlobal || !absl::ConsumePrefix(&name, "torch ")) return "";
  return name;
}

absl::StatusOr<bool> ReadTorchTensor(const PickleNode& call, TorchTensor* tensor) {
  return ReadCall(call, 0, tensor);
}

uint64_t TorchTensor::element_count() const {
  uint64_t count = 1;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(count, static_cast<uint64_t>(size), &count)) return UINT64_MAX;
  }
  return count;
}

bool TorchTensor::contiguous() const {
  if (element_count() == 0) return true;
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    if (__builtin_mul_overflow(expected, shape[i], &expected)) return false;
  }
  return true;
}

bool FitsStorage(int64_t offset, const std::vector<int64_t>& shape,
                 const std::vector<int64_t>& strides, uint64_t storage_items) {
  int64_t last = offset;
  int64_t numel = 1;
  bool overflow = shape.size() != strides.size() || offset < 0;
  for (size_t i = 0; !overflow && i < shape.size(); ++i) {
    int64_t reach = 0;
    overflow = __builtin_mul_overflow(numel, shape[i], &numel) ||
               (shape[i] > 0 && (__builtin_mul_overflow(shape[i] - 1, strides[i], &reach) ||
                                 __builtin_add_overflow(last, reach, &last)));
  }
  if (overflow) return false;
  return numel == 0 || static_cast<uint64_t>(last) < storage_items;
}

}  // namespace ckptd
