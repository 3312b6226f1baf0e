#include "server/persist/piece_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "proto/status/status_macros.h"
#include "tests/server/persist/persist_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;

constexpr uint64_t kPiece = 4096;

// Writes as it is told, the last one that was begun first.
class ScriptedMemory : public RegisteredMemory {
 public:
  explicit ScriptedMemory(size_t size) : RegisteredMemory(size) {}
  int Begin(int /*fd*/, uint64_t offset, size_t length) override {
    if (offset == refused_) return -EIO;
    in_flight_.push_back({offset, offset == failing_ ? result_ : static_cast<ssize_t>(length)});
    most_ = std::max(most_, in_flight_.size());
    return 0;
  }
  Ended End() override {
    const Ended ended = in_flight_.back();
    in_flight_.pop_back();
    ends_.push_back(ended.offset / kPiece);
    return ended;
  }

  static constexpr uint64_t kNone = UINT64_MAX;
  uint64_t refused_ = kNone;
  uint64_t failing_ = kNone;
  ssize_t result_ = 0;
  std::vector<Ended> in_flight_;
  size_t most_ = 0;
  std::vector<uint64_t> ends_;
};

class PieceWriterTest : public PersistFixture {
 protected:
  PieceWriterTest() : PersistFixture(TempDir::Place::kMemory) { source_.registered = &memory_; }

  absl::Status WriteAll() {
    FileDescriptor file(posix_.get(), open(target_.path.c_str(), O_CREAT | O_WRONLY, 0600));
    PieceWriter writer(posix_.get(), file.get(), /*direct=*/true, source_, &control_, object_);
    for (uint64_t offset = 0; offset < source_.size; offset += kPiece) {
      CKPTD_RETURN_IF_ERROR(
          writer.Write(offset, std::min<uint64_t>(kPiece, source_.size - offset)));
    }
    return writer.Finish();
  }

  const std::string content_ = Content(6 * kPiece + 100, 1);
  PageAligned image_{content_};
  PersistSource source_ = image_.Source();
  PersistControl control_;
  ScriptedMemory memory_{image_.capacity()};
  const std::string object_ = "checkpoint x";
};

TEST_F(PieceWriterTest, BeginsOneWhileOthersAreInFlight) {
  ASSERT_OK(WriteAll());
  EXPECT_EQ(memory_.most_, RegisteredMemory::kInFlight);
  EXPECT_THAT(memory_.ends_, ElementsAre(3, 4, 5, 6, 2, 1, 0));
  EXPECT_EQ(control_.written, content_.size());
}

TEST_F(PieceWriterTest, WaitsForWhatIsInFlightWhereItFails) {
  memory_.failing_ = 3 * kPiece;
  memory_.result_ = -ENOSPC;
  EXPECT_THAT(WriteAll(), IsError(StatusCode::kResourceExhausted, "STORAGE_FULL"));
  EXPECT_THAT(memory_.ends_, ElementsAre(3, 2, 1, 0)) << "those are waited for, and no fifth";
}

// From where it could not be begun, or was not all written, on.
TEST_F(PieceWriterTest, WritesTheRestAsEver) {
  for (const ssize_t result : {ssize_t{-EIO}, ssize_t{-EINVAL}, ssize_t{0}, ssize_t{512}}) {
    memory_.failing_ = 3 * kPiece;
    memory_.result_ = result;
    memory_.ends_.clear();
    control_.written = 0;
    ASSERT_OK(WriteAll());
    EXPECT_THAT(memory_.ends_, ElementsAre(3, 2, 1, 0)) << result;
    EXPECT_EQ(control_.written, content_.size());
    const std::string file = ReadFile(target_.path);
    for (const uint64_t piece : {3, 4, 5}) {
      EXPECT_TRUE(file.substr(piece * kPiece, kPiece) == content_.substr(piece * kPiece, kPiece));
    }
  }
  memory_.failing_ = ScriptedMemory::kNone;
  memory_.refused_ = 5 * kPiece;
  memory_.ends_.clear();
  ASSERT_OK(WriteAll());
  EXPECT_THAT(memory_.ends_, ElementsAre(3, 4, 2, 1, 0));
}

}  // namespace
}  // namespace ckptd
