#ifndef CKPTD_PLUGINS_TORCH_READ_ZIP_DIRECTORY_H_
#define CKPTD_PLUGINS_TORCH_READ_ZIP_DIRECTORY_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "plugins/torch/read/verify.h"
#include "plugins/torch/zip_format.h"

namespace ckptd {

// What the directory of a zip file tells of one record.
struct ZipRecord {
  uint64_t entry_offset = 0;   // of its entry in the directory
  uint64_t header_offset = 0;  // of the record
  uint64_t end = 0;            // where the next record, or the directory, begins
  uint64_t stored_bytes = 0;
  uint64_t size_bytes = 0;
  uint32_t crc = 0;
  uint16_t flags = 0;
  uint16_t method = 0;
  uint16_t name_bytes = 0;
};

// A number at `at` in `bytes`, which hold it: little-endian, as this machine is.
template <typename T>
T ZipNumber(absl::string_view bytes, size_t at) {
  T value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

// DATA_LOSS with reason CORRUPT_CHECKPOINT. `why` says what was found and what was expected at
// `offset`; `record` is the name of the record if it is one that is damaged.
absl::Status CorruptCheckpoint(const std::string& path, uint64_t offset, absl::string_view why,
                               absl::string_view record = "");

// Bytes of one file through a window of 1 MiB: what is near each other is read at once. Not
// thread-safe. `name` and what `read` refers to must live as long as this.
class ZipBytes {
 public:
  static constexpr size_t kWindowBytes = size_t{1} << 20;

  ZipBytes(const std::string& name, uint64_t size_bytes, ReadAt read)
      : name_(name), size_bytes_(size_bytes), read_(read) {}

  // Exactly [offset, offset + length), which must be inside the file, and no longer than the
  // window. Good until the next call.
  absl::StatusOr<absl::string_view> Get(uint64_t offset, size_t length);

  // At least one byte and at most `length` bytes at `offset`, as is cheapest. Good until the next
  // call.
  absl::StatusOr<absl::string_view> GetSome(uint64_t offset, uint64_t length);

  // CorruptCheckpoint for this file.
  absl::Status Corrupt(uint64_t offset, absl::string_view why, absl::string_view record = "") const;

  const std::string& name() const { return name_; }
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  absl::Status Fill(uint64_t offset);

  const std::string& name_;
  const uint64_t size_bytes_;
  const ReadAt read_;
  std::string window_;
  uint64_t window_offset_ = 0;
};

// Where the directory of a zip file is, on which all end records of the file agree.
struct ZipDirectory {
  uint64_t offset = 0;
  uint64_t size_bytes = 0;
  uint64_t record_count = 0;
};

// Finds it from the file's end. DATA_LOSS where it is not said without contradiction.
absl::StatusOr<ZipDirectory> FindZipDirectory(ZipBytes& bytes);

// Reads it. The records come in the order of the file; none overlaps another or the directory.
absl::StatusOr<std::vector<ZipRecord>> ReadZipDirectory(ZipBytes& bytes,
                                                        const ZipDirectory& directory);

// Takes those of `values` that are 2^32-1 from the zip64 field of `extra`, in their order. False
// where it lacks them.
bool ResolveZip64(absl::string_view extra, const std::vector<uint64_t*>& values);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_READ_ZIP_DIRECTORY_H_
