#include "plugins/torch/read/zip_directory.h"

#include <algorithm>
#include <tuple>

#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

// Encrypted, patched, or with a hidden directory.
constexpr uint16_t kUnreadableFlags = 0x2061;
// A reader gives a folder no bytes, whatever its size says.
constexpr uint32_t kFolder = 0x10;

bool Denies(uint64_t in_short, uint64_t value, uint64_t most) {
  return in_short != value && in_short != most;
}

// Follows the zip64 locator in front of the end record at `end`. `directory` holds what the end
// record says, which the zip64 end record must not deny. Returns the offset of the latter.
absl::StatusOr<uint64_t> ReadEnd64(ZipBytes& bytes, uint64_t end, ZipDirectory* directory) {
  const uint64_t locator_at = end - kZipLocatorBytes;
  CKPTD_ASSIGN_OR_RETURN(absl::string_view locator, bytes.Get(locator_at, kZipLocatorBytes));
  const auto disk = ZipNumber<uint32_t>(locator, 4);
  const auto at = ZipNumber<uint64_t>(locator, 8);
  const auto disks = ZipNumber<uint32_t>(locator, 16);
  if (disk != 0 || disks != 1 || locator_at < kZipEnd64Bytes || at > locator_at - kZipEnd64Bytes) {
    return bytes.Corrupt(locator_at, absl::StrCat("the zip64 locator leads to disk ", disk, " of ",
                                                  disks, ", byte ", at));
  }
  CKPTD_ASSIGN_OR_RETURN(absl::string_view record, bytes.Get(at, kZipEnd64Bytes));
  if (!absl::StartsWith(record, "PK\6\6") ||
      ZipNumber<uint64_t>(record, 4) != locator_at - at - 12) {
    return bytes.Corrupt(at, "there is no zip64 end record where its locator leads to");
  }
  const ZipDirectory full = {.offset = ZipNumber<uint64_t>(record, 48),
                             .size_bytes = ZipNumber<uint64_t>(record, 40),
                             .record_count = ZipNumber<uint64_t>(record, 32)};
  if (ZipNumber<uint64_t>(record, 16) != 0 ||
      ZipNumber<uint64_t>(record, 24) != full.record_count) {
    return bytes.Corrupt(at, "the zip64 end record tells of an archive in several parts");
  }
  if (Denies(directory->record_count, full.record_count, kZipMax16) ||
      Denies(directory->size_bytes, full.size_bytes, kZipMax32) ||
      Denies(directory->offset, full.offset, kZipMax32)) {
    return bytes.Corrupt(end, "the end record denies what the zip64 end record says");
  }
  *directory = full;
  return at;
}

// Reads the entry at `at` of the directory; tells the record's name and where the next entry is.
absl::StatusOr<ZipRecord> ReadEntry(ZipBytes& bytes, const ZipDirectory& directory, uint64_t at,
                                    std::string* name, uint64_t* next) {
  const uint64_t end = directory.offset + directory.size_bytes;
  absl::string_view head;
  if (end - at >= kZipEntryBytes) {
    CKPTD_ASSIGN_OR_RETURN(head, bytes.Get(at, kZipEntryBytes));
  }
  if (!absl::StartsWith(head, "PK\1\2")) {
    return bytes.Corrupt(at, "there is no entry of the directory, which tells of more");
  }
  ZipRecord record;
  record.entry_offset = at;
  record.flags = ZipNumber<uint16_t>(head, 8);
  record.method = ZipNumber<uint16_t>(head, 10);
  record.crc = ZipNumber<uint32_t>(head, 16);
  record.stored_bytes = ZipNumber<uint32_t>(head, 20);
  record.size_bytes = ZipNumber<uint32_t>(head, 24);
  record.name_bytes = ZipNumber<uint16_t>(head, 28);
  const auto extra_bytes = ZipNumber<uint16_t>(head, 30);
  const auto comment_bytes = ZipNumber<uint16_t>(head, 32);
  const auto disk = ZipNumber<uint16_t>(head, 34);
  const auto attributes = ZipNumber<uint32_t>(head, 38);
  record.header_offset = ZipNumber<uint32_t>(head, 42);

  const uint64_t rest = uint64_t{record.name_bytes} + extra_bytes + comment_bytes;
  if (rest > end - at - kZipEntryBytes) {
    return bytes.Corrupt(at, "the entry reaches beyond the directory");
  }
  CKPTD_ASSIGN_OR_RETURN(absl::string_view tail, bytes.Get(at + kZipEntryBytes, rest));
  *name = std::string(tail.substr(0, record.name_bytes));
  *next = at + kZipEntryBytes + rest;
  if (!ResolveZip64(tail.substr(record.name_bytes, extra_bytes),
                    {&record.size_bytes, &record.stored_bytes, &record.header_offset})) {
    return bytes.Corrupt(at, "the entry lacks the zip64 field it refers to", *name);
  }
  const bool stored = record.method == kZipStored;
  const bool folder = (attributes & kFolder) != 0 || absl::EndsWith(*name, "/");
  if ((record.flags & kUnreadableFlags) != 0 || (!stored && record.method != kZipDeflated) ||
      (stored && record.stored_bytes != record.size_bytes) ||
      (record.size_bytes > 0 && (record.stored_bytes == 0 || folder)) || disk != 0) {
    return bytes.Corrupt(at, "the entry is of a kind that torch cannot read", *name);
  }
  if (record.header_offset >= directory.offset) {
    return bytes.Corrupt(
        at, absl::StrCat("the entry leads to byte ", record.header_offset, ", behind all records"),
        *name);
  }
  return record;
}

// Sorts the records as they lie in the file, and gives each the space up to the next.
absl::Status PutInOrder(ZipBytes& bytes, uint64_t directory, std::vector<ZipRecord>* records) {
  std::sort(records->begin(), records->end(), [](const ZipRecord& a, const ZipRecord& b) {
    return std::tie(a.header_offset, a.entry_offset) < std::tie(b.header_offset, b.entry_offset);
  });
  for (size_t i = 0; i < records->size(); ++i) {
    ZipRecord& record = (*records)[i];
    record.end = i + 1 < records->size() ? (*records)[i + 1].header_offset : directory;
    if (record.end - record.header_offset < kZipHeaderBytes ||
        record.end - record.header_offset - kZipHeaderBytes < record.stored_bytes) {
      CKPTD_ASSIGN_OR_RETURN(absl::string_view name,
                             bytes.Get(record.entry_offset + kZipEntryBytes, record.name_bytes));
      return bytes.Corrupt(record.header_offset,
                           absl::StrCat("its ", record.stored_bytes,
                                        " bytes reach into what follows at ", record.end),
                           std::string(name));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ZipBytes::Fill(uint64_t offset) {
  window_.resize(std::min<uint64_t>(kWindowBytes, size_bytes_ - offset));
  window_offset_ = offset;
  absl::Status status = read_(offset, window_.data(), window_.size());
  if (!status.ok()) window_.clear();
  return status;
}

absl::StatusOr<absl::string_view> ZipBytes::Get(uint64_t offset, size_t length) {
  if (offset < window_offset_ || offset - window_offset_ > window_.size() ||
      window_.size() - (offset - window_offset_) < length) {
    CKPTD_RETURN_IF_ERROR(Fill(offset));
  }
  return absl::string_view(window_).substr(offset - window_offset_, length);
}

absl::StatusOr<absl::string_view> ZipBytes::GetSome(uint64_t offset, uint64_t length) {
  if (offset < window_offset_ || offset - window_offset_ >= window_.size()) {
    CKPTD_RETURN_IF_ERROR(Fill(offset));
  }
  return absl::string_view(window_).substr(offset - window_offset_, length);
}

absl::Status ZipBytes::Corrupt(uint64_t offset, absl::string_view why,
                               absl::string_view record) const {
  return CorruptCheckpoint(name_, offset, why, record);
}

absl::Status CorruptCheckpoint(const std::string& path, uint64_t offset, absl::string_view why,
                               absl::string_view record) {
  // ASCII, as a field of a message must be UTF-8, which a damaged name need not be.
  const std::string shown = absl::CHexEscape(record);
  ErrorMetadata metadata = {{"offset", absl::StrCat(offset)}};
  if (!record.empty()) metadata.emplace_back("record", shown);
  return MakeError(
      absl::StatusCode::kDataLoss, "CORRUPT_CHECKPOINT",
      absl::StrCat(path, ": is corrupt at byte ", offset,
                   record.empty() ? "" : absl::StrCat(", record '", shown, "'"), ": ", why,
                   ". Load an older checkpoint: `ckptctl verify` tells which are whole."),
      metadata);
}

bool ResolveZip64(absl::string_view extra, const std::vector<uint64_t*>& values) {
  std::vector<uint64_t*> large;
  for (uint64_t* value : values) {
    if (*value == kZipMax32) large.push_back(value);
  }
  if (large.empty()) return true;
  while (extra.size() >= 4) {
    const auto kind = ZipNumber<uint16_t>(extra, 0);
    const auto length = ZipNumber<uint16_t>(extra, 2);
    extra.remove_prefix(4);
    if (kind == 1) {
      if (length > extra.size() || length < 8 * large.size()) return false;
      for (size_t i = 0; i < large.size(); ++i) *large[i] = ZipNumber<uint64_t>(extra, 8 * i);
      return true;
    }
    extra.remove_prefix(std::min<size_t>(length, extra.size()));
  }
  return false;
}

absl::StatusOr<ZipDirectory> FindZipDirectory(ZipBytes& bytes) {
  const uint64_t size = bytes.size_bytes();
  const uint64_t tail_bytes = std::min<uint64_t>(size, kZipEndBytes + kZipMax16);
  CKPTD_ASSIGN_OR_RETURN(absl::string_view tail, bytes.Get(size - tail_bytes, tail_bytes));
  const size_t found =
      tail.size() < kZipEndBytes ? tail.npos : tail.rfind("PK\5\6", tail.size() - kZipEndBytes);
  if (found == tail.npos) {
    return bytes.Corrupt(size, "the file lacks its end: it was truncated, or never finished");
  }
  const absl::string_view record = tail.substr(found);
  const uint64_t at = size - record.size();
  const auto comment_bytes = ZipNumber<uint16_t>(record, 20);
  if (kZipEndBytes + comment_bytes != record.size()) {
    return bytes.Corrupt(
        at, absl::StrCat(record.size() - kZipEndBytes,
                         " bytes follow the end record, which tells of ", comment_bytes));
  }
  if (ZipNumber<uint32_t>(record, 4) != 0 ||
      ZipNumber<uint16_t>(record, 8) != ZipNumber<uint16_t>(record, 10)) {
    return bytes.Corrupt(at, "the end record tells of an archive in several parts");
  }
  ZipDirectory directory = {.offset = ZipNumber<uint32_t>(record, 16),
                            .size_bytes = ZipNumber<uint32_t>(record, 12),
                            .record_count = ZipNumber<uint16_t>(record, 10)};
  uint64_t end = at;
  if (at >= kZipLocatorBytes) {
    CKPTD_ASSIGN_OR_RETURN(absl::string_view magic, bytes.Get(at - kZipLocatorBytes, 4));
    if (magic == "PK\6\7") {
      CKPTD_ASSIGN_OR_RETURN(end, ReadEnd64(bytes, at, &directory));
    }
  }
  if (directory.size_bytes > end || directory.offset != end - directory.size_bytes) {
    return bytes.Corrupt(
        end, absl::StrCat("the directory is said to be at ", directory.offset, ", ",
                          directory.size_bytes, " bytes long, which does not end here"));
  }
  if (directory.record_count > directory.size_bytes / kZipEntryBytes) {
    return bytes.Corrupt(end, absl::StrCat(directory.record_count, " records are said to be in a ",
                                           "directory of ", directory.size_bytes, " bytes"));
  }
  return directory;
}

absl::StatusOr<std::vector<ZipRecord>> ReadZipDirectory(ZipBytes& bytes,
                                                        const ZipDirectory& directory) {
  std::vector<ZipRecord> records;
  absl::flat_hash_set<size_t> names;  // Of 64 bits each: two do not meet by chance.
  const uint64_t end = directory.offset + directory.size_bytes;
  uint64_t at = directory.offset;
  for (uint64_t i = 0; i < directory.record_count; ++i) {
    std::string name;
    uint64_t next = 0;
    CKPTD_ASSIGN_OR_RETURN(ZipRecord record, ReadEntry(bytes, directory, at, &name, &next));
    if (!names.insert(absl::HashOf(name)).second) {
      return bytes.Corrupt(at, "the directory has two entries of this name", name);
    }
    records.push_back(record);
    at = next;
  }
  if (at != end) {
    return bytes.Corrupt(at, absl::StrCat(end - at, " bytes follow the directory's ",
                                          directory.record_count, " entries"));
  }
  CKPTD_RETURN_IF_ERROR(PutInOrder(bytes, directory.offset, &records));
  return records;
}

}  // namespace ckptd
