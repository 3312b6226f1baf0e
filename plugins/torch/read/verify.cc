#include "plugins/torch/read/verify.h"

#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "plugins/torch/read/zip_directory.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

constexpr absl::string_view kMagic = "PK\3\4";
constexpr size_t kInflateBytes = size_t{256} << 10;

absl::Status NotVerifiable(const std::string& name) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "NOT_VERIFIABLE",
                   absl::StrCat(name,
                                ": cannot be verified: it is no zip file of torch.save, or was "
                                "written without checksums. Load it and save it again to have "
                                "some."));
}

// What a file is that does not begin as a zip: damaged, if it can be nothing else, or no zip.
absl::Status JudgeBeginning(ZipBytes& bytes, const std::string& head) {
  if (absl::StartsWith(kMagic, head)) {
    return bytes.Corrupt(0, absl::StrCat("the file ends after ", head.size(), " bytes"));
  }
  if (head.find_first_not_of('\0') == head.npos) {
    return bytes.Corrupt(0, "the file begins with zeros: its bytes never reached the storage");
  }
  const absl::StatusOr<ZipDirectory> directory = FindZipDirectory(bytes);
  if (!directory.ok()) {
    return absl::IsDataLoss(directory.status()) ? NotVerifiable(bytes.name()) : directory.status();
  }
  return bytes.Corrupt(0, absl::StrCat("the file begins with '", absl::CHexEscape(head),
                                       "' and ends as a zip file, which begin PK\\3\\4"));
}

// Checks the records of a file against its directory, in the order of the file. Two windows, as
// names are compared with those in the directory.
class RecordChecker {
 public:
  RecordChecker(ZipBytes& directory, ZipBytes& records)
      : directory_(directory), records_(records) {}

  // Checks the local header, and with `with_crc` the bytes.
  absl::Status Check(const ZipRecord& record, bool with_crc);

 private:
  absl::Status Corrupt(absl::string_view why) const {
    return records_.Corrupt(record_.header_offset, why, name_);
  }
  // Returns how many bytes the header has.
  absl::StatusOr<uint64_t> CheckHeader();
  absl::Status CheckNumbers(absl::string_view header, absl::string_view extra) const;
  absl::Status CheckStored(uint64_t at);
  absl::Status CheckDeflated(uint64_t at);
  absl::Status CompareCrc(uint32_t crc) const;

  ZipBytes& directory_;
  ZipBytes& records_;
  ZipRecord record_;
  std::string name_;
  std::unique_ptr<inflate_state> inflate_;
  std::vector<uint8_t> inflated_;
};

absl::Status RecordChecker::Check(const ZipRecord& record, bool with_crc) {
  record_ = record;
  CKPTD_ASSIGN_OR_RETURN(absl::string_view name,
                         directory_.Get(record.entry_offset + kZipEntryBytes, record.name_bytes));
  name_ = std::string(name);
  CKPTD_ASSIGN_OR_RETURN(const uint64_t header_bytes, CheckHeader());
  if (!with_crc) return absl::OkStatus();
  const uint64_t at = record.header_offset + header_bytes;
  return record.method == kZipStored ? CheckStored(at) : CheckDeflated(at);
}

absl::StatusOr<uint64_t> RecordChecker::CheckHeader() {
  const uint64_t at = record_.header_offset;
  CKPTD_ASSIGN_OR_RETURN(absl::string_view start, records_.Get(at, kZipHeaderBytes));
  const std::string header(start);
  if (!absl::StartsWith(header, kMagic)) {
    return Corrupt(absl::StrCat("there is no local header but '",
                                absl::CHexEscape(header.substr(0, kMagic.size())), "'"));
  }
  const auto name_bytes = ZipNumber<uint16_t>(header, 26);
  const auto extra_bytes = ZipNumber<uint16_t>(header, 28);
  const uint64_t length = kZipHeaderBytes + name_bytes + extra_bytes;
  // The directory has made sure that there is room for a header without name and for the bytes.
  if (length > record_.end - at - record_.stored_bytes) {
    return Corrupt(absl::StrCat("header and bytes reach into what follows at ", record_.end));
  }
  CKPTD_ASSIGN_OR_RETURN(absl::string_view rest,
                         records_.Get(at + kZipHeaderBytes, length - kZipHeaderBytes));
  if (rest.substr(0, name_bytes) != name_) {
    return Corrupt(absl::StrCat("the local header names '",
                                absl::CHexEscape(rest.substr(0, name_bytes)), "'"));
  }
  CKPTD_RETURN_IF_ERROR(CheckNumbers(header, rest.substr(name_bytes)));
  return length;
}

absl::Status RecordChecker::CheckNumbers(absl::string_view header, absl::string_view extra) const {
  const auto flags = ZipNumber<uint16_t>(header, 6);
  const auto method = ZipNumber<uint16_t>(header, 8);
  if (flags != record_.flags || method != record_.method) {
    return Corrupt(absl::StrFormat("flags and method are %#x, %d, not %#x, %d", flags, method,
                                   record_.flags, record_.method));
  }
  uint64_t stored = ZipNumber<uint32_t>(header, 18);
  uint64_t size = ZipNumber<uint32_t>(header, 22);
  const bool told_later = (flags & kZipDescriptorFlag) != 0;
  if (told_later && (stored == kZipMax32 || size == kZipMax32)) {
    stored = size = 0;
  } else if (!ResolveZip64(extra, {&size, &stored})) {
    return Corrupt("the local header lacks the zip64 field it refers to");
  }
  const std::array<std::array<uint64_t, 2>, 3> pairs = {{
      {ZipNumber<uint32_t>(header, 14), record_.crc},
      {size, record_.size_bytes},
      {stored, record_.stored_bytes},
  }};
  for (const auto& [found, expected] : pairs) {
    if (found != expected && !(told_later && found == 0)) {
      return Corrupt(
          absl::StrFormat("the local header says %#x, the directory %#x", found, expected));
    }
  }
  return absl::OkStatus();
}

absl::Status RecordChecker::CheckStored(uint64_t at) {
  uint32_t crc = 0;
  for (uint64_t left = record_.stored_bytes; left > 0;) {
    CKPTD_ASSIGN_OR_RETURN(absl::string_view piece, records_.GetSome(at, left));
    crc = crc32_gzip_refl(crc, reinterpret_cast<const unsigned char*>(piece.data()), piece.size());
    at += piece.size();
    left -= piece.size();
  }
  return CompareCrc(crc);
}

absl::Status RecordChecker::CheckDeflated(uint64_t at) {
  if (inflate_ == nullptr) inflate_ = std::make_unique<inflate_state>();
  inflated_.resize(kInflateBytes);
  isal_inflate_init(inflate_.get());
  uint32_t crc = 0;
  uint64_t size = 0;
  uint64_t left = record_.stored_bytes;
  while (inflate_->block_state != ISAL_BLOCK_FINISH && size <= record_.size_bytes) {
    std::string piece;
    if (left > 0) {
      CKPTD_ASSIGN_OR_RETURN(absl::string_view some, records_.GetSome(at, left));
      piece = std::string(some);
    }
    at += piece.size();
    left -= piece.size();
    inflate_->next_in = reinterpret_cast<uint8_t*>(piece.data());
    inflate_->avail_in = static_cast<uint32_t>(piece.size());
    bool more = true;
    while (more && size <= record_.size_bytes) {
      inflate_->next_out = inflated_.data();
      inflate_->avail_out = static_cast<uint32_t>(inflated_.size());
      if (isal_inflate(inflate_.get()) < ISAL_DECOMP_OK) return Corrupt("it cannot be inflated");
      const size_t out = inflated_.size() - inflate_->avail_out;
      crc = crc32_gzip_refl(crc, inflated_.data(), out);
      size += out;
      more = inflate_->block_state != ISAL_BLOCK_FINISH && inflate_->avail_out == 0;
    }
    if (piece.empty()) break;
  }
  const bool ended = inflate_->block_state == ISAL_BLOCK_FINISH;
  if (size != record_.size_bytes || !ended || left > 0 || inflate_->avail_in > 0 ||
      inflate_->read_in_length >= 8) {
    return Corrupt(absl::StrCat("it does not inflate to ", record_.size_bytes, " bytes"));
  }
  return CompareCrc(crc);
}

absl::Status RecordChecker::CompareCrc(uint32_t crc) const {
  if (crc == record_.crc) return absl::OkStatus();
  return Corrupt(absl::StrFormat("CRC-32 of its %d bytes is %08x, the directory says %08x",
                                 record_.size_bytes, crc, record_.crc));
}

}  // namespace

absl::StatusOr<VerifiedCheckpoint> VerifyBytes(const std::string& name, uint64_t size_bytes,
                                               ReadAt read) {
  ZipBytes at_directory(name, size_bytes, read);
  ZipBytes at_records(name, size_bytes, read);
  if (size_bytes == 0) return at_records.Corrupt(0, "the file is empty");
  CKPTD_ASSIGN_OR_RETURN(absl::string_view start,
                         at_records.Get(0, std::min<uint64_t>(kMagic.size(), size_bytes)));
  const std::string head(start);
  if (head != kMagic) return JudgeBeginning(at_directory, head);
  CKPTD_ASSIGN_OR_RETURN(const ZipDirectory directory, FindZipDirectory(at_directory));
  CKPTD_ASSIGN_OR_RETURN(const std::vector<ZipRecord> records,
                         ReadZipDirectory(at_directory, directory));
  // As torch.serialization.set_crc32_options(False) writes it.
  const bool no_crc =
      std::all_of(records.begin(), records.end(), [](const ZipRecord& r) { return r.crc == 0; }) &&
      std::any_of(records.begin(), records.end(),
                  [](const ZipRecord& r) { return r.size_bytes > 0; });
  RecordChecker checker(at_directory, at_records);
  for (const ZipRecord& record : records) {
    CKPTD_RETURN_IF_ERROR(checker.Check(record, !no_crc));
  }
  if (no_crc) return NotVerifiable(name);
  return VerifiedCheckpoint{.record_count = records.size(), .size_bytes = size_bytes};
}

}  // namespace ckptd
