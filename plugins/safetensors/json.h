#ifndef CKPTD_PLUGINS_SAFETENSORS_JSON_H_
#define CKPTD_PLUGINS_SAFETENSORS_JSON_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ckptd {

// A JSON value. Numbers stay as they are written.
struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  struct Item;  // a key, of an object, and a value

  Kind kind = Kind::kNull;
  std::string text;         // of a number, a string; "true" or "false"
  std::vector<Item> items;  // of an array or an object, in its order
  const Json* Find(std::string_view key) const;
  // Of a number that is one; nothing for others.
  std::optional<uint64_t> Unsigned() const;
};

struct Json::Item {
  std::string first;
  Json second;
};

// Nothing for what is not one JSON value with white space about it, names a key twice, or nests
// more than 64 deep.
std::optional<Json> ParseJson(std::string_view text);

// Appends `text` as a JSON string.
void AppendJsonString(std::string_view text, std::string* out);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_SAFETENSORS_JSON_H_
