#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/convert/write.h"
#include "plugins/torch/pickle/tensor.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using Kind = StateNode::Kind;

class Writer {
 public:
  Writer(absl::string_view name, const State& state, SaveSpec* spec)
      : object_(name), state_(state), spec_(spec) {}

  absl::Status Write() {
    CKPTD_RETURN_IF_ERROR(Value(state_.root));
    spec_->object = pickle_.Finish();
    return absl::OkStatus();
  }

 private:
  absl::Status Value(const StateNode& node);
  absl::Status Container(const StateNode& node);
  absl::Status Text(const std::string& text);
  absl::Status Tensor(const StateTensor& tensor);

  const absl::string_view object_;
  const State& state_;
  SaveSpec* const spec_;
  PickleWriter pickle_;
};

absl::Status Writer::Value(const StateNode& node) {
  switch (node.kind) {
    case Kind::kTensor:
      return Tensor(state_.tensors[node.tensor]);
    case Kind::kNone:
      pickle_.None();
      return absl::OkStatus();
    case Kind::kBool:
      pickle_.Bool(node.integer != 0);
      return absl::OkStatus();
    case Kind::kInt:
      pickle_.Int(node.integer);
      return absl::OkStatus();
    case Kind::kFloat:
      pickle_.Float(node.number);
      return absl::OkStatus();
    case Kind::kString:
      return Text(node.text);
    default:
      return Container(node);
  }
}

absl::Status Writer::Text(const std::string& text) {
  if (text.size() > std::numeric_limits<uint32_t>::max()) {
    return NotConvertible(object_, "holds text of more than 4 GiB");
  }
  pickle_.String(text);
  return absl::OkStatus();
}

absl::Status Writer::Container(const StateNode& node) {
  const bool is_tuple = node.kind == Kind::kTuple;
  const auto size = static_cast<int>(node.parts.size());
  if (node.kind == Kind::kDict) pickle_.EmptyDict(nullptr);
  if (node.kind == Kind::kList) pickle_.EmptyList(nullptr);
  if (node.kind == Kind::kOrderedDict) {
    pickle_.Global("collections", "OrderedDict");
    pickle_.Tuple(0);
    pickle_.Op(PickleOp::kReduce);
    pickle_.Put(nullptr);
  }
  if (is_tuple ? size > 3 : size > 0) pickle_.Mark();
  for (size_t i = 0; i < node.parts.size(); ++i) {
    if (node.has_keys()) CKPTD_RETURN_IF_ERROR(Text(node.keys[i]));
    CKPTD_RETURN_IF_ERROR(Value(node.parts[i]));
  }
  if (is_tuple) {
    pickle_.Tuple(size);
    if (size > 0) pickle_.Put(nullptr);
  } else if (size > 0) {
    pickle_.Op(node.has_keys() ? PickleOp::kSetItems : PickleOp::kAppends);
  }
  return absl::OkStatus();
}

absl::Status Writer::Tensor(const StateTensor& tensor) {
  if (pickle_.Get(&tensor)) return absl::OkStatus();
  PickledTensor pickled;
  pickled.storage = absl::StrCat(spec_->tensors.size());
  pickled.dtype = tensor.dtype;
  pickled.shape = tensor.shape;
  pickled.size_bytes = tensor.size_bytes;
  pickled.identity = &tensor;
  if (!PickleTensor(pickled, pickle_)) {
    return NotConvertible(object_, absl::StrCat("holds a tensor of the dtype ", tensor.dtype,
                                                ", which torch does not have"));
  }
  TensorView view;
  view.name = std::move(pickled.storage);
  view.data = tensor.data;
  view.size_bytes = tensor.size_bytes;
  spec_->tensors.push_back(std::move(view));
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteTorch(absl::string_view name, const State& state, SaveSpec* spec) {
  return Writer(name, state, spec).Write();
}

}  // namespace ckptd
