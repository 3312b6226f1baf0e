#include "proto/status/utf8.h"

#include <cstdint>

namespace ckptd {
namespace {

// Length of the character that `text` begins with; 0 where it begins with none.
size_t CharacterBytes(absl::string_view text) {
  const auto byte = [&](size_t i) -> unsigned {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : 0;
  };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0U) != 0x80) return 0;
  }
  // Longer than it need be, one of UTF-16's surrogates, or beyond U+10FFFF.
  const unsigned second = byte(1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
      (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) {
    return 0;
  }
  return length;
}

}  // namespace

std::string ToUtf8(absl::string_view bytes, size_t max_bytes) {
  std::string text;
  while (!bytes.empty()) {
    const size_t length = CharacterBytes(bytes);
    const absl::string_view character = length == 0 ? "?" : bytes.substr(0, length);
    if (character.size() > max_bytes - text.size()) break;
    text.append(character.data(), character.size());
    bytes.remove_prefix(length == 0 ? 1 : length);
  }
  return text;
}

}  // namespace ckptd
