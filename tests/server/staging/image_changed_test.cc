// Clients that change the length of an image, or give its pages away: it is not used again, and the
// daemon lives.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "server/os/memory_guard.h"
#include "tests/server/staging/pool_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::IsEmpty;

struct Deed {
  const char* name;
  // What the client does to an image of 4 MiB; 0 or -1.
  std::function<int(int fd)> act;
  bool cuts;
};

void PrintTo(const Deed& deed, std::ostream* out) { *out << deed.name; }

class ImageChangedTest : public PoolTest, public testing::WithParamInterface<Deed> {
 protected:
  void SetUp() override {
    ASSERT_OK(InstallMemoryGuard());
    MakePool(16 * kMiB);
  }
  // As a client does that has opened the image by its path.
  FileDescriptor OpenAsClient(const Image& image) {
    return {posix_.get(), posix_->Open(image.path(), O_RDWR, 0)};
  }
};

std::vector<Deed> Deeds() {
  return {
      {"CutsToNothing", [](int fd) { return ftruncate(fd, 0); }, true},
      {"CutsToHalf", [](int fd) { return ftruncate(fd, 2 << 20); }, true},
      {"CutsTheLastByte", [](int fd) { return ftruncate(fd, (4 << 20) - 1); }, true},
      {"Grows", [](int fd) { return ftruncate(fd, 5 << 20); }, false},
      {"CutsAndGrowsAgain",
       [](int fd) { return ftruncate(fd, 0) == 0 ? ftruncate(fd, 4 << 20) : -1; }, false},
      {"PunchesAHole",
       [](int fd) {
         return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 4096);
       },
       false},
  };
}

INSTANTIATE_TEST_SUITE_P(Deeds, ImageChangedTest, testing::ValuesIn(Deeds()),
                         [](const auto& deed) { return deed.param.name; });

TEST_P(ImageChangedTest, WhileInUseItIsNoticedAndTheImageIsGivenBack) {
  auto image = Acquire(4 * kMiB);
  const FileDescriptor client = OpenAsClient(*image);
  EXPECT_TRUE(image->IsUncut());
  EXPECT_TRUE(image->IsWhole());
  ASSERT_EQ(GetParam().act(client.get()), 0);
  EXPECT_EQ(image->IsUncut(), !GetParam().cuts);
  EXPECT_FALSE(image->IsWhole());
  EXPECT_THAT(image->Park(), IsError(StatusCode::kFailedPrecondition, "IMAGE_CHANGED"));
  pool_->Release(std::move(image));
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_THAT(FreeNames(), IsEmpty());
}

TEST_P(ImageChangedTest, WhileFreeItIsNotHandedToTheNext) {
  auto image = Acquire(4 * kMiB);
  const uint64_t id = image->id();
  const FileDescriptor client = OpenAsClient(*image);
  pool_->Release(std::move(image));
  ASSERT_EQ(GetParam().act(client.get()), 0);
  image = Acquire(4 * kMiB);
  EXPECT_NE(image->id(), id);
  EXPECT_TRUE(image->IsWhole());
  std::memset(image->data(), 'x', 4 * kMiB);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 4 * kMiB);
  EXPECT_THAT(FreeNames(), IsEmpty());
  pool_->Release(std::move(image));
}

TEST_P(ImageChangedTest, EveryByteCanStillBeTouched) {
  auto image = Acquire(4 * kMiB);
  const FileDescriptor client = OpenAsClient(*image);
  ASSERT_EQ(GetParam().act(client.get()), 0);
  std::memset(image->data(), 'x', image->size());
  EXPECT_EQ(image->IsUncut(), !GetParam().cuts);
  // Grown again, it does not become whole: its memory and the file are no longer the same.
  if (GetParam().cuts && ftruncate(client.get(), 4 << 20) == 0) {
    const bool lost_pages = std::string(GetParam().name) != "CutsTheLastByte";
    EXPECT_EQ(image->IsUncut(), !lost_pages);
    EXPECT_EQ(image->IsWhole(), !lost_pages);
  }
  pool_->Discard(std::move(image));
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
}

// The mapping moves, and the guard with it.
TEST_F(ImageChangedTest, AnImageThatWasResizedIsGuardedToItsNewEnd) {
  for (const uint64_t size : {5 * kMiB, 3 * kMiB}) {
    pool_->Release(Acquire(4 * kMiB));
    auto image = Acquire(size);
    const FileDescriptor client = OpenAsClient(*image);
    ASSERT_EQ(ftruncate(client.get(), 0), 0);
    std::memset(image->data(), 'x', size);
    EXPECT_FALSE(image->IsUncut());
    pool_->Release(std::move(image));
    EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
  }
}

TEST_F(ImageChangedTest, WhereTheLengthCannotBeAskedTheImageIsNotUsedAgain) {
  auto image = Acquire(kMiB);
  fs_.FailAll(FsOp::kStat, EIO);
  EXPECT_TRUE(image->IsUncut()) << "nothing says that it was cut";
  EXPECT_FALSE(image->IsWhole());
  pool_->Release(std::move(image));
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
}

}  // namespace
}  // namespace ckptd
