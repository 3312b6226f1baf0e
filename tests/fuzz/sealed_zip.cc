#include "tests/fuzz/sealed_zip.h"

#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "tests/fuzz/fuzz.h"

namespace ckptd {
namespace {

template <typename T>
uint64_t Number(absl::string_view file, uint64_t at) {
  T value = 0;
  FUZZ_CHECK(at <= file.size() && sizeof(value) <= file.size() - at, absl::StrCat("at ", at));
  std::memcpy(&value, file.data() + at, sizeof(value));
  return value;
}

std::array<uint32_t, 256> CrcTable() {
  std::array<uint32_t, 256> table = {};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit)
      value = (value & 1) != 0 ? value >> 1 ^ 0xEDB88320 : value >> 1;
    table[i] = value;
  }
  return table;
}

uint32_t Crc(absl::string_view bytes) {
  static const std::array<uint32_t, 256> table = CrcTable();
  uint32_t crc = 0xFFFFFFFF;
  for (char c : bytes) crc = table[(crc ^ static_cast<uint8_t>(c)) & 0xFF] ^ crc >> 8;
  return ~crc;
}

struct Directory {
  uint64_t count = 0;
  uint64_t offset = 0;
  uint64_t end = 0;
};

Directory ReadEnds(absl::string_view file) {
  FUZZ_CHECK(file.size() >= 98, "too short for its end records");
  const uint64_t end = file.size() - 22;
  const uint64_t locator = end - 20;
  const uint64_t end64 = locator - 56;
  FUZZ_CHECK(Number<uint32_t>(file, end) == 0x06054b50, "no end record");
  FUZZ_CHECK(Number<uint32_t>(file, locator) == 0x07064b50, "no locator");
  FUZZ_CHECK(Number<uint64_t>(file, locator + 8) == end64, "the locator leads elsewhere");
  FUZZ_CHECK(Number<uint32_t>(file, end64) == 0x06064b50, "no zip64 end record");
  FUZZ_CHECK(Number<uint64_t>(file, end64 + 4) == 56 - 12, "its size");
  Directory directory;
  directory.count = Number<uint64_t>(file, end64 + 32);
  directory.offset = Number<uint64_t>(file, end64 + 48);
  directory.end = end64;
  FUZZ_CHECK(Number<uint64_t>(file, end64 + 24) == directory.count, "counts differ");
  FUZZ_CHECK(Number<uint64_t>(file, end64 + 40) == end64 - directory.offset, "directory's size");
  FUZZ_CHECK(Number<uint16_t>(file, end + 10) == std::min<uint64_t>(directory.count, 0xFFFF),
             "counts differ");
  FUZZ_CHECK(Number<uint32_t>(file, end + 16) == directory.offset, "offsets differ");
  FUZZ_CHECK(Number<uint32_t>(file, end + 12) == end64 - directory.offset, "sizes differ");
  FUZZ_CHECK(Number<uint16_t>(file, end + 20) == 0, "has a comment");
  return directory;
}

// The record whose entry in the directory stands at `entry`; its header must stand at `header`, and
// that is moved behind the record.
ZipRecord ReadRecord(absl::string_view file, uint64_t entry, uint64_t* header) {
  FUZZ_CHECK(Number<uint32_t>(file, entry) == 0x02014b50, "no directory entry");
  FUZZ_CHECK(Number<uint16_t>(file, entry + 10) == 0, "is compressed");
  const uint64_t flags = Number<uint16_t>(file, entry + 8);
  const uint64_t crc = Number<uint32_t>(file, entry + 16);
  const uint64_t size = Number<uint32_t>(file, entry + 24);
  const uint64_t name_bytes = Number<uint16_t>(file, entry + 28);
  FUZZ_CHECK(Number<uint32_t>(file, entry + 20) == size, "sizes differ");
  FUZZ_CHECK(Number<uint32_t>(file, entry + 42) == *header, "there is something before its header");
  FUZZ_CHECK(entry + 46 + name_bytes <= file.size(), "its name ends behind the file");

  ZipRecord record;
  record.name = std::string(file.substr(entry + 46, name_bytes));
  FUZZ_CHECK(Number<uint32_t>(file, *header) == 0x04034b50, record.name);
  FUZZ_CHECK(Number<uint16_t>(file, *header + 6) == flags, record.name);
  FUZZ_CHECK(Number<uint16_t>(file, *header + 26) == name_bytes, record.name);
  FUZZ_CHECK(file.substr(*header + 30, name_bytes) == record.name, record.name);
  record.payload_offset = *header + 30 + name_bytes + Number<uint16_t>(file, *header + 28);
  const uint64_t end = record.payload_offset + size;
  FUZZ_CHECK(end <= file.size(), record.name);
  record.payload = file.substr(record.payload_offset, size);
  FUZZ_CHECK(Crc(record.payload) == crc, record.name);
  *header = end;
  FUZZ_CHECK(((flags & 8) != 0) == (size > 0), record.name);
  if (size == 0) return record;
  FUZZ_CHECK(Number<uint32_t>(file, end) == 0x08074b50, record.name);
  FUZZ_CHECK(Number<uint32_t>(file, end + 4) == crc, record.name);
  FUZZ_CHECK(Number<uint32_t>(file, end + 8) == size, record.name);
  FUZZ_CHECK(Number<uint32_t>(file, end + 12) == size, record.name);
  *header += 16;
  return record;
}

}  // namespace

std::vector<ZipRecord> ReadSealedZip(absl::string_view file) {
  const Directory directory = ReadEnds(file);
  std::vector<ZipRecord> records;
  uint64_t entry = directory.offset;
  uint64_t header = 0;
  for (uint64_t i = 0; i < directory.count; ++i) {
    records.push_back(ReadRecord(file, entry, &header));
    entry += 46 + Number<uint16_t>(file, entry + 28) + Number<uint16_t>(file, entry + 30) +
             Number<uint16_t>(file, entry + 32);
  }
  FUZZ_CHECK(entry == directory.end, "the directory ends elsewhere");
  FUZZ_CHECK(header == directory.offset, "there is something before the directory");
  return records;
}

}  // namespace ckptd
