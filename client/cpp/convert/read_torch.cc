#include <algorithm>
#include <cstring>
#include <new>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/convert/read.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using Kind = StateNode::Kind;

constexpr absl::string_view kByPython =
    "; load it with Python, and save it with ckptd.save(state, path, backend=...)";

// Copies the elements that `shape` and `strides` lead to, one behind another.
void Gather(const TorchTensor& tensor, const char* from, char* to) {
  const size_t rank = tensor.shape.size();
  const size_t item = tensor.item_bytes;
  const int64_t row = rank == 0 ? 1 : tensor.shape[rank - 1];
  const auto step = static_cast<size_t>(rank == 0 ? 1 : tensor.strides[rank - 1]) * item;
  std::vector<int64_t> at(rank, 0);
  for (;;) {
    size_t offset = 0;
    for (size_t i = 0; i + 1 < rank; ++i) {
      offset += static_cast<size_t>(at[i] * tensor.strides[i]) * item;
    }
    for (int64_t i = 0; i < row; ++i) {
      std::memcpy(to, from + offset + static_cast<size_t>(i) * step, item);
      to += item;
    }
    size_t turned = rank < 2 ? 0 : rank - 1;
    while (turned > 0 && ++at[turned - 1] == tensor.shape[turned - 1]) at[--turned] = 0;
    if (turned == 0) return;
  }
}

class Reader {
 public:
  Reader(const TorchFile& file, absl::string_view bytes, const TorchTable& table)
      : file_(file), bytes_(bytes), table_(table), tensors_(table.tensors.size()) {}

  absl::StatusOr<State> Read() {
    CKPTD_RETURN_IF_ERROR(Node(&state_.root));
    return std::move(state_);
  }

 private:
  absl::Status Node(StateNode* node);
  absl::Status Leaf(const TorchValue& value, size_t at, StateNode* node);
  absl::Status Key(const TorchValue& value, size_t at, StateNode* node);
  absl::Status Tensor(size_t index, size_t at, StateNode* node);
  absl::StatusOr<StateTensor> Bytes(const TorchTensor& tensor, size_t at);
  absl::Status Refuse(size_t at, absl::string_view why) const;

  const TorchFile& file_;
  const absl::string_view bytes_;
  const TorchTable& table_;
  size_t next_ = 0;              // in table_.values, which has a value's parts behind it
  std::vector<size_t> tensors_;  // in state_.tensors, plus one; 0 where it is not there yet
  State state_;
};

absl::Status Reader::Refuse(size_t at, absl::string_view why) const {
  std::vector<std::string> steps;
  for (size_t i = at; i != 0; i = table_.values[i].parent) {
    const TorchValue& step = table_.values[i];
    steps.push_back(step.key == nullptr
                        ? absl::StrCat("[", step.position, "]")
                        : absl::StrCat("['", absl::Utf8SafeCHexEscape(KeyText(*step.key)), "']"));
  }
  std::reverse(steps.begin(), steps.end());
  return NotConvertible(file_.name(),
                        absl::StrCat("state", absl::StrJoin(steps, ""), " ", why, kByPython));
}

absl::Status Reader::Node(StateNode* node) {
  const size_t at = next_++;
  const TorchValue& value = table_.values[at];
  switch (value.kind) {
    case TorchValue::Kind::kDict:
      node->kind = Kind::kDict;
      break;
    case TorchValue::Kind::kOrderedDict:
      node->kind = Kind::kOrderedDict;
      break;
    case TorchValue::Kind::kList:
      node->kind = Kind::kList;
      break;
    case TorchValue::Kind::kTuple:
      node->kind = Kind::kTuple;
      break;
    default:
      return Leaf(value, at, node);
  }
  std::set<std::string> keys;
  while (next_ < table_.values.size() && table_.values[next_].parent == at) {
    if (node->has_keys()) {
      CKPTD_RETURN_IF_ERROR(Key(table_.values[next_], at, node));
      if (!keys.insert(node->keys.back()).second) {
        return Refuse(next_, "has a key that was there before");
      }
    }
    CKPTD_RETURN_IF_ERROR(Node(&node->parts.emplace_back()));
  }
  return absl::OkStatus();
}

absl::Status Reader::Key(const TorchValue& value, size_t at, StateNode* node) {
  if (value.key == nullptr || value.key->kind != PickleNode::Kind::kString) {
    const std::string text = value.key == nullptr ? "?" : KeyText(*value.key);
    return Refuse(at, absl::StrCat("has the key ", text, ", which is no string"));
  }
  node->keys.push_back(value.key->text);
  return absl::OkStatus();
}

absl::Status Reader::Leaf(const TorchValue& value, size_t at, StateNode* node) {
  node->integer = value.node->integer;
  switch (value.kind) {
    case TorchValue::Kind::kTensor:
      return Tensor(value.tensor, at, node);
    case TorchValue::Kind::kNone:
      node->kind = Kind::kNone;
      return absl::OkStatus();
    case TorchValue::Kind::kBool:
      node->kind = Kind::kBool;
      return absl::OkStatus();
    case TorchValue::Kind::kInt:
      node->kind = Kind::kInt;
      return absl::OkStatus();
    case TorchValue::Kind::kFloat:
      node->kind = Kind::kFloat;
      node->number = value.node->number;
      return absl::OkStatus();
    case TorchValue::Kind::kString:
      node->kind = Kind::kString;
      node->text = value.node->text;
      return absl::OkStatus();
    default:
      return Refuse(
          at, absl::StrCat("is ", value.what, ", and no tensor, number, string, boolean or None"));
  }
}

absl::Status Reader::Tensor(size_t index, size_t at, StateNode* node) {
  node->kind = Kind::kTensor;
  size_t& known = tensors_[table_.tensors[index].same_as];
  if (known == 0) {
    CKPTD_ASSIGN_OR_RETURN(StateTensor tensor, Bytes(table_.tensors[index], at));
    state_.tensors.push_back(std::move(tensor));
    known = state_.tensors.size();
  }
  node->tensor = known - 1;
  return absl::OkStatus();
}

absl::StatusOr<StateTensor> Reader::Bytes(const TorchTensor& tensor, size_t at) {
  if (tensor.item_bytes == 0) return Refuse(at, absl::StrCat("is of the dtype ", tensor.dtype));
  if (tensor.location == "meta") return Refuse(at, "is on the device meta, and has no bytes");
  if (tensor.conjugate || tensor.negative) {
    return Refuse(at, "is the conjugate, or the negative, of its memory");
  }
  StateTensor made;
  made.dtype = tensor.dtype;
  made.shape = tensor.shape;
  const uint64_t count = tensor.element_count();
  if (count == 0) return made;
  if (__builtin_mul_overflow(count, tensor.item_bytes, &made.size_bytes) ||
      std::any_of(tensor.strides.begin(), tensor.strides.end(), [](int64_t s) { return s < 0; })) {
    return Refuse(at, "has strides that torch does not make");
  }
  const TorchRecord* record = file_.Find(absl::StrCat("data/", tensor.storage));
  if (record == nullptr) return Refuse(at, "has no bytes");
  CKPTD_ASSIGN_OR_RETURN(const uint64_t payload, file_.PayloadOffset(*record));
  const char* from =
      bytes_.data() + payload + static_cast<uint64_t>(tensor.offset) * tensor.item_bytes;
  made.data = from;
  if (tensor.contiguous()) return made;
  try {
    std::string& buffer = state_.buffers.emplace_back(made.size_bytes, '\0');
    Gather(tensor, from, buffer.data());
    made.data = buffer.data();
  } catch (const std::exception&) {
    return Refuse(at, absl::StrCat("takes ", made.size_bytes,
                                   " bytes without its gaps, for which there is no memory"));
  }
  return made;
}

}  // namespace

absl::Status NotConvertible(absl::string_view object, absl::string_view why) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "NOT_CONVERTIBLE",
                   absl::StrCat(object, ": ", why));
}

absl::StatusOr<State> ReadTorchState(const TorchFile& file, absl::string_view bytes) {
  CKPTD_ASSIGN_OR_RETURN(const TorchContents contents, ReadTorchContents(file));
  if (!contents.table.unknown.empty()) {
    return NotConvertible(file.name(),
                          absl::StrCat("holds what only Python can make: ",
                                       absl::StrJoin(contents.table.unknown, ", "), kByPython));
  }
  if (contents.byte_order != "little") {
    return NotConvertible(file.name(),
                          absl::StrCat("was written by a big-endian machine", kByPython));
  }
  return Reader(file, bytes, contents.table).Read();
}

}  // namespace ckptd
