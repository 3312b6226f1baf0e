#include <cstring>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cpp/convert/read.h"
#include "plugins/safetensors/json.h"
#include "plugins/safetensors/safetensors_file.h"
#include "plugins/torch/read/zip_directory.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using Kind = StateNode::Kind;

constexpr uint64_t kHeaderOffset = 8;
constexpr std::string_view kOurs = "ckptd.";
constexpr int kMaxDepth = 1000;

// A leaf: a tensor, or a value.
using Leaves = std::vector<std::pair<std::string, StateNode>>;

absl::Status Broken(absl::string_view why) {
  return absl::DataLossError(
      absl::StrCat("__metadata__ does not tell how its tensors nest: ", why));
}

StateNode TensorNode(size_t index) {
  StateNode node;
  node.kind = Kind::kTensor;
  node.tensor = index;
  return node;
}

absl::StatusOr<StateNode> ValueNode(const std::string& name, const Json& value) {
  StateNode node;
  node.text = value.text;
  switch (value.kind) {
    case Json::Kind::kNull:
      return node;
    case Json::Kind::kBool:
      node.kind = Kind::kBool;
      node.integer = value.text == "true" ? 1 : 0;
      return node;
    case Json::Kind::kString:
      node.kind = Kind::kString;
      return node;
    case Json::Kind::kNumber: {
      const bool is_int = value.text.find_first_of(".eE") == value.text.npos;
      node.kind = is_int ? Kind::kInt : Kind::kFloat;
      const bool is_number = is_int ? absl::SimpleAtoi(value.text, &node.integer)
                                    : absl::SimpleAtod(value.text, &node.number);
      if (is_number) return node;
      return Broken(absl::StrCat("'", name, "' is a number of more than 64 bits"));
    }
    default:
      return Broken(absl::StrCat("'", name, "' is no value"));
  }
}

class Reader {
 public:
  Reader(const std::string& name, absl::string_view bytes) : name_(name), bytes_(bytes) {}

  absl::StatusOr<State> Read() {
    const auto read = [this](uint64_t offset, void* to, size_t length) {
      std::memcpy(to, bytes_.data() + offset, length);
      return absl::OkStatus();
    };
    CKPTD_ASSIGN_OR_RETURN(SafetensorsFile file, ReadSafetensors(name_, bytes_.size(), read));
    for (safetensors::Entry& entry : file.entries) {
      AddLeaf(entry.name, TensorNode(state_.tensors.size()));
      state_.tensors.push_back({std::move(entry.dtype), std::move(entry.shape),
                                bytes_.data() + file.data_offset + entry.begin,
                                entry.end - entry.begin});
    }
    if (absl::Status status = ReadMetadata(std::move(file.metadata)); !status.ok()) {
      return CorruptCheckpoint(name_, kHeaderOffset, status.message());
    }
    return std::move(state_);
  }

 private:
  absl::Status ReadMetadata(std::map<std::string, std::string> told);
  absl::Status AddAliases(const Json& aliases);
  absl::Status AddValues(const std::string& text);
  void AddLeaf(const std::string& name, StateNode node) {
    places_[name] = leaves_.size();
    leaves_.emplace_back(name, std::move(node));
  }
  absl::Status Nest(const Json& tree, int depth, StateNode* node);
  absl::Status Split();

  const std::string& name_;
  const absl::string_view bytes_;
  Leaves leaves_;
  std::map<std::string, size_t> places_;  // in leaves_
  std::vector<bool> used_;
  State state_;
};

absl::Status Reader::ReadMetadata(std::map<std::string, std::string> told) {
  const bool is_ours = told.count("ckptd.crc32") != 0;
  // Files of others note tied tensors alone, as metadata like any other.
  Json aliases;
  if (const auto text = told.find("ckptd.aliases"); text != told.end()) {
    std::optional<Json> parsed = ParseJson(text->second);
    if (!parsed.has_value()) return Broken("ckptd.aliases is no JSON");
    aliases = *std::move(parsed);
  } else {
    for (const auto& [key, value] : told) {
      if (places_.count(value) == 0 || places_.count(key) != 0) continue;
      Json kept;
      kept.text = value;
      aliases.items.push_back({key, kept});
    }
  }
  CKPTD_RETURN_IF_ERROR(AddAliases(aliases));
  for (const auto& [alias, kept] : aliases.items) told.erase(alias);
  if (told.count("ckptd.values") != 0) CKPTD_RETURN_IF_ERROR(AddValues(told["ckptd.values"]));
  used_.resize(leaves_.size());
  if (const auto tree = told.find("ckptd.tree"); tree != told.end()) {
    const std::optional<Json> parsed = ParseJson(tree->second);
    if (!parsed.has_value()) return Broken("ckptd.tree is no JSON");
    CKPTD_RETURN_IF_ERROR(Nest(*parsed, 0, &state_.root));
    for (size_t i = 0; i < used_.size(); ++i) {
      if (!used_[i]) return Broken(absl::StrCat("'", leaves_[i].first, "' has no place"));
    }
  } else if (is_ours) {
    CKPTD_RETURN_IF_ERROR(Split());
  } else {
    state_.root.kind = Kind::kDict;
    for (auto& [name, leaf] : leaves_) {
      state_.root.keys.push_back(name);
      state_.root.parts.push_back(std::move(leaf));
    }
  }
  for (const auto& [key, value] : told) {
    if (key != "format" && key.rfind(kOurs, 0) != 0) state_.metadata[key] = value;
  }
  return absl::OkStatus();
}

absl::Status Reader::AddAliases(const Json& aliases) {
  for (const auto& [alias, kept] : aliases.items) {
    const auto place = places_.find(kept.text);
    if (place == places_.end() || places_.count(alias) != 0) {
      return Broken(absl::StrCat("'", alias, "' is tied to no tensor"));
    }
    AddLeaf(alias, leaves_[place->second].second);
  }
  return absl::OkStatus();
}

absl::Status Reader::AddValues(const std::string& text) {
  const std::optional<Json> values = ParseJson(text);
  if (!values.has_value() || values->kind != Json::Kind::kObject) {
    return Broken("ckptd.values is no JSON object");
  }
  for (const auto& [name, value] : values->items) {
    if (places_.count(name) != 0) return Broken(absl::StrCat("'", name, "' is there twice"));
    CKPTD_ASSIGN_OR_RETURN(StateNode node, ValueNode(name, value));
    AddLeaf(name, std::move(node));
  }
  return absl::OkStatus();
}

// ckptd.tree: a leaf is its name, a container [kind, parts].
absl::Status Reader::Nest(const Json& tree, int depth, StateNode* node) {
  static const std::map<std::string, Kind> kKinds = {{"dict", Kind::kDict},
                                                     {"OrderedDict", Kind::kOrderedDict},
                                                     {"list", Kind::kList},
                                                     {"tuple", Kind::kTuple}};
  if (depth == kMaxDepth) return Broken("it is too deep");
  if (tree.kind == Json::Kind::kString) {
    const auto place = places_.find(tree.text);
    if (place == places_.end()) return Broken(absl::StrCat("there is no '", tree.text, "'"));
    *node = leaves_[place->second].second;
    used_[place->second] = true;
    return absl::OkStatus();
  }
  if (tree.kind != Json::Kind::kArray || tree.items.size() != 2) return Broken("a part is none");
  const auto kind = kKinds.find(tree.items[0].second.text);
  const Json& parts = tree.items[1].second;
  if (kind == kKinds.end()) return Broken("a container is of no known kind");
  node->kind = kind->second;
  if (parts.kind != (node->has_keys() ? Json::Kind::kObject : Json::Kind::kArray)) {
    return Broken("a container has no parts");
  }
  for (const auto& [key, part] : parts.items) {
    if (node->has_keys()) node->keys.push_back(key);
    CKPTD_RETURN_IF_ERROR(Nest(part, depth + 1, &node->parts.emplace_back()));
  }
  return absl::OkStatus();
}

// Gives the part of `node` that has the key; a new dict where there is none.
StateNode* Part(StateNode* node, const std::string& key, std::map<std::string, size_t>* places) {
  const auto [place, is_new] = places->emplace(key, node->parts.size());
  if (is_new) {
    node->keys.push_back(key);
    node->parts.emplace_back().kind = Kind::kDict;
  }
  return &node->parts[place->second];
}

absl::Status Reader::Split() {
  // The names of dicts, and where their parts are in them: "" is the root.
  std::map<std::string, std::map<std::string, size_t>> dicts;
  state_.root.kind = Kind::kDict;
  for (auto& [name, leaf] : leaves_) {
    const std::vector<std::string> steps = absl::StrSplit(name, '.');
    if (steps.size() > kMaxDepth) return Broken("it is too deep");
    StateNode* node = &state_.root;
    std::string path;
    for (size_t i = 0; i < steps.size(); ++i) {
      auto& places = dicts[path];
      absl::StrAppend(&path, steps[i], ".");
      const bool is_last = i + 1 == steps.size();
      const bool is_known = places.count(steps[i]) != 0;
      node = Part(node, steps[i], &places);
      if (is_last && is_known) return Broken(absl::StrCat("'", name, "' is above another name"));
      if (!is_last && node->kind != Kind::kDict) {
        return Broken(absl::StrCat("'", name, "' is beneath another name"));
      }
    }
    *node = std::move(leaf);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<State> ReadSafetensorsState(const std::string& name, absl::string_view bytes) {
  return Reader(name, bytes).Read();
}

}  // namespace ckptd
