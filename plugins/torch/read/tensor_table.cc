#include "plugins/torch/read/tensor_table.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "plugins/torch/read/dtypes.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using NodeKind = PickleNode::Kind;
using ValueKind = TorchValue::Kind;
using Nodes = std::vector<PickleNode*>;

// Deeper nesting could overflow the stack.
constexpr size_t kMaxDepth = 1000;

// What torch.load(weights_only=True) makes of plain data, and JSON has no place for.
constexpr std::array<absl::string_view, 11> kPlain = {
    "_codecs encode",
    "__builtin__ bytes",
    "__builtin__ bytearray",
    "__builtin__ complex",
    "__builtin__ set",
    "__builtin__ frozenset",
    "builtins bytearray",
    "builtins complex",
    "collections Counter",
    "torch device",
    "torch.serialization _get_layout",
};

// The classes of which _rebuild_from_type_v2 makes a tensor that is nothing more.
constexpr std::array<absl::string_view, 3> kTensorClasses = {
    "torch Tensor", "torch.nn.parameter Parameter", "torch.nn.parameter Buffer"};

template <size_t kCount>
bool Has(const std::array<absl::string_view, kCount>& names, absl::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// As Python writes it, and printable.
std::string Dotted(absl::string_view global) {
  return absl::StrReplaceAll(absl::Utf8SafeCHexEscape(global), {{" ", "."}});
}

// "float32" for the global that is that dtype; empty for others.
absl::string_view DtypeOf(const PickleNode& node) {
  absl::string_view name = node.text;
  if (node.kind != NodeKind::kGlobal || !absl::ConsumePrefix(&name, "torch ")) return "";
  return name;
}

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
  if (v3) SetDtype(DtypeOf(*arguments[6]), tensor);
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
  SetDtype(DtypeOf(*arguments[0]), tensor);
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
    if (arguments.size() != 4 || !Has(kTensorClasses, arguments[1]->text) ||
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

class Walk {
 public:
  Walk(const Pickle& pickle, size_t max_values)
      : max_values_(max_values), open_(pickle.nodes.size()), seen_(pickle.nodes.size()) {}

  absl::StatusOr<TorchTable> Take(const PickleNode& root) {
    CKPTD_RETURN_IF_ERROR(Add(root, 0, nullptr, 0));
    table_.unknown.assign(unknown_.begin(), unknown_.end());
    return std::move(table_);
  }

 private:
  // Adds a value and its parts.
  absl::Status Add(const PickleNode& node, size_t parent, const PickleNode* key, size_t position);
  absl::Status AddCall(const PickleNode& node, size_t at);
  absl::Status AddTensor(TorchTensor tensor, size_t at);
  absl::Status AddObject(const PickleNode& node, size_t at);
  // Each adds the parts of the value `at`.
  absl::Status AddItems(const Nodes& items, size_t at);
  absl::Status AddPairs(const Nodes& items, size_t at);
  absl::Status AddPart(const PickleNode& node, size_t at);

  void Name(size_t at, ValueKind kind, std::string what) {
    table_.values[at].kind = kind;
    table_.values[at].what = std::move(what);
  }
  void Unknown(size_t at, absl::string_view global) {
    const std::string name = Dotted(global);
    unknown_.insert(name);
    Name(at, ValueKind::kObject, name);
  }

  const size_t max_values_;
  TorchTable table_;
  std::set<std::string> unknown_;
  // By PickleNode::index: the walk is in it; it was walked through.
  std::vector<bool> open_;
  std::vector<bool> seen_;
  // What tells memory apart -> the first tensor that has it.
  std::map<std::tuple<std::string, std::string, int64_t, std::vector<int64_t>, std::vector<int64_t>,
                      bool, bool>,
           size_t>
      first_;
};

absl::Status Walk::Add(const PickleNode& node, size_t parent, const PickleNode* key,
                       size_t position) {
  const size_t at = table_.values.size();
  if (at == max_values_) {
    return absl::InvalidArgumentError(absl::StrCat("has more than ", max_values_, " values"));
  }
  TorchValue& value = table_.values.emplace_back();
  value.parent = parent;
  value.depth = at == 0 ? 0 : table_.values[parent].depth + 1;
  value.key = key;
  value.position = position;
  value.node = &node;
  if (value.depth > kMaxDepth) return absl::InvalidArgumentError("is nested too deeply");
  if (open_[node.index]) {
    Name(at, ValueKind::kOther, "a part of itself");
    return absl::OkStatus();
  }
  open_[node.index] = true;
  CKPTD_RETURN_IF_ERROR(AddPart(node, at));
  open_[node.index] = false;
  seen_[node.index] = true;
  return absl::OkStatus();
}

absl::Status Walk::AddPart(const PickleNode& node, size_t at) {
  ValueKind& kind = table_.values[at].kind;
  switch (node.kind) {
    case NodeKind::kNone:
      kind = ValueKind::kNone;
      return absl::OkStatus();
    case NodeKind::kBool:
      kind = ValueKind::kBool;
      return absl::OkStatus();
    case NodeKind::kInt:
      kind = ValueKind::kInt;
      return absl::OkStatus();
    case NodeKind::kFloat:
      kind = ValueKind::kFloat;
      return absl::OkStatus();
    case NodeKind::kString:
      kind = ValueKind::kString;
      return absl::OkStatus();
    case NodeKind::kTuple:
    case NodeKind::kList:
      kind = node.kind == NodeKind::kTuple ? ValueKind::kTuple : ValueKind::kList;
      return AddItems(node.items, at);
    case NodeKind::kDict:
      kind = ValueKind::kDict;
      return AddPairs(node.items, at);
    case NodeKind::kCall:
      return AddCall(node, at);
    case NodeKind::kGlobal:
      if (FindDtype(DtypeOf(node)) == nullptr) {
        Unknown(at, node.text);
      } else {
        Name(at, ValueKind::kOther, Dotted(node.text));
      }
      return absl::OkStatus();
    case NodeKind::kBigInt:
      Name(at, ValueKind::kOther, "an int of more than 64 bits");
      return absl::OkStatus();
    case NodeKind::kBytes:
      Name(at, ValueKind::kOther, "bytes");
      return absl::OkStatus();
    case NodeKind::kSet:
    case NodeKind::kFrozenSet:
      Name(at, ValueKind::kOther, node.kind == NodeKind::kSet ? "set" : "frozenset");
      return absl::OkStatus();
    case NodeKind::kPersistent:
      Name(at, ValueKind::kOther, "a storage without a tensor");
      return absl::OkStatus();
  }
  return absl::InternalError("is of an unknown kind");
}

absl::Status Walk::AddItems(const Nodes& items, size_t at) {
  for (size_t i = 0; i < items.size(); ++i) {
    CKPTD_RETURN_IF_ERROR(Add(*items[i], at, nullptr, i));
  }
  return absl::OkStatus();
}

absl::Status Walk::AddPairs(const Nodes& items, size_t at) {
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    CKPTD_RETURN_IF_ERROR(Add(*items[i + 1], at, items[i], i / 2));
  }
  return absl::OkStatus();
}

absl::Status Walk::AddCall(const PickleNode& node, size_t at) {
  const std::string& function = node.function->text;
  const Nodes& arguments = node.argument->items;
  if (function == "collections OrderedDict" && arguments.empty()) {
    table_.values[at].kind = ValueKind::kOrderedDict;
    return AddPairs(node.items, at);
  }
  if (function == "torch Size" && arguments.size() == 1) {
    table_.values[at].kind = ValueKind::kTuple;
    return AddItems(arguments[0]->items, at);
  }
  if (Has(kPlain, function)) {
    Name(at, ValueKind::kOther, function == "_codecs encode" ? "bytes" : Dotted(function));
    return absl::OkStatus();
  }
  TorchTensor tensor;
  absl::StatusOr<bool> is_tensor = ReadCall(node, 0, &tensor);
  if (!is_tensor.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("'", absl::Utf8SafeCHexEscape(table_.PathOf(at)),
                                                   "' ", is_tensor.status().message()));
  }
  return *is_tensor ? AddTensor(std::move(tensor), at) : AddObject(node, at);
}

absl::Status Walk::AddTensor(TorchTensor tensor, size_t at) {
  const size_t index = table_.tensors.size();
  table_.values[at].kind = ValueKind::kTensor;
  table_.values[at].tensor = index;
  tensor.same_as = index;
  if (tensor.element_count() > 0 && !tensor.storage.empty()) {
    tensor.same_as = first_
                         .try_emplace({tensor.storage, tensor.dtype, tensor.offset, tensor.shape,
                                       tensor.strides, tensor.conjugate, tensor.negative},
                                      index)
                         .first->second;
  }
  table_.tensors.push_back(std::move(tensor));
  return absl::OkStatus();
}

// What is in it is told once, as objects refer to each other without measure.
absl::Status Walk::AddObject(const PickleNode& node, size_t at) {
  const PickleNode& function = *node.function;
  Unknown(at, function.kind == NodeKind::kCall ? function.function->text : function.text);
  if (seen_[node.index]) return absl::OkStatus();
  CKPTD_RETURN_IF_ERROR(AddItems(node.argument->items, at));
  CKPTD_RETURN_IF_ERROR(node.keyed ? AddPairs(node.items, at) : AddItems(node.items, at));
  if (node.state == nullptr) return absl::OkStatus();
  if (node.state->kind == NodeKind::kDict) return AddPairs(node.state->items, at);
  return Add(*node.state, at, nullptr, node.argument->items.size() + node.items.size());
}

}  // namespace

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

std::string KeyText(const PickleNode& key) {
  switch (key.kind) {
    case NodeKind::kString:
      return key.text;
    case NodeKind::kInt:
      return absl::StrCat(key.integer);
    case NodeKind::kFloat:
      return absl::StrCat(key.number);
    case NodeKind::kBool:
      return key.integer != 0 ? "True" : "False";
    case NodeKind::kNone:
      return "None";
    default:
      return "?";
  }
}

std::string TorchTable::PathOf(size_t value) const {
  std::vector<std::string> keys;
  for (size_t at = value; at != 0; at = values[at].parent) {
    const TorchValue& step = values[at];
    keys.push_back(step.key == nullptr ? absl::StrCat(step.position) : KeyText(*step.key));
  }
  std::string path;
  for (size_t i = keys.size(); i-- > 0;) absl::StrAppend(&path, keys[i], i > 0 ? "." : "");
  return path;
}

absl::StatusOr<TorchTable> ReadTorchTable(const Pickle& pickle, size_t max_values) {
  return Walk(pickle, max_values).Take(*pickle.root);
}

}  // namespace ckptd
