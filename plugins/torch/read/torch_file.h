#ifndef CKPTD_PLUGINS_TORCH_READ_TORCH_FILE_H_
#define CKPTD_PLUGINS_TORCH_READ_TORCH_FILE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "plugins/torch/pickle/reader.h"
#include "plugins/torch/read/tensor_table.h"
#include "plugins/torch/read/zip_directory.h"

namespace ckptd {

// The most bytes that are needed to tell what a file is.
inline constexpr size_t kTorchHeadBytes = 64;

// What a file is, from its first kTorchHeadBytes bytes, or all where it has less: a zip, as
// torch.save writes them since 1.6; or what it wrote before, and still writes with
// _use_new_zipfile_serialization=False.
bool BeginsAsZip(absl::string_view head);
bool BeginsAsLegacyTorch(absl::string_view head);

// A record of a torch file.
struct TorchRecord {
  std::string name;  // without that of the archive: "data/0"
  ZipRecord zip;
};

// A zip file of torch.save, or of one that writes as it does: opened, with its directory read, and
// nothing else. In either order of records, with those that came with later versions or without.
class TorchFile {
 public:
  // Copies [offset, offset + length) of the file to `to`; that always lies inside it.
  using Read = std::function<absl::Status(uint64_t offset, void* to, size_t length)>;

  // `name` is for messages. DATA_LOSS (CORRUPT_CHECKPOINT) for a zip whose directory is damaged.
  // FAILED_PRECONDITION (NOT_READABLE) for what is no such file: it says what else it is.
  static absl::StatusOr<TorchFile> Open(std::string name, uint64_t size_bytes, Read read);

  const std::string& name() const { return name_; }
  uint64_t size_bytes() const { return size_bytes_; }
  // In the order of the file.
  const std::vector<TorchRecord>& records() const { return records_; }
  // Null where there is none.
  const TorchRecord* Find(absl::string_view record) const;
  // What stands in front of the names: "archive".
  const std::string& archive() const { return archive_; }

  // The whole of a record, inflated where it is deflated, and checked where it has a checksum.
  // NOT_READABLE where it is longer than `max_bytes`.
  absl::StatusOr<std::string> ReadRecord(const TorchRecord& record, uint64_t max_bytes) const;

  // Where the bytes of a record begin in the file; NOT_READABLE where they are deflated.
  absl::StatusOr<uint64_t> PayloadOffset(const TorchRecord& record) const;

 private:
  TorchFile(std::string name, uint64_t size_bytes, Read read)
      : name_(std::move(name)), size_bytes_(size_bytes), read_(std::move(read)) {}
  absl::Status ReadDirectory();
  absl::StatusOr<uint64_t> BytesOf(const TorchRecord& record) const;

  std::string name_;
  uint64_t size_bytes_ = 0;
  Read read_;
  std::string archive_;
  std::vector<TorchRecord> records_;
  std::unordered_map<std::string, size_t> by_name_;
};

// What is in such a file: what its pickle says, read as data.
struct TorchContents {
  Pickle pickle;
  TorchTable table;  // of `pickle`
  // "little", also where the file does not say; or "big".
  std::string byte_order;
  // Of the file's format, as it says: "3".
  std::string version;
};

// Reads data.pkl and what goes with it. Runs nothing, and takes about ten times the pickle's length
// of memory; NOT_READABLE for one of more than 1 GiB, or that ReadPickle or ReadTorchTable refuse.
// For each storage that a tensor has there is a record of its size, else DATA_LOSS
// (CORRUPT_CHECKPOINT).
absl::StatusOr<TorchContents> ReadTorchContents(const TorchFile& file);

// FAILED_PRECONDITION with reason NOT_READABLE: "`name`: `why`".
absl::Status NotReadable(absl::string_view name, absl::string_view why);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_READ_TORCH_FILE_H_
