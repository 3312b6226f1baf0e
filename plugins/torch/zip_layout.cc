#include "plugins/torch/zip_layout.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <utility>

#include "plugins/torch/zip_format.h"

namespace ckptd::torch_zip {
namespace {

// Appends little-endian numbers; the machine is little-endian, as the format is.
class Writer {
 public:
  explicit Writer(uint8_t* out) : out_(out) {}

  template <typename T>
    requires std::is_integral_v<T>
  void Put(T value) {
    std::memcpy(out_, &value, sizeof(value));
    out_ += sizeof(value);
  }
  void Put(std::string_view text) {
    std::memcpy(out_, text.data(), text.size());
    out_ += text.size();
  }
  void Fill(char byte, size_t count) {
    std::memset(out_, byte, count);
    out_ += count;
  }

 private:
  uint8_t* out_;
};

bool LargeSize(const Record& r) { return r.size >= kZipMax32; }
bool LargeOffset(const Record& r) { return r.header_offset >= kZipMax32; }
bool IsZip64(const Record& r) { return LargeSize(r) || LargeOffset(r); }

// Bytes of the zip64 extra field, its 4-byte head included; 0 where there is none.
uint64_t Zip64ExtraBytes(const Record& r) {
  if (!IsZip64(r)) return 0;
  return 4 + (LargeSize(r) ? 16 : 0) + (LargeOffset(r) ? 8 : 0);
}

uint16_t Flags(const Record& r) {
  return r.size > 0 ? kZipUtf8Flag | kZipDescriptorFlag : kZipUtf8Flag;
}

// `compressed` is 0 in the local header, where the size is not known to miniz yet.
void PutZip64Extra(const Record& r, uint64_t compressed, Writer& w) {
  if (!IsZip64(r)) return;
  w.Put<uint16_t>(0x0001);
  w.Put<uint16_t>(static_cast<uint16_t>(Zip64ExtraBytes(r) - 4));
  if (LargeSize(r)) {
    w.Put<uint64_t>(r.size);
    w.Put<uint64_t>(compressed);
  }
  if (LargeOffset(r)) w.Put<uint64_t>(r.header_offset);
}

void PutDirectoryEntry(const Record& r, uint32_t crc, Writer& w) {
  w.Put<uint32_t>(0x02014b50);
  w.Put<uint16_t>(0);  // made by
  w.Put<uint16_t>(0);  // version needed
  w.Put<uint16_t>(Flags(r));
  w.Put<uint16_t>(0);  // stored
  w.Put<uint32_t>(0);  // time and date
  w.Put<uint32_t>(crc);
  w.Put<uint32_t>(static_cast<uint32_t>(std::min<uint64_t>(r.size, kZipMax32)));
  w.Put<uint32_t>(static_cast<uint32_t>(std::min<uint64_t>(r.size, kZipMax32)));
  w.Put<uint16_t>(static_cast<uint16_t>(r.name.size()));
  w.Put<uint16_t>(static_cast<uint16_t>(Zip64ExtraBytes(r)));
  w.Put<uint16_t>(0);  // comment
  w.Put<uint16_t>(0);  // disk
  w.Put<uint16_t>(0);  // internal attributes
  w.Put<uint32_t>(0);  // external attributes
  w.Put<uint32_t>(static_cast<uint32_t>(std::min<uint64_t>(r.header_offset, kZipMax32)));
  w.Put(r.name);
  PutZip64Extra(r, r.size, w);
}

}  // namespace

uint64_t DescriptorBytes(const Record& record) {
  if (record.size == 0) return 0;
  return IsZip64(record) ? 24 : 16;
}

Layout PlanRecords(std::vector<Record> records) {
  Layout layout;
  layout.records = std::move(records);
  uint64_t at = 0;
  uint64_t directory_bytes = 0;
  for (Record& r : layout.records) {
    r.header_offset = at;
    uint64_t unpadded = at + kZipHeaderBytes + r.name.size() + Zip64ExtraBytes(r) + 4;
    r.payload_offset = (unpadded + kAlignment - 1) / kAlignment * kAlignment;
    at = r.payload_offset + r.size + DescriptorBytes(r);
    directory_bytes += kZipEntryBytes + r.name.size() + Zip64ExtraBytes(r);
  }
  layout.directory_offset = at;
  layout.file_bytes = at + directory_bytes + kZipEnd64Bytes + kZipLocatorBytes + kZipEndBytes;
  return layout;
}

void WriteHeader(const Record& r, uint8_t* image) {
  Writer w(image + r.header_offset);
  const uint64_t unpadded =
      r.header_offset + kZipHeaderBytes + r.name.size() + Zip64ExtraBytes(r) + 4;
  const uint64_t padding = r.payload_offset - unpadded;
  w.Put<uint32_t>(0x04034b50);
  w.Put<uint16_t>(0);  // version needed
  w.Put<uint16_t>(Flags(r));
  w.Put<uint16_t>(0);  // stored
  w.Put<uint32_t>(0);  // time and date
  w.Put<uint32_t>(0);  // CRC: in the descriptor
  w.Put<uint32_t>(0);  // compressed size
  w.Put<uint32_t>(0);  // size
  w.Put<uint16_t>(static_cast<uint16_t>(r.name.size()));
  w.Put<uint16_t>(static_cast<uint16_t>(Zip64ExtraBytes(r) + 4 + padding));
  w.Put(r.name);
  PutZip64Extra(r, 0, w);
  w.Put(std::string_view("FB"));
  w.Put<uint16_t>(static_cast<uint16_t>(padding));
  w.Fill('Z', padding);
}

void WriteDescriptor(const Record& r, uint32_t crc, uint8_t* image) {
  if (r.size == 0) return;
  Writer w(image + r.payload_offset + r.size);
  w.Put<uint32_t>(0x08074b50);
  w.Put<uint32_t>(crc);
  if (IsZip64(r)) {
    w.Put<uint64_t>(r.size);
    w.Put<uint64_t>(r.size);
  } else {
    w.Put<uint32_t>(static_cast<uint32_t>(r.size));
    w.Put<uint32_t>(static_cast<uint32_t>(r.size));
  }
}

void WriteDirectory(const Layout& layout, const std::vector<uint32_t>& crcs, uint8_t* image) {
  const uint64_t count = layout.records.size();
  const uint64_t end_offset = layout.file_bytes - kZipEnd64Bytes - kZipLocatorBytes - kZipEndBytes;
  const uint64_t directory_bytes = end_offset - layout.directory_offset;
  Writer w(image + layout.directory_offset);
  for (size_t i = 0; i < count; ++i) PutDirectoryEntry(layout.records[i], crcs[i], w);

  w.Put<uint32_t>(0x06064b50);  // zip64 end of central directory
  w.Put<uint64_t>(kZipEnd64Bytes - 12);
  w.Put<uint16_t>(0x031E);  // made by
  w.Put<uint16_t>(0x002D);  // version needed
  w.Put<uint32_t>(0);       // this disk
  w.Put<uint32_t>(0);       // the directory's disk
  w.Put<uint64_t>(count);
  w.Put<uint64_t>(count);
  w.Put<uint64_t>(directory_bytes);
  w.Put<uint64_t>(layout.directory_offset);

  w.Put<uint32_t>(0x07064b50);  // its locator
  w.Put<uint32_t>(0);
  w.Put<uint64_t>(end_offset);
  w.Put<uint32_t>(1);  // disks

  w.Put<uint32_t>(0x06054b50);  // end of central directory
  w.Put<uint16_t>(0);
  w.Put<uint16_t>(0);
  w.Put<uint16_t>(static_cast<uint16_t>(std::min<uint64_t>(count, kZipMax16)));
  w.Put<uint16_t>(static_cast<uint16_t>(std::min<uint64_t>(count, kZipMax16)));
  w.Put<uint32_t>(static_cast<uint32_t>(std::min<uint64_t>(directory_bytes, kZipMax32)));
  w.Put<uint32_t>(static_cast<uint32_t>(std::min<uint64_t>(layout.directory_offset, kZipMax32)));
  w.Put<uint16_t>(0);  // comment
}

}  // namespace ckptd::torch_zip
