#include <array>
#include <charconv>
#include <cmath>
#include <unordered_set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/convert/write.h"
#include "plugins/safetensors/json.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using Kind = StateNode::Kind;

// The name of a state that is one leaf.
constexpr absl::string_view kRoot = "data";

std::string Quoted(absl::string_view text) {
  std::string quoted;
  AppendJsonString({text.data(), text.size()}, &quoted);
  return quoted;
}

// As many digits as it takes to have the same number back; never an int.
std::string FloatText(double number) {
  std::array<char, 32> digits = {};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number).ptr;
  std::string text(digits.data(), end);
  if (text.find_first_of(".e") == text.npos) text.append(".0");
  return text;
}

absl::string_view KindName(Kind kind) {
  switch (kind) {
    case Kind::kDict:
      return "dict";
    case Kind::kOrderedDict:
      return "OrderedDict";
    case Kind::kList:
      return "list";
    default:
      return "tuple";
  }
}

// Items of a JSON object.
void AppendItem(absl::string_view key, absl::string_view value, std::string* items) {
  absl::StrAppend(items, items->empty() ? "" : ",", Quoted(key), ":", value);
}

// client/python/ckptd/named.py does the same with the objects themselves.
class Writer {
 public:
  Writer(absl::string_view name, const State& state, SaveSpec* spec)
      : object_(name), state_(state), spec_(spec), kept_(state.tensors.size()) {}

  absl::Status Write() {
    std::string tree;
    CKPTD_RETURN_IF_ERROR(Take(state_.root, &tree));
    if (!aliases_.empty()) spec_->options["ckptd.aliases"] = absl::StrCat("{", aliases_, "}");
    if (!values_.empty()) spec_->options["ckptd.values"] = absl::StrCat("{", values_, "}");
    if (!splits_ || state_.root.kind != Kind::kDict) spec_->options["ckptd.tree"] = tree;
    return absl::OkStatus();
  }

 private:
  // Appends the node of `node` in ckptd.tree.
  absl::Status Take(const StateNode& node, std::string* tree);
  absl::Status Leaf(const StateNode& node, const std::string& name);
  void Tensor(const StateTensor& tensor, const std::string& name);
  std::string Name();
  absl::Status Refuse(absl::string_view why) const {
    std::string where = "state";
    for (const std::string& step : steps_) {
      absl::StrAppend(&where, "['", absl::Utf8SafeCHexEscape(step), "']");
    }
    return NotConvertible(object_, absl::StrCat(where, " ", why));
  }

  const absl::string_view object_;
  const State& state_;
  SaveSpec* const spec_;
  std::vector<std::string> kept_;  // names of the tensors that are written
  std::vector<std::string> steps_;
  std::unordered_set<std::string> names_;
  std::string aliases_;
  std::string values_;
  bool splits_ = true;  // whether dots tell how names nest
};

absl::Status Writer::Take(const StateNode& node, std::string* tree) {
  if (!node.has_parts()) {
    const std::string name = Name();
    absl::StrAppend(tree, Quoted(name));
    return Leaf(node, name);
  }
  splits_ = splits_ && node.kind == Kind::kDict && (!node.parts.empty() || steps_.empty());
  absl::StrAppend(tree, "[", Quoted(KindName(node.kind)), node.has_keys() ? ",{" : ",[");
  for (size_t i = 0; i < node.parts.size(); ++i) {
    if (i > 0) absl::StrAppend(tree, ",");
    if (node.has_keys()) {
      const std::string& key = node.keys[i];
      if (absl::StrContains(key, '\0')) return Refuse("has a key with a zero byte in it");
      splits_ = splits_ && !key.empty() && !absl::StrContains(key, '.');
      absl::StrAppend(tree, Quoted(key), ":");
    }
    steps_.push_back(node.has_keys() ? node.keys[i] : absl::StrCat(i));
    CKPTD_RETURN_IF_ERROR(Take(node.parts[i], tree));
    steps_.pop_back();
  }
  absl::StrAppend(tree, node.has_keys() ? "}]" : "]]");
  return absl::OkStatus();
}

std::string Writer::Name() {
  std::string wanted = absl::StrJoin(steps_, ".");
  if (wanted.empty()) wanted = std::string(kRoot);
  std::string name = wanted;
  for (int count = 1; !names_.insert(name).second; ++count) {
    name = absl::StrCat(wanted, ".", count);
    splits_ = false;
  }
  return name;
}

absl::Status Writer::Leaf(const StateNode& node, const std::string& name) {
  switch (node.kind) {
    case Kind::kTensor:
      if (!kept_[node.tensor].empty()) {
        AppendItem(name, Quoted(kept_[node.tensor]), &aliases_);
        return absl::OkStatus();
      }
      kept_[node.tensor] = name;
      Tensor(state_.tensors[node.tensor], name);
      return absl::OkStatus();
    case Kind::kBool:
      AppendItem(name, node.integer != 0 ? "true" : "false", &values_);
      return absl::OkStatus();
    case Kind::kInt:
      AppendItem(name, absl::StrCat(node.integer), &values_);
      return absl::OkStatus();
    case Kind::kFloat:
      if (!std::isfinite(node.number)) return Refuse("is no finite number, as JSON wants it");
      AppendItem(name, FloatText(node.number), &values_);
      return absl::OkStatus();
    case Kind::kString:
      if (absl::StrContains(node.text, '\0')) return Refuse("is text with a zero byte in it");
      AppendItem(name, Quoted(node.text), &values_);
      return absl::OkStatus();
    default:
      AppendItem(name, "null", &values_);
      return absl::OkStatus();
  }
}

void Writer::Tensor(const StateTensor& tensor, const std::string& name) {
  TensorView view;
  view.name = name;
  view.dtype = tensor.dtype;
  view.shape = tensor.shape;
  view.data = tensor.data;
  view.size_bytes = tensor.size_bytes;
  spec_->tensors.push_back(std::move(view));
}

}  // namespace

absl::Status WriteNamed(absl::string_view name, const State& state, SaveSpec* spec) {
  for (const auto& [key, value] : state.metadata) {
    spec->options[absl::StrCat("metadata.", key)] = value;
  }
  return Writer(name, state, spec).Write();
}

}  // namespace ckptd
