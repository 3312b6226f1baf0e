#include "plugins/torch/read/torch_file.h"

#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

constexpr uint64_t kMaxPickleBytes = uint64_t{1} << 30;
constexpr uint64_t kMaxNoteBytes = 4096;
// No deflated byte becomes more than 1032.
constexpr uint64_t kMaxInflation = 1033;
// The number 0x1950a86a20f9469cfc6c, with which the older format begins, as LONG1.
constexpr absl::string_view kLegacyMagic = "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

absl::Status Inflate(const std::string& from, std::string* to) {
  auto state = std::make_unique<inflate_state>();
  isal_inflate_init(state.get());
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast): it is only read
  state->next_in = reinterpret_cast<uint8_t*>(const_cast<char*>(from.data()));
  state->avail_in = static_cast<uint32_t>(from.size());
  state->next_out = reinterpret_cast<uint8_t*>(to->data());
  state->avail_out = static_cast<uint32_t>(to->size());
  if (isal_inflate(state.get()) < ISAL_DECOMP_OK || state->avail_out != 0 ||
      state->block_state != ISAL_BLOCK_FINISH) {
    return absl::DataLossError("it cannot be inflated");
  }
  return absl::OkStatus();
}

// A short record, without white space; empty where there is none.
absl::StatusOr<std::string> ReadNote(const TorchFile& file, absl::string_view name) {
  const TorchRecord* record = file.Find(name);
  if (record == nullptr) return std::string();
  CKPTD_ASSIGN_OR_RETURN(std::string text, file.ReadRecord(*record, kMaxNoteBytes));
  return std::string(absl::StripAsciiWhitespace(text));
}

absl::Status CheckStorages(const TorchFile& file, const TorchTable& table) {
  for (const TorchTensor& tensor : table.tensors) {
    if (tensor.storage.empty() ||
        tensor.same_as != static_cast<size_t>(&tensor - &table.tensors[0])) {
      continue;
    }
    const std::string name = absl::StrCat("data/", tensor.storage);
    const TorchRecord* record = file.Find(name);
    if (record == nullptr) {
      return CorruptCheckpoint(file.name(), 0, "a tensor needs this record, which is missing",
                               name);
    }
    if (tensor.item_bytes > 0 && record->zip.size_bytes < tensor.storage_bytes) {
      return CorruptCheckpoint(
          file.name(), record->zip.header_offset,
          absl::StrCat("its ", record->zip.size_bytes, " bytes are fewer than the ",
                       tensor.storage_bytes, " of a tensor's storage"),
          name);
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool BeginsAsZip(absl::string_view head) { return absl::StartsWith(head, "PK\3\4"); }

bool BeginsAsLegacyTorch(absl::string_view head) {
  return absl::StartsWith(head, "\x80") &&
         head.substr(0, kTorchHeadBytes).find(kLegacyMagic) != head.npos;
}

absl::Status NotReadable(absl::string_view name, absl::string_view why) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "NOT_READABLE",
                   absl::StrCat(name, ": ", why));
}

absl::StatusOr<TorchFile> TorchFile::Open(std::string name, uint64_t size_bytes, Read read) {
  TorchFile file(std::move(name), size_bytes, std::move(read));
  std::string head(std::min<uint64_t>(size_bytes, kTorchHeadBytes), '\0');
  if (!head.empty()) CKPTD_RETURN_IF_ERROR(file.read_(0, head.data(), head.size()));
  if (BeginsAsLegacyTorch(head)) {
    return NotReadable(file.name_,
                       "is a file as torch.save wrote them before torch 1.6, which is no zip; load "
                       "it with torch.load and save it again");
  }
  if (!BeginsAsZip(head)) {
    return NotReadable(file.name_, "is no zip file, as torch.save writes them");
  }
  CKPTD_RETURN_IF_ERROR(file.ReadDirectory());
  return file;
}

absl::Status TorchFile::ReadDirectory() {
  ZipBytes bytes(name_, size_bytes_, read_);
  CKPTD_ASSIGN_OR_RETURN(const ZipDirectory directory, FindZipDirectory(bytes));
  CKPTD_ASSIGN_OR_RETURN(const std::vector<ZipRecord> records, ReadZipDirectory(bytes, directory));
  records_.resize(records.size());
  // In the order of the directory, which is read through a window.
  std::vector<size_t> order(records.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&records](size_t a, size_t b) {
    return records[a].entry_offset < records[b].entry_offset;
  });
  for (const size_t i : order) {
    const ZipRecord& record = records[i];
    CKPTD_ASSIGN_OR_RETURN(const absl::string_view full,
                           bytes.Get(record.entry_offset + kZipEntryBytes, record.name_bytes));
    const size_t slash = full.find('/');
    if (i == order.front()) archive_ = std::string(full.substr(0, slash));
    if (slash == full.npos || full.substr(0, slash) != archive_) {
      return NotReadable(
          name_, absl::StrCat("is a zip file, but none of torch.save's: '", absl::CHexEscape(full),
                              "' is not in the folder of the others"));
    }
    records_[i] = {std::string(full.substr(slash + 1)), record};
    by_name_[records_[i].name] = i;
  }
  if (Find("data.pkl") == nullptr) {
    return NotReadable(name_, "is a zip file, but none of torch.save's: it has no data.pkl");
  }
  return absl::OkStatus();
}

const TorchRecord* TorchFile::Find(absl::string_view record) const {
  const auto it = by_name_.find(std::string(record));
  return it == by_name_.end() ? nullptr : &records_[it->second];
}

absl::StatusOr<uint64_t> TorchFile::BytesOf(const TorchRecord& record) const {
  const ZipRecord& zip = record.zip;
  std::array<char, kZipHeaderBytes> bytes = {};
  CKPTD_RETURN_IF_ERROR(read_(zip.header_offset, bytes.data(), bytes.size()));
  const absl::string_view header(bytes.data(), bytes.size());
  const uint64_t length =
      kZipHeaderBytes + ZipNumber<uint16_t>(header, 26) + ZipNumber<uint16_t>(header, 28);
  if (!BeginsAsZip(header) || length > zip.end - zip.header_offset - zip.stored_bytes) {
    return CorruptCheckpoint(name_, zip.header_offset, "there is no local header", record.name);
  }
  return zip.header_offset + length;
}

absl::StatusOr<uint64_t> TorchFile::PayloadOffset(const TorchRecord& record) const {
  if (record.zip.method == kZipStored) return BytesOf(record);
  return NotReadable(name_, absl::StrCat("record '", absl::CHexEscape(record.name),
                                         "' is compressed, which torch.save never does"));
}

absl::StatusOr<std::string> TorchFile::ReadRecord(const TorchRecord& record,
                                                  uint64_t max_bytes) const {
  const ZipRecord& zip = record.zip;
  if (std::max(zip.size_bytes, zip.stored_bytes) > max_bytes) {
    return NotReadable(
        name_, absl::StrCat("record '", absl::CHexEscape(record.name), "' has ", zip.size_bytes,
                            " bytes, and ", max_bytes, " are read at most"));
  }
  CKPTD_ASSIGN_OR_RETURN(const uint64_t offset, BytesOf(record));
  std::string data(zip.stored_bytes, '\0');
  if (!data.empty()) CKPTD_RETURN_IF_ERROR(read_(offset, data.data(), data.size()));
  if (zip.method == kZipDeflated) {
    if (zip.size_bytes / kMaxInflation > zip.stored_bytes) {
      return CorruptCheckpoint(name_, zip.header_offset, "its size cannot be true", record.name);
    }
    std::string inflated(zip.size_bytes, '\0');
    if (absl::Status status = Inflate(data, &inflated); !status.ok()) {
      return CorruptCheckpoint(name_, zip.header_offset, status.message(), record.name);
    }
    data = std::move(inflated);
  }
  const uint32_t crc =
      crc32_gzip_refl(0, reinterpret_cast<const unsigned char*>(data.data()), data.size());
  // 0: written without checksums.
  if (zip.crc != 0 && zip.crc != crc) {
    return CorruptCheckpoint(
        name_, zip.header_offset,
        absl::StrFormat("CRC-32 of its %d bytes is %08x, the directory says %08x", data.size(), crc,
                        zip.crc),
        record.name);
  }
  return data;
}

absl::StatusOr<TorchContents> ReadTorchContents(const TorchFile& file) {
  TorchContents contents;
  CKPTD_ASSIGN_OR_RETURN(contents.byte_order, ReadNote(file, "byteorder"));
  if (contents.byte_order.empty()) contents.byte_order = "little";
  CKPTD_ASSIGN_OR_RETURN(contents.version, ReadNote(file, "version"));
  const TorchRecord& record = *file.Find("data.pkl");
  CKPTD_ASSIGN_OR_RETURN(const std::string data, file.ReadRecord(record, kMaxPickleBytes));
  absl::StatusOr<Pickle> pickle = ReadPickle(data);
  if (!pickle.ok()) {
    return NotReadable(file.name(), absl::StrCat("data.pkl: ", pickle.status().message()));
  }
  contents.pickle = *std::move(pickle);
  absl::StatusOr<TorchTable> table = ReadTorchTable(contents.pickle);
  if (!table.ok()) {
    return NotReadable(file.name(), absl::StrCat("data.pkl: ", table.status().message()));
  }
  contents.table = *std::move(table);
  CKPTD_RETURN_IF_ERROR(CheckStorages(file, contents.table));
  return contents;
}

}  // namespace ckptd
