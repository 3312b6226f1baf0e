#include "client/cpp/core/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using ::testing::UnorderedElementsAre;

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr uint64_t kHeader = 30;
constexpr uint64_t kEntry = 46;

template <typename T>
void Put(std::string* bytes, size_t at, T value) {
  std::memcpy(bytes->data() + at, &value, sizeof(value));
}

uint32_t Crc(const std::string& data) {
  return crc32_gzip_refl(0, reinterpret_cast<const unsigned char*>(data.data()), data.size());
}

// A record as it lies in the file; `stored` where that is not `data` itself.
struct Record {
  std::string name;
  std::string data;
  std::string stored = {};
  uint64_t offset = 0;  // Of its header; behind the record before if 0.
};

// A torch file, with what it takes to damage it at a certain place. Gaps are not held in memory.
struct Zip {
  std::map<uint64_t, std::string> pieces;  // By offset.
  std::vector<uint64_t> headers;
  std::vector<uint64_t> payloads;
  std::vector<uint64_t> entries;
  uint64_t directory = 0;
  uint64_t end64 = 0;
  uint64_t size = 0;

  // Where there is one piece.
  std::string& bytes() { return pieces.begin()->second; }
};

Zip Make(const std::vector<Record>& records) {
  Zip zip;
  std::string directory;
  uint64_t at = 0;
  for (const Record& r : records) {
    const std::string& stored = r.stored.empty() ? r.data : r.stored;
    const uint16_t method = r.stored.empty() ? 0 : 8;
    const uint64_t offset = r.offset == 0 ? at : r.offset;
    std::string header("PK\3\4\0\0\x08\x08", 8);
    header.resize(kHeader);
    Put<uint16_t>(&header, 8, method);
    Put<uint16_t>(&header, 26, static_cast<uint16_t>(r.name.size()));
    Put<uint16_t>(&header, 28, 7);
    header += r.name + std::string("FB\3\0ZZZ", 7);
    if (offset != at || zip.pieces.empty()) zip.pieces[offset];
    zip.pieces.rbegin()->second += header + stored;
    zip.headers.push_back(offset);
    zip.payloads.push_back(offset + header.size());
    at = offset + header.size() + stored.size();

    std::string entry("PK\1\2\0\0\0\0\x08\x08", 10);
    entry.resize(kEntry);
    Put<uint16_t>(&entry, 10, method);
    Put<uint32_t>(&entry, 16, Crc(r.data));
    for (size_t field : {20, 24, 42}) Put<uint32_t>(&entry, field, 0xFFFFFFFF);
    Put<uint16_t>(&entry, 28, static_cast<uint16_t>(r.name.size()));
    Put<uint16_t>(&entry, 30, 28);
    std::string extra("\1\0\x18\0", 4);
    extra.resize(28);
    Put<uint64_t>(&extra, 4, r.data.size());
    Put<uint64_t>(&extra, 12, stored.size());
    Put<uint64_t>(&extra, 20, offset);
    zip.entries.push_back(directory.size());
    directory += entry + r.name + extra;
  }
  zip.directory = at;
  for (uint64_t& entry : zip.entries) entry += at;
  zip.end64 = at + directory.size();
  std::string end("PK\6\6\x2c", 5);
  end.resize(56 + 20 + 22);
  Put<uint64_t>(&end, 24, records.size());
  Put<uint64_t>(&end, 32, records.size());
  Put<uint64_t>(&end, 40, directory.size());
  Put<uint64_t>(&end, 48, at);
  std::memcpy(end.data() + 56, "PK\6\7", 4);
  Put<uint64_t>(&end, 56 + 8, zip.end64);
  Put<uint32_t>(&end, 56 + 16, 1);
  std::memcpy(end.data() + 76, "PK\5\6", 4);
  Put<uint16_t>(&end, 76 + 8, 0xFFFF);
  Put<uint16_t>(&end, 76 + 10, 0xFFFF);
  Put<uint32_t>(&end, 76 + 12, 0xFFFFFFFF);
  Put<uint32_t>(&end, 76 + 16, 0xFFFFFFFF);
  zip.pieces.rbegin()->second += directory + end;
  zip.size = zip.end64 + end.size();
  return zip;
}

Zip Small() { return Make({{"a/data.pkl", "pickle"}, {"a/data/0", "0123456789abcdefg"}}); }

// Gaps read as zeros.
absl::StatusOr<VerifiedCheckpoint> Verify(const Zip& zip) {
  return VerifyBytes("x.pt", zip.size, [&](uint64_t offset, void* to, size_t length) {
    EXPECT_LE(offset, zip.size);
    EXPECT_LE(length, zip.size - offset);
    std::memset(to, 0, length);
    for (const auto& [start, bytes] : zip.pieces) {
      const uint64_t begin = std::max(start, offset);
      const uint64_t end = std::min(start + bytes.size(), offset + length);
      if (begin < end) {
        std::memcpy(static_cast<char*>(to) + (begin - offset), bytes.data() + (begin - start),
                    end - begin);
      }
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<VerifiedCheckpoint> Verify(const std::string& bytes) {
  Zip zip;
  zip.pieces[0] = bytes;
  zip.size = bytes.size();
  return Verify(zip);
}

TEST(Verify, FindsWholeFilesWhole) {
  ASSERT_OK_AND_ASSIGN(const VerifiedCheckpoint found, Verify(Small()));
  EXPECT_EQ(found.record_count, 2u);
  EXPECT_EQ(found.size_bytes, Small().size);
  ASSERT_OK_AND_ASSIGN(const CheckpointFile golden,
                       CheckpointFile::Open(CKPTD_TESTDATA "/small.pt"));
  ASSERT_OK_AND_ASSIGN(const VerifiedCheckpoint as_torch_writes, VerifyCheckpoint(golden));
  EXPECT_EQ(as_torch_writes.record_count, 9u);
}

TEST(Verify, FindsEveryFlippedBitThatAReaderLooksAt) {
  const Zip zip = Small();
  std::vector<bool> ignored(zip.size);
  auto ignore = [&](uint64_t from, size_t count) {
    std::fill_n(ignored.begin() + static_cast<ptrdiff_t>(from), count, true);
  };
  for (size_t i = 0; i < zip.headers.size(); ++i) {
    ignore(zip.headers[i] + 4, 2);   // version
    ignore(zip.headers[i] + 10, 4);  // time
    ignore(zip.payloads[i] - 7, 7);  // padding
    ignore(zip.entries[i] + 4, 4);   // versions
    ignore(zip.entries[i] + 12, 4);  // time
    ignore(zip.entries[i] + 36, 6);  // attributes, but for the bit below
  }
  ignore(zip.end64 + 12, 4);  // versions
  for (uint64_t at = 0; at < zip.size; ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      Zip damaged = zip;
      damaged.bytes()[at] = static_cast<char>(damaged.bytes()[at] ^ (1 << bit));
      const absl::Status status = Verify(damaged).status();
      const bool folder = bit == 4 && (at == zip.entries[0] + 38 || at == zip.entries[1] + 38);
      if (ignored[at] && !folder) {
        EXPECT_OK(status) << "byte " << at << " bit " << bit;
      } else {
        EXPECT_THAT(status, IsError(kDataLoss, "CORRUPT_CHECKPOINT"))
            << "byte " << at << "," << bit;
      }
    }
  }
}

TEST(Verify, FindsEveryTruncation) {
  Zip zip = Small();
  for (size_t length = 0; length < zip.size; ++length) {
    EXPECT_THAT(Verify(zip.bytes().substr(0, length)), IsError(kDataLoss, "CORRUPT_CHECKPOINT"))
        << length;
  }
  EXPECT_THAT(Verify(zip.bytes() + "xy"), Says("2 bytes follow the end record"));
  EXPECT_THAT(Verify(std::string(5, '\0')), Says("begins with zeros"));
}

TEST(Verify, TellsRecordAndOffset) {
  Zip zip = Small();
  zip.bytes()[zip.payloads[1] + 3] ^= 1;
  const absl::Status status = Verify(zip).status();
  EXPECT_THAT(status, Says("x.pt: is corrupt at byte "));
  EXPECT_THAT(status, Says("CRC-32 of its 17 bytes is"));
  EXPECT_THAT(MetadataOf(status),
              UnorderedElementsAre(std::pair("offset", absl::StrCat(zip.headers[1])),
                                   std::pair("record", "a/data/0")));
}

// A number in the file, and what it is to lie.
struct Lie {
  const char* name;
  uint64_t (*place)(const Zip& zip);
  uint64_t value;
  size_t bytes;
};

void PrintTo(const Lie& lie, std::ostream* out) { *out << lie.name; }

class VerifyLies : public testing::TestWithParam<Lie> {};

TEST_P(VerifyLies, AreFound) {
  Zip zip = Small();
  std::memcpy(zip.bytes().data() + GetParam().place(zip), &GetParam().value, GetParam().bytes);
  EXPECT_THAT(Verify(zip), IsError(kDataLoss, "CORRUPT_CHECKPOINT"));
}

constexpr uint64_t kHuge = ~uint64_t{0};

INSTANTIATE_TEST_SUITE_P(
    Numbers, VerifyLies,
    testing::Values(
        Lie{"CountTooLarge", [](const Zip& z) { return z.end64 + 32; }, 3, 8},
        Lie{"CountHuge", [](const Zip& z) { return z.end64 + 32; }, kHuge, 8},
        Lie{"DirectorySizeHuge", [](const Zip& z) { return z.end64 + 40; }, kHuge - 8, 8},
        Lie{"DirectoryOffsetHuge", [](const Zip& z) { return z.end64 + 48; }, kHuge - 8, 8},
        Lie{"End64Huge", [](const Zip& z) { return z.end64 + 56 + 8; }, kHuge - 8, 8},
        Lie{"End64Zero", [](const Zip& z) { return z.end64 + 56 + 8; }, 0, 8},
        Lie{"End64Length", [](const Zip& z) { return z.end64 + 4; }, kHuge - 11, 8},
        Lie{"PlainCount", [](const Zip& z) { return z.end64 + 76 + 8; }, 0x00030003, 4},
        Lie{"PlainSize", [](const Zip& z) { return z.end64 + 76 + 12; }, 1, 4},
        Lie{"RecordSizeHuge", [](const Zip& z) { return z.entries[1] + kEntry + 8 + 4; }, kHuge, 8},
        Lie{"StoredHuge", [](const Zip& z) { return z.entries[1] + kEntry + 8 + 12; }, kHuge, 8},
        Lie{"OffsetHuge", [](const Zip& z) { return z.entries[1] + kEntry + 8 + 20; }, kHuge, 8},
        Lie{"OffsetOfAnother", [](const Zip& z) { return z.entries[1] + kEntry + 8 + 20; }, 0, 8},
        Lie{"NameHuge", [](const Zip& z) { return z.entries[1] + 28; }, 0xFFFF, 2},
        Lie{"EntryNameEmpty", [](const Zip& z) { return z.entries[1] + 28; }, 0, 2},
        Lie{"CommentHuge", [](const Zip& z) { return z.entries[1] + 32; }, 0xFFFF, 2},
        Lie{"Zip64Short", [](const Zip& z) { return z.entries[1] + kEntry + 8 + 2; }, 16, 2},
        Lie{"Zip64Long", [](const Zip& z) { return z.entries[1] + kEntry + 8 + 2; }, 0xFFFF, 2},
        Lie{"Zip64Absent", [](const Zip& z) { return z.entries[1] + kEntry + 8; }, 2, 2},
        Lie{"HeaderNameHuge", [](const Zip& z) { return z.headers[1] + 26; }, 0xFFFF, 2},
        Lie{"HeaderExtraHuge", [](const Zip& z) { return z.headers[1] + 28; }, 0xFFFF, 2},
        Lie{"PayloadMoved", [](const Zip& z) { return z.headers[1] + 28; }, 6, 2},
        Lie{"HeaderSize", [](const Zip& z) { return z.headers[1] + 22; }, 15, 4}),
    [](const auto& info) { return info.param.name; });

TEST(Verify, FindsTwoEntriesOfOneName) {
  EXPECT_THAT(Verify(Make({{"a/x", "1"}, {"a/x", "1"}})), Says("two entries of this name"));
}

TEST(Verify, FindsRecordsThatOverlap) {
  Zip inner = Make({{"a/in", "in"}});
  const std::string nested = inner.bytes().substr(0, inner.directory);
  Zip zip = Make({{"a/data.pkl", "p"}, {"a/out", "...." + nested}, {"a/in", "in"}});
  ASSERT_OK(Verify(zip));
  Put<uint64_t>(&zip.bytes(), zip.entries[2] + kEntry + 4 + 20, zip.payloads[1] + 4);
  EXPECT_THAT(Verify(zip), Says("reach into what follows"));
}

TEST(Verify, ReadsNumbersOf64Bits) {
  const uint64_t far = uint64_t{1} << 40;
  const std::vector<Record> records = {{"a/data.pkl", "p"}, {"a/data/0", "xyz", "", far}};
  Zip zip = Make(records);
  ASSERT_OK(Verify(zip));
  zip.pieces[far].at(kHeader + 8 + 7) ^= 1;
  EXPECT_THAT(Verify(zip), Says(absl::StrCat("at byte ", far, ", record 'a/data/0': CRC-32")));
  zip = Make(records);
  Put<uint64_t>(&zip.pieces[far], zip.entries[0] - far + kEntry + 10 + 4, far);
  Put<uint64_t>(&zip.pieces[far], zip.entries[0] - far + kEntry + 10 + 12, far);
  EXPECT_THAT(Verify(zip), Says("reach into what follows"));
}

TEST(Verify, ReadsRecordsLargerThanItsWindow) {
  std::string data(3'000'001, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 31 + i / 251);
  Zip zip = Make({{"a/data.pkl", "p"}, {"a/data/0", data}, {"a/data/1", data}});
  ASSERT_OK(Verify(zip));
  zip.bytes()[zip.directory - 1] ^= 1;
  EXPECT_THAT(Verify(zip), Says("record 'a/data/1': CRC-32 of its 3000001 bytes"));
}

std::string Deflate(std::string data) {
  std::string out(data.size() + 1000, '\0');
  isal_zstream stream = {};
  isal_deflate_stateless_init(&stream);
  stream.end_of_stream = 1;
  stream.next_in = reinterpret_cast<uint8_t*>(data.data());
  stream.avail_in = static_cast<uint32_t>(data.size());
  stream.next_out = reinterpret_cast<uint8_t*>(out.data());
  stream.avail_out = static_cast<uint32_t>(out.size());
  EXPECT_EQ(isal_deflate_stateless(&stream), COMP_OK);
  out.resize(stream.total_out);
  return out;
}

TEST(Verify, InflatesDeflatedRecords) {
  std::mt19937 random(7);
  std::string data(3'000'000, 'x');
  for (size_t i = 0; i < data.size(); i += 2) data[i] = static_cast<char>(random());
  const std::string zeros(5'000'000, '\0');
  const Zip zip = Make({{"a/data.pkl", "p"},
                        {"a/data/0", data, Deflate(data)},
                        {"a/data/1", zeros, Deflate(zeros)},
                        {"a/data/2", "short", Deflate("short")}});
  ASSERT_OK(Verify(zip));
  for (uint64_t at = zip.payloads[1]; at < zip.directory; at += 99'991) {
    Zip damaged = zip;
    damaged.bytes()[at] ^= 4;
    EXPECT_THAT(Verify(damaged), IsError(kDataLoss, "CORRUPT_CHECKPOINT")) << at;
  }
  Zip bomb = zip;
  Put<uint64_t>(&bomb.bytes(), bomb.entries[2] + kEntry + 8 + 4, 10);
  EXPECT_THAT(Verify(bomb), Says("does not inflate to 10 bytes"));
  EXPECT_THAT(Verify(Make({{"a/x", data, Deflate(data) + "more"}})), Says("does not inflate"));
  EXPECT_THAT(Verify(Make({{"a/x", data, Deflate(data).substr(0, 1000)}})),
              Says("does not inflate"));
}

TEST(Verify, SaysWhatCannotBeVerified) {
  constexpr auto kFailed = absl::StatusCode::kFailedPrecondition;
  EXPECT_THAT(Verify("\x80\2no zip"), IsError(kFailed, "NOT_VERIFIABLE"));
  Zip zip = Small();
  for (uint64_t entry : zip.entries) Put<uint32_t>(&zip.bytes(), entry + 16, 0);
  EXPECT_THAT(Verify(zip), IsError(kFailed, "NOT_VERIFIABLE"));
  zip.bytes()[0] = 'Q';
  EXPECT_THAT(Verify(zip), Says("ends as a zip file"));
}

TEST(Verify, PassesOnErrorsOfReading) {
  const absl::Status status = VerifyBytes("x", 1000, [](uint64_t, void*, size_t) {
                                return absl::UnavailableError("the network is down");
                              }).status();
  EXPECT_THAT(status, Says("the network is down"));
  EXPECT_TRUE(absl::IsUnavailable(status));
}

TEST(Verify, FindsFilesThatAreCutMeanwhile) {
  const TempDir dir;
  Zip zip = Small();
  WriteFile(dir / "x.pt", zip.bytes());
  ASSERT_OK_AND_ASSIGN(const CheckpointFile file, CheckpointFile::Open(dir / "x.pt"));
  ASSERT_OK(VerifyCheckpoint(file));
  ASSERT_EQ(truncate((dir / "x.pt").c_str(), 20), 0);
  EXPECT_THAT(VerifyCheckpoint(file), IsError(kDataLoss, "CORRUPT_CHECKPOINT"));
  EXPECT_THAT(VerifyCheckpoint(file), Says("was cut while it was read"));
}

TEST(Verify, GivesAnAnswerToAnyBytes) {
  std::mt19937 random(11);
  Zip small = Small();
  const std::string golden = ReadFile(CKPTD_TESTDATA "/zip64_without_payload.pt");
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = round % 3 == 0 ? golden : small.bytes();
    for (int changes = static_cast<int>(random() % 6); changes >= 0; --changes) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.replace(at, std::min<size_t>(8, bytes.size() - at), 8, '\xFF');
          break;
        case 2:
          bytes.erase(at, random() % 9);
          break;
        default:
          bytes.insert(at, bytes.substr(random() % bytes.size(), 60));
      }
      if (bytes.empty()) break;
    }
    const absl::Status status = Verify(bytes).status();
    EXPECT_TRUE(status.ok() || absl::IsDataLoss(status) || absl::IsFailedPrecondition(status))
        << status;
  }
}

}  // namespace
}  // namespace ckptd
