#include "plugins/safetensors/header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "plugins/safetensors/json.h"

namespace ckptd::safetensors {
namespace {

// Data begin at a multiple of it: more than the 8 that the format's writers keep to.
constexpr uint64_t kAlignment = 64;

struct Dtype {
  std::string_view format;
  std::string_view torch;
  uint64_t bytes;
};

// In the order of the format's own list, which is that of sizes.
constexpr std::array<Dtype, 19> kDtypes = {{
    {"BOOL", "bool", 1},
    {"U8", "uint8", 1},
    {"I8", "int8", 1},
    {"F8_E5M2", "float8_e5m2", 1},
    {"F8_E4M3", "float8_e4m3fn", 1},
    {"F8_E8M0", "float8_e8m0fnu", 1},
    {"F8_E4M3FNUZ", "float8_e4m3fnuz", 1},
    {"F8_E5M2FNUZ", "float8_e5m2fnuz", 1},
    {"I16", "int16", 2},
    {"U16", "uint16", 2},
    {"F16", "float16", 2},
    {"BF16", "bfloat16", 2},
    {"I32", "int32", 4},
    {"U32", "uint32", 4},
    {"F32", "float32", 4},
    {"C64", "complex64", 8},
    {"F64", "float64", 8},
    {"I64", "int64", 8},
    {"U64", "uint64", 8},
}};

std::string Quoted(std::string_view name) { return "'" + std::string(name) + "'"; }

// A tensor on its way into the header.
struct Placed {
  size_t index = 0;  // in the spec
  std::string_view name;
  std::string_view dtype;
  size_t rank = 0;  // in kDtypes, from 1; 0 where it is not there
  uint64_t item_bytes = 0;
};

// The number of elements; false where it does not go into 64 bits.
bool CountElements(const ckptd_tensor& tensor, uint64_t* count) {
  *count = 1;
  for (size_t i = 0; i < tensor.rank; ++i) {
    if (tensor.shape[i] < 0) return false;
    if (__builtin_mul_overflow(*count, static_cast<uint64_t>(tensor.shape[i]), count)) return false;
  }
  return true;
}

std::string Place(const ckptd_tensor& tensor, bool strict, Placed* placed) {
  placed->name = tensor.name;
  if (placed->name == "__metadata__") {
    return "tensor '__metadata__': safetensors needs that name for itself; rename it";
  }
  uint64_t count = 0;
  if (!CountElements(tensor, &count)) {
    return "tensor " + Quoted(tensor.name) + ": its shape has a negative or too large dimension";
  }
  for (size_t i = 0; i < kDtypes.size(); ++i) {
    if (kDtypes.at(i).torch != tensor.dtype) continue;
    placed->rank = i + 1;
    placed->dtype = kDtypes.at(i).format;
    placed->item_bytes = kDtypes.at(i).bytes;
  }
  if (placed->rank == 0) {
    if (strict) {
      return "tensor " + Quoted(tensor.name) + ": is " + Quoted(tensor.dtype) +
             ", which safetensors cannot hold; convert it, or save with the backend torch";
    }
    placed->dtype = tensor.dtype;
    placed->item_bytes =
        count > 0 && tensor.size_bytes % count == 0 ? tensor.size_bytes / count : 1;
    return "";
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(count, placed->item_bytes, &bytes) || bytes != tensor.size_bytes) {
    return "tensor " + Quoted(tensor.name) + ": has " + std::to_string(tensor.size_bytes) +
           " bytes, which are not those of its shape and dtype";
  }
  return "";
}

std::string KindOf(const Json& value) {
  switch (value.kind) {
    case Json::Kind::kNull:
      return "None";
    case Json::Kind::kBool:
      return "a bool";
    case Json::Kind::kString:
      return "a str";
    case Json::Kind::kNumber:
      return value.text.find_first_of(".eE") == value.text.npos ? "an int" : "a float";
    case Json::Kind::kArray:
      return "a list";
    case Json::Kind::kObject:
      return "a dict";
  }
  return "no tensor";
}

// Names the first few, so that one who has many sees what they are.
std::string RefuseValues(std::string_view text) {
  constexpr size_t kNamed = 5;
  const std::optional<Json> values = ParseJson(text);
  if (!values.has_value() || values->kind != Json::Kind::kObject) {
    return "option 'ckptd.values': is no JSON object";
  }
  if (values->items.empty()) return "";
  std::string named;
  for (size_t i = 0; i < std::min(kNamed, values->items.size()); ++i) {
    const auto& [name, value] = values->items[i];
    named += (i == 0 ? "" : ", ") + Quoted(name) + " is " + KindOf(value);
  }
  const size_t more = values->items.size() - std::min(kNamed, values->items.size());
  if (more > 0) named += " and " + std::to_string(more) + " more";
  return named +
         "; safetensors holds tensors only: save those alone, or all of it with the backend torch";
}

using Metadata = std::map<std::string, std::string>;

// Tied tensors as the format's users note them: alias -> name of the tensor that is there.
std::string AddAliases(const std::string& text, const std::set<std::string_view>& names,
                       Metadata* metadata) {
  const std::optional<Json> aliases = ParseJson(text);
  if (!aliases.has_value() || aliases->kind != Json::Kind::kObject) {
    return "option 'ckptd.aliases': is no JSON object";
  }
  for (const auto& [alias, kept] : aliases->items) {
    if (kept.kind != Json::Kind::kString || names.count(kept.text) == 0) {
      return "option 'ckptd.aliases': " + Quoted(alias) + " is not one of a tensor that is saved";
    }
    if (names.count(alias) != 0 || !metadata->emplace(alias, kept.text).second) {
      return "option 'ckptd.aliases': " + Quoted(alias) +
             " is the name of a tensor, or of metadata, too; rename one";
    }
  }
  // As a whole, too: metadata of the user's own may look like an alias.
  if (!aliases->items.empty()) metadata->emplace("ckptd.aliases", text);
  return "";
}

std::string CollectMetadata(const ckptd_spec& spec, bool strict,
                            const std::set<std::string_view>& names, Metadata* metadata) {
  constexpr std::string_view kUser = "metadata.";
  const char* aliases = nullptr;
  metadata->emplace("format", "pt");
  for (size_t i = 0; i < spec.option_count; ++i) {
    const std::string_view key = spec.options[i].key;
    const char* value = spec.options[i].value;
    if (key == "ckptd.aliases") {
      aliases = value;
    } else if (key == "ckptd.tree") {
      metadata->emplace(key, value);
    } else if (key == "ckptd.values") {
      if (!strict) {
        metadata->emplace(key, value);
      } else if (std::string why = RefuseValues(value); !why.empty()) {
        return why;
      }
    } else if (key.substr(0, kUser.size()) == kUser) {
      const std::string name(key.substr(kUser.size()));
      if (name.rfind("ckptd.", 0) == 0 || (name == "format" && std::strcmp(value, "pt") != 0)) {
        return "metadata " + Quoted(name) + ": is a name that is taken; choose another";
      }
      metadata->emplace(name, value);
    } else {
      return "option " + Quoted(key) +
             ": the safetensors backend does not know it; it takes metadata.KEY";
    }
  }
  return aliases == nullptr ? "" : AddAliases(aliases, names, metadata);
}

void AppendEntry(const Placed& placed, const ckptd_tensor& tensor, uint64_t begin,
                 std::string* out) {
  out->push_back(',');
  AppendJsonString(placed.name, out);
  out->append(":{\"dtype\":");
  AppendJsonString(placed.dtype, out);
  out->append(",\"shape\":[");
  for (size_t i = 0; i < tensor.rank; ++i) {
    if (i > 0) out->push_back(',');
    out->append(std::to_string(tensor.shape[i]));
  }
  out->append("],\"data_offsets\":[" + std::to_string(begin) + "," +
              std::to_string(begin + tensor.size_bytes) + "]}");
}

std::string BeginHeader(const Metadata& metadata) {
  std::string header(kChecksumMark);
  header.append(kNoChecksum).push_back('"');
  for (const auto& [key, value] : metadata) {
    header.push_back(',');
    AppendJsonString(key, &header);
    header.push_back(':');
    AppendJsonString(value, &header);
  }
  header.push_back('}');
  return header;
}

std::string_view TorchName(std::string_view format) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.format == format) return dtype.torch;
  }
  return format;
}

std::string ReadEntry(const std::string& name, const Json& value, Entry* entry) {
  std::string broken = "the header's entry of " + Quoted(name) + " is broken";
  const Json* dtype = value.Find("dtype");
  const Json* shape = value.Find("shape");
  const Json* offsets = value.Find("data_offsets");
  if (dtype == nullptr || shape == nullptr || offsets == nullptr || offsets->items.size() != 2) {
    return broken;
  }
  entry->name = name;
  entry->dtype = TorchName(dtype->text);
  uint64_t count = 1;
  for (const auto& item : shape->items) {
    const std::optional<uint64_t> size = item.second.Unsigned();
    if (!size.has_value() || __builtin_mul_overflow(count, *size, &count)) return broken;
    entry->shape.push_back(static_cast<int64_t>(*size));
  }
  const std::optional<uint64_t> begin = offsets->items[0].second.Unsigned();
  const std::optional<uint64_t> end = offsets->items[1].second.Unsigned();
  if (!begin.has_value() || !end.has_value() || *begin > *end) return broken;
  entry->begin = *begin;
  entry->end = *end;
  for (const Dtype& known : kDtypes) {
    if (known.format == dtype->text && (*end - *begin) / known.bytes != count) return broken;
  }
  return "";
}

}  // namespace

std::string PlanFile(const ckptd_spec& spec, bool strict, Layout* layout) {
  if (spec.object_bytes != 0) {
    return "object_bytes: the safetensors backend takes named tensors, and no object";
  }
  std::vector<Placed> order(spec.tensor_count);
  std::set<std::string_view> names;
  for (size_t i = 0; i < spec.tensor_count; ++i) {
    order[i].index = i;
    if (std::string why = Place(spec.tensors[i], strict, &order[i]); !why.empty()) return why;
    names.insert(order[i].name);
  }
  Metadata metadata;
  if (std::string why = CollectMetadata(spec, strict, names, &metadata); !why.empty()) return why;
  std::sort(order.begin(), order.end(), [](const Placed& a, const Placed& b) {
    if (a.item_bytes != b.item_bytes) return a.item_bytes > b.item_bytes;
    return a.rank != b.rank ? a.rank > b.rank : a.name < b.name;
  });
  std::string header = BeginHeader(metadata);
  layout->tensor_offsets.resize(spec.tensor_count);
  uint64_t at = 0;
  for (const Placed& placed : order) {
    const ckptd_tensor& tensor = spec.tensors[placed.index];
    AppendEntry(placed, tensor, at, &header);
    layout->tensor_offsets[placed.index] = at;
    at += tensor.size_bytes;
  }
  header.push_back('}');
  header.append((kAlignment - (8 + header.size()) % kAlignment) % kAlignment, ' ');
  if (header.size() > kMaxHeaderBytes) {
    return "tensors: their names and metadata take " + std::to_string(header.size()) +
           " bytes, and safetensors has at most " + std::to_string(kMaxHeaderBytes) +
           "; split the state over several files";
  }
  const uint64_t length = header.size();
  layout->head.resize(sizeof(length));
  std::memcpy(layout->head.data(), &length, sizeof(length));
  layout->head.append(header);
  for (uint64_t& offset : layout->tensor_offsets) offset += layout->head.size();
  layout->file_bytes = layout->head.size() + at;
  return "";
}

std::string ReadHeader(std::string_view header, uint64_t data_bytes, std::vector<Entry>* entries,
                       std::map<std::string, std::string>* metadata) {
  const std::optional<Json> json = ParseJson(header);
  if (!json.has_value() || json->kind != Json::Kind::kObject) {
    return "the header is no JSON object";
  }
  for (const auto& [name, value] : json->items) {
    if (name == "__metadata__") {
      for (const auto& [key, note] : value.items) {
        if (note.kind != Json::Kind::kString) return "its metadata " + Quoted(key) + " is no text";
        metadata->emplace(key, note.text);
      }
      continue;
    }
    if (std::string why = ReadEntry(name, value, &entries->emplace_back()); !why.empty()) {
      return why;
    }
  }
  std::sort(entries->begin(), entries->end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t at = 0;
  for (const Entry& entry : *entries) {
    if (entry.begin != at) return "the data of " + Quoted(entry.name) + " overlap or leave a hole";
    at = entry.end;
  }
  if (at != data_bytes) {
    return "the header tells of " + std::to_string(at) + " bytes of data, and there are " +
           std::to_string(data_bytes);
  }
  return "";
}

}  // namespace ckptd::safetensors
