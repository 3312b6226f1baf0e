#include "plugins/torch/read/tensor_table.h"

#include <array>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
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

// As Python writes it, and printable.
std::string Dotted(absl::string_view global) {
  return absl::StrReplaceAll(absl::Utf8SafeCHexEscape(global), {{" ", "."}});
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
      if (FindDtype(TorchDtypeOf(node)) == nullptr) {
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
  if (absl::c_linear_search(kPlain, function)) {
    Name(at, ValueKind::kOther, function == "_codecs encode" ? "bytes" : Dotted(function));
    return absl::OkStatus();
  }
  TorchTensor tensor;
  absl::StatusOr<bool> is_tensor = ReadTorchTensor(node, &tensor);
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
