#include "plugins/safetensors/json.h"

#include <charconv>
#include <unordered_set>

namespace ckptd {
namespace {

constexpr int kMaxDepth = 64;

class Parser {
 public:
  explicit Parser(std::string_view text) : left_(text) {}

  bool Whole(Json* out) {
    if (!Value(out, 0)) return false;
    SkipSpace();
    return left_.empty();
  }

 private:
  void SkipSpace() {
    const size_t count = left_.find_first_not_of(" \t\r\n");
    left_.remove_prefix(count == left_.npos ? left_.size() : count);
  }
  bool Take(std::string_view token) {
    if (left_.substr(0, token.size()) != token) return false;
    left_.remove_prefix(token.size());
    return true;
  }
  bool TakeToken(std::string_view token) {
    SkipSpace();
    return Take(token);
  }

  bool Value(Json* out, int depth) {
    if (depth > kMaxDepth) return false;
    SkipSpace();
    if (Take("{")) return Items(out, Json::Kind::kObject, "}", depth);
    if (Take("[")) return Items(out, Json::Kind::kArray, "]", depth);
    if (Take("\"")) {
      out->kind = Json::Kind::kString;
      return String(&out->text);
    }
    if (Take("null")) return true;
    out->kind = Json::Kind::kBool;
    for (const std::string_view word : {"true", "false"}) {
      if (!Take(word)) continue;
      out->text = word;
      return true;
    }
    out->kind = Json::Kind::kNumber;
    const size_t end = left_.find_first_not_of("+-.0123456789eE");
    out->text = left_.substr(0, end);
    left_.remove_prefix(out->text.size());
    return !out->text.empty();
  }

  bool Items(Json* out, Json::Kind kind, std::string_view end, int depth) {
    out->kind = kind;
    if (TakeToken(end)) return true;
    std::unordered_set<std::string> keys;
    for (;;) {
      Json::Item& item = out->items.emplace_back();
      if (kind == Json::Kind::kObject) {
        if (!TakeToken("\"") || !String(&item.first) || !TakeToken(":")) return false;
        if (!keys.insert(item.first).second) return false;
      }
      if (!Value(&item.second, depth + 1)) return false;
      if (TakeToken(end)) return true;
      if (!TakeToken(",")) return false;
    }
  }

  // After the opening quote.
  bool String(std::string* out) {
    for (;;) {
      const size_t count = left_.find_first_of("\"\\");
      if (count == left_.npos) return false;
      out->append(left_.substr(0, count));
      left_.remove_prefix(count);
      if (Take("\"")) return true;
      if (!Escape(out)) return false;
    }
  }

  bool Escape(std::string* out) {
    static constexpr std::string_view kFrom = "\"\\/bfnrt";
    static constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    if (left_.size() < 2) return false;
    const char c = left_[1];
    left_.remove_prefix(2);
    if (const size_t at = kFrom.find(c); at != kFrom.npos) {
      out->push_back(kTo[at]);
      return true;
    }
    uint32_t code = 0;
    if (c != 'u' || !Hex(&code)) return false;
    if (code >= 0xD800 && code < 0xDC00) {
      uint32_t low = 0;
      if (!Take("\\u") || !Hex(&low) || low < 0xDC00 || low > 0xDFFF) return false;
      code = 0x10000 + ((code - 0xD800) << 10U) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code <= 0xDFFF) {
      return false;
    }
    AppendUtf8(code, out);
    return true;
  }

  bool Hex(uint32_t* code) {
    if (left_.size() < 4) return false;
    const std::string digits(left_.substr(0, 4));
    const char* end = digits.data() + digits.size();
    const auto [at, error] = std::from_chars(digits.data(), end, *code, 16);
    left_.remove_prefix(4);
    return error == std::errc() && at == end;
  }

  static void AppendUtf8(uint32_t code, std::string* out) {
    const auto put = [out](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
    if (code < 0x80) return put(code);
    if (code < 0x800) {
      put(0xC0 | (code >> 6U));
    } else {
      if (code < 0x10000) {
        put(0xE0 | (code >> 12U));
      } else {
        put(0xF0 | (code >> 18U));
        put(0x80 | ((code >> 12U) & 0x3FU));
      }
      put(0x80 | ((code >> 6U) & 0x3FU));
    }
    put(0x80 | (code & 0x3FU));
  }

  std::string_view left_;
};

}  // namespace

const Json* Json::Find(std::string_view key) const {
  for (const auto& [name, value] : items) {
    if (name == key) return &value;
  }
  return nullptr;
}

std::optional<uint64_t> Json::Unsigned() const {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (kind != Kind::kNumber || error != std::errc() || at != end) return std::nullopt;
  return value;
}

std::optional<Json> ParseJson(std::string_view text) {
  Json json;
  if (!Parser(text).Whole(&json)) return std::nullopt;
  return json;
}

void AppendJsonString(std::string_view text, std::string* out) {
  static constexpr char kHex[] = "0123456789abcdef";
  out->push_back('"');
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (byte < 0x20) {
      out->append("\\u00");
      out->push_back(kHex[byte >> 4U]);
      out->push_back(kHex[byte & 15U]);
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

}  // namespace ckptd
