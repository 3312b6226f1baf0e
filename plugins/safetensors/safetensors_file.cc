#include "plugins/safetensors/safetensors_file.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "plugins/torch/read/zip_directory.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using safetensors::kChecksumMark;
using safetensors::kChecksumOffset;
using safetensors::kNoChecksum;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kStep = uint64_t{4} << 20;
// A mark that differs from ours in no more bytes than this is a damaged one.
constexpr size_t kFewBytes = 4;

size_t DifferingBytes(absl::string_view header) {
  const absl::string_view mark = header.substr(0, kChecksumMark.size());
  size_t differing = kChecksumMark.size() - mark.size();
  for (size_t i = 0; i < mark.size(); ++i) differing += mark[i] != kChecksumMark[i] ? 1 : 0;
  return differing;
}

// Of the whole file, with 0s where the digits are.
absl::StatusOr<std::string> Checksum(uint64_t size_bytes, ReadAt read) {
  std::string piece;
  uint32_t crc = 0;
  for (uint64_t at = 0; at < size_bytes; at += piece.size()) {
    piece.resize(std::min(kStep, size_bytes - at));
    CKPTD_RETURN_IF_ERROR(read(at, piece.data(), piece.size()));
    if (at == 0 && piece.size() >= kChecksumOffset + kNoChecksum.size()) {
      std::copy(kNoChecksum.begin(), kNoChecksum.end(),
                piece.begin() + static_cast<std::ptrdiff_t>(kChecksumOffset));
    }
    crc = crc32_gzip_refl(crc, reinterpret_cast<const unsigned char*>(piece.data()), piece.size());
  }
  return absl::StrFormat("%08x", crc);
}

}  // namespace

bool BeginsAsSafetensors(absl::string_view head, uint64_t size_bytes) {
  if (head.size() <= kLengthBytes || size_bytes < kLengthBytes) return false;
  const auto length = ZipNumber<uint64_t>(head, 0);
  return length >= 2 && length <= safetensors::kMaxHeaderBytes &&
         length <= size_bytes - kLengthBytes && head[kLengthBytes] == '{';
}

absl::StatusOr<SafetensorsFile> ReadSafetensors(const std::string& name, uint64_t size_bytes,
                                                ReadAt read) {
  uint64_t length = 0;
  if (size_bytes < kLengthBytes) {
    return CorruptCheckpoint(name, 0, "the file is shorter than any header");
  }
  CKPTD_RETURN_IF_ERROR(read(0, &length, sizeof(length)));
  if (length > safetensors::kMaxHeaderBytes || length > size_bytes - kLengthBytes) {
    return CorruptCheckpoint(name, 0,
                             "it is no safetensors file, or its length of header is damaged");
  }
  SafetensorsFile file;
  file.data_offset = kLengthBytes + length;
  file.header.resize(length);
  CKPTD_RETURN_IF_ERROR(read(kLengthBytes, file.header.data(), length));
  const std::string why = safetensors::ReadHeader(file.header, size_bytes - file.data_offset,
                                                  &file.entries, &file.metadata);
  if (!why.empty()) return CorruptCheckpoint(name, kLengthBytes, why);
  return file;
}

absl::StatusOr<VerifiedCheckpoint> VerifySafetensors(const std::string& name, uint64_t size_bytes,
                                                     ReadAt read) {
  CKPTD_ASSIGN_OR_RETURN(const SafetensorsFile file, ReadSafetensors(name, size_bytes, read));
  const size_t differing = DifferingBytes(file.header);
  if (differing > kFewBytes) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NOT_VERIFIABLE",
                     absl::StrCat(name,
                                  ": cannot be verified, as it was written without a checksum; "
                                  "load it and save it again to have one"));
  }
  const std::string said = file.header.substr(kChecksumMark.size(), kNoChecksum.size());
  CKPTD_ASSIGN_OR_RETURN(const std::string found, Checksum(size_bytes, read));
  if (differing == 0 && said == found) {
    return VerifiedCheckpoint{.record_count = file.entries.size(), .size_bytes = size_bytes};
  }
  return CorruptCheckpoint(name, kChecksumOffset,
                           absl::StrCat("CRC-32 of the file is ", found, ", its header says '",
                                        absl::CHexEscape(said), "'"));
}

}  // namespace ckptd
