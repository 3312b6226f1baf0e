#include "plugins/torch/zip_layout.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/server/testing/temp_dir.h"

namespace ckptd::torch_zip {
namespace {

constexpr uint64_t kMax32 = 0xFFFFFFFF;

// Address space for an image of any size: only the pages that are touched take memory.
class SparseImage {
 public:
  explicit SparseImage(uint64_t size) : size_(size) {
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(data, MAP_FAILED);
    data_ = static_cast<uint8_t*>(data);
  }
  ~SparseImage() { munmap(data_, size_); }
  SparseImage(const SparseImage&) = delete;
  SparseImage& operator=(const SparseImage&) = delete;

  uint8_t* data() { return data_; }
  std::string Bytes(uint64_t from, uint64_t to) const { return {data_ + from, data_ + to}; }

 private:
  const uint64_t size_;
  uint8_t* data_ = nullptr;
};

template <typename T>
T Number(const std::string& bytes, size_t offset) {
  T value;
  EXPECT_LE(offset + sizeof(value), bytes.size());
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

// What the central directory of a golden file says of its records.
struct Entry {
  std::string name;
  uint32_t size = 0;
  uint32_t crc = 0;
};

std::vector<Entry> ReadDirectory(const std::string& file) {
  std::vector<Entry> entries;
  size_t at = file.find("PK\x01\x02");
  while (at != std::string::npos && file.compare(at, 4, "PK\x01\x02") == 0) {
    const auto name_bytes = Number<uint16_t>(file, at + 28);
    entries.push_back({file.substr(at + 46, name_bytes), Number<uint32_t>(file, at + 24),
                       Number<uint32_t>(file, at + 16)});
    at += 46u + name_bytes + Number<uint16_t>(file, at + 30);
  }
  return entries;
}

Record Make(const std::string& name, uint64_t size) {
  Record record;
  record.name = name;
  record.size = size;
  return record;
}

// The bytes behind zip64_without_payload.pt, from its own sizes: each header that 2^32 bytes before
// it change is compared with the one that torch wrote.
TEST(ZipLayoutTest, HeadersBeyondFourGigabytesEqualThoseOfTorch) {
  constexpr uint64_t kLarge = uint64_t{1} << 32;
  const std::string golden = ReadFile(CKPTD_TESTDATA "/zip64_without_payload.pt");
  const std::vector<Entry> entries = ReadDirectory(golden);
  ASSERT_EQ(entries.size(), 9u);
  std::vector<Record> records;
  std::vector<uint32_t> crcs;
  for (const Entry& entry : entries) {
    records.push_back(Make(entry.name, entry.size == kMax32 ? kLarge : entry.size));
    crcs.push_back(entry.crc);
  }
  const Layout layout = PlanRecords(records);
  ASSERT_EQ(layout.file_bytes, golden.size() + kLarge);

  SparseImage image(layout.file_bytes);
  const uint64_t hole = layout.records[4].payload_offset;
  for (size_t i = 0; i < layout.records.size(); ++i) {
    const Record& record = layout.records[i];
    WriteHeader(record, image.data());
    WriteDescriptor(record, crcs[i], image.data());
    if (record.size == kLarge || record.size == 0) continue;
    const uint64_t golden_at = record.payload_offset - (record.payload_offset > hole ? kLarge : 0);
    std::memcpy(image.data() + record.payload_offset, golden.data() + golden_at, record.size);
  }
  WriteDirectory(layout, crcs, image.data());
  EXPECT_EQ(image.Bytes(0, hole), golden.substr(0, hole));
  EXPECT_EQ(image.Bytes(hole + kLarge, layout.file_bytes), golden.substr(hole));
}

// The rules of PyTorch's miniz for one record, from its header's offset and its size alone.
uint64_t ExpectedPayload(uint64_t header, const std::string& name, uint64_t size) {
  uint64_t zip64 = 0;
  if (size >= kMax32 || header >= kMax32) {
    zip64 = 4u + (size >= kMax32 ? 16u : 0u) + (header >= kMax32 ? 8u : 0u);
  }
  const uint64_t start = header + 30 + name.size() + 4 + zip64;
  return start + (64 - start % 64) % 64;
}

uint64_t ExpectedDescriptor(uint64_t header, uint64_t size) {
  if (size == 0) return 0;
  return size >= kMax32 || header >= kMax32 ? 24 : 16;
}

class ZipLayoutSizes : public testing::TestWithParam<std::vector<uint64_t>> {};

TEST_P(ZipLayoutSizes, FollowTheRules) {
  std::vector<Record> records;
  for (uint64_t size : GetParam()) {
    records.push_back(Make("archive/data/" + std::to_string(records.size()), size));
  }
  const Layout layout = PlanRecords(records);
  uint64_t at = 0;
  uint64_t directory = 0;
  for (const Record& r : layout.records) {
    SCOPED_TRACE(r.name);
    EXPECT_EQ(r.header_offset, at);
    EXPECT_EQ(r.payload_offset, ExpectedPayload(at, r.name, r.size));
    EXPECT_EQ(r.payload_offset % 64, 0u);
    EXPECT_EQ(DescriptorBytes(r), ExpectedDescriptor(at, r.size));
    directory += 46 + r.name.size();
    if (r.size >= kMax32 || at >= kMax32) {
      directory += 4u + (r.size >= kMax32 ? 16u : 0u) + (at >= kMax32 ? 8u : 0u);
    }
    at = r.payload_offset + r.size + ExpectedDescriptor(at, r.size);
  }
  EXPECT_EQ(layout.directory_offset, at);
  EXPECT_EQ(layout.file_bytes, at + directory + 56 + 20 + 22);
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, ZipLayoutSizes,
    testing::Values(std::vector<uint64_t>{}, std::vector<uint64_t>{0},
                    std::vector<uint64_t>{0, 0, 1, 63, 64, 65, 0},
                    std::vector<uint64_t>{kMax32 - 1, 7}, std::vector<uint64_t>{kMax32, 7},
                    std::vector<uint64_t>{kMax32 + 1, 7, 0},
                    std::vector<uint64_t>{uint64_t{1} << 40, kMax32, 0, 3},
                    // 16 bytes of descriptor and 64 of header and padding before the second header.
                    std::vector<uint64_t>{kMax32 - 1 - 80, 7, 0},
                    std::vector<uint64_t>{kMax32 - 80, 7, 0},
                    std::vector<uint64_t>{kMax32 - 79, 7, 0}));

TEST(ZipLayoutTest, HeaderAtTheLimitNeedsZip64AndOneBeforeDoesNot) {
  const std::string name = "archive/data/0";
  for (const uint64_t header : {kMax32 - 1, kMax32}) {
    // A header of 48 bytes, padded to 64, and a descriptor of 16 surround the payload before it.
    const Layout layout = PlanRecords({Make(name, header - 80), Make(name, 4)});
    ASSERT_EQ(layout.records[1].header_offset, header);
    EXPECT_EQ(DescriptorBytes(layout.records[1]), header == kMax32 ? 24u : 16u);
  }
}

TEST(ZipLayoutTest, CountsAboveTheOldLimitAreCapped) {
  constexpr size_t kCount = 70000;
  std::vector<Record> records;
  for (size_t i = 0; i < kCount; ++i) records.push_back(Make("a/" + std::to_string(i), 0));
  const Layout layout = PlanRecords(records);
  SparseImage image(layout.file_bytes);
  WriteDirectory(layout, std::vector<uint32_t>(kCount, 0), image.data());
  const std::string end = image.Bytes(layout.file_bytes - 98, layout.file_bytes);
  EXPECT_EQ(Number<uint32_t>(end, 0), 0x06064b50u);
  EXPECT_EQ(Number<uint64_t>(end, 24), kCount);
  EXPECT_EQ(Number<uint64_t>(end, 32), kCount);
  EXPECT_EQ(Number<uint32_t>(end, 76), 0x06054b50u);
  EXPECT_EQ(Number<uint16_t>(end, 84), 0xFFFFu);
  EXPECT_EQ(Number<uint16_t>(end, 86), 0xFFFFu);
}

}  // namespace
}  // namespace ckptd::torch_zip
