#ifndef CKPTD_PLUGINS_TORCH_ZIP_LAYOUT_H_
#define CKPTD_PLUGINS_TORCH_ZIP_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

namespace ckptd::torch_zip {

// One record of a torch zip, laid out as miniz does with PyTorch's patches:
// local header at `header_offset`, padding, payload at `payload_offset`, data descriptor.
struct Record {
  std::string name;  // with the archive's name: "archive/data/0"
  uint64_t size = 0;
  uint64_t header_offset = 0;
  uint64_t payload_offset = 0;
};

// The whole file: records in file order, then central directory and end records.
struct Layout {
  std::vector<Record> records;
  uint64_t directory_offset = 0;
  uint64_t file_bytes = 0;
};

// PyTorch's config.save.storage_alignment: every payload starts at a multiple of it.
inline constexpr uint64_t kAlignment = 64;

// Computes every offset from names and sizes. Sources: PyTorch's inline_container.cc and miniz.c;
// docs/formats.md has the grammar.
Layout PlanRecords(std::vector<Record> records);

// Bytes that the data descriptor behind a record's payload takes; 0 for an empty record.
uint64_t DescriptorBytes(const Record& record);

// Writes the local header and padding of `record` into the image that starts at `image`.
void WriteHeader(const Record& record, uint8_t* image);

// Writes the data descriptor of `record`, whose payload has CRC-32 `crc`.
void WriteDescriptor(const Record& record, uint32_t crc, uint8_t* image);

// Writes central directory and end records. `crcs` holds one CRC-32 for each record.
void WriteDirectory(const Layout& layout, const std::vector<uint32_t>& crcs, uint8_t* image);

}  // namespace ckptd::torch_zip

#endif  // CKPTD_PLUGINS_TORCH_ZIP_LAYOUT_H_
