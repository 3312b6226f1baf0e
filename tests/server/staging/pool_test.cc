// Acquire, Release and Discard.

#include "server/staging/pool.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "absl/synchronization/notification.h"
#include "tests/server/staging/pool_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

struct stat StatOf(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(stat(path.c_str(), &info), 0) << path;
  return info;
}

TEST_F(PoolTest, HandsOutAFileOfExactlyTheSize) {
  MakePool(64 * kMiB);
  auto image = Acquire(5 * kMiB + 123);
  EXPECT_EQ(image->size(), 5 * kMiB + 123);
  EXPECT_EQ(image->capacity(), 5 * kMiB + 4096);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(image->data()) % 4096, 0u);
  const struct stat info = StatOf(image->path());
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), image->size());
  EXPECT_EQ(info.st_ino, image->inode());
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_GE(static_cast<uint64_t>(info.st_blocks) * 512, image->size()) << "is not faulted in";
  // What the daemon has mapped is what a client sees.
  std::memset(image->data(), 'x', image->size());
  EXPECT_EQ(ReadFile(image->path()), std::string(image->size(), 'x'));
  pool_->Release(std::move(image));
}

TEST_F(PoolTest, TrimGivesBackWhatIsFreeAndNothingElse) {
  MakePool(64 * kMiB);
  auto used = Acquire(5 * kMiB);
  pool_->Release(Acquire(3 * kMiB));
  EXPECT_EQ(pool_->Trim(), 3 * kMiB);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 5 * kMiB);
  EXPECT_THAT(FreeNames(), IsEmpty());
  std::memset(used->data(), 'x', used->size());
  EXPECT_EQ(ReadFile(used->path()), std::string(used->size(), 'x'));
  pool_->Release(std::move(used));
  EXPECT_EQ(pool_->Trim(), 5 * kMiB);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
  EXPECT_EQ(pool_->Trim(), 0u);
}

TEST_F(PoolTest, HasNamesOnlyForWhatIsLeased) {
  MakePool(64 * kMiB);
  EXPECT_THAT(dir_.List(), IsEmpty());
  auto image = Acquire(kMiB);
  EXPECT_EQ(Names().size(), 1u);
  EXPECT_EQ(dir_ / Names().front(), image->path());
  pool_->Release(std::move(image));
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_EQ(FreeNames().size(), 1u);
  image = Acquire(kMiB);
  EXPECT_EQ(Names().size(), 1u);
  EXPECT_THAT(FreeNames(), IsEmpty());
  pool_->Release(std::move(image));
  pool_.reset();
  EXPECT_THAT(dir_.List(), IsEmpty());
}

TEST_F(PoolTest, ReusesTheWarmImage) {
  MakePool(64 * kMiB);
  auto image = Acquire(8 * kMiB);
  const uint64_t id = image->id();
  const uint64_t inode = image->inode();
  pool_->Release(std::move(image));
  fs_.Reset();
  image = Acquire(8 * kMiB);
  EXPECT_EQ(image->id(), id);
  EXPECT_EQ(image->inode(), inode);
  EXPECT_EQ(fs_.Count(FsOp::kPopulate), 0);
  EXPECT_EQ(fs_.Count(FsOp::kMap), 0);
  EXPECT_EQ(fs_.Count(FsOp::kTruncate), 0);
  pool_->Release(std::move(image));
}

TEST_F(PoolTest, GrowsAndCutsAnImageAndFaultsInOnlyTheDifference) {
  MakePool(64 * kMiB);
  auto image = Acquire(8 * kMiB + 100);
  const uint64_t id = image->id();
  std::memset(image->data(), 0xFF, image->size());
  pool_->Release(std::move(image));

  fs_.Reset();
  image = Acquire(10 * kMiB + 5000);
  EXPECT_EQ(image->id(), id);
  EXPECT_EQ(static_cast<uint64_t>(StatOf(image->path()).st_size), 10 * kMiB + 5000);
  std::vector<FsCall> calls = fs_.Calls();
  calls.erase(std::remove_if(calls.begin(), calls.end(),
                             [](const FsCall& c) { return c.op != FsOp::kPopulate; }),
              calls.end());
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls.front().length, 2 * kMiB + 4096);
  EXPECT_EQ(image->data()[0], 0xFF);
  std::memset(image->data(), 0xFF, image->size());
  pool_->Release(std::move(image));

  fs_.Reset();
  image = Acquire(8 * kMiB + 1);
  EXPECT_EQ(image->id(), id);
  EXPECT_EQ(fs_.Count(FsOp::kPopulate), 0);
  EXPECT_EQ(static_cast<uint64_t>(StatOf(image->path()).st_size), 8 * kMiB + 1);
  EXPECT_EQ(image->data()[8 * kMiB], 0xFF);
  EXPECT_TRUE(std::all_of(image->data() + image->size(), image->data() + image->capacity(),
                          [](uint8_t byte) { return byte == 0; }))
      << "the last page still shows what was cut off";
  EXPECT_EQ(pool_->GetUsage().used_bytes, 8 * kMiB + 4096);
  pool_->Release(std::move(image));
}

TEST_F(PoolTest, EvictsTheOldestFreeImageForAnotherSize) {
  MakePool(40 * kMiB);
  auto small = Acquire(8 * kMiB);
  auto large = Acquire(20 * kMiB);
  const uint64_t large_id = large->id();
  pool_->Release(std::move(small));
  pool_->Release(std::move(large));
  EXPECT_EQ(pool_->GetUsage().free_bytes, 28 * kMiB);
  // 28 + 13 are more than 40: one of them goes, the one that was used longer ago.
  auto other = Acquire(13 * kMiB);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 33 * kMiB);
  EXPECT_EQ(pool_->GetUsage().image_count, 2);
  auto again = Acquire(20 * kMiB);
  EXPECT_EQ(again->id(), large_id);
  pool_->Release(std::move(other));
  pool_->Release(std::move(again));
}

TEST_F(PoolTest, RefusesWhatCanNeverFit) {
  MakePool(8 * kMiB);
  EXPECT_THAT(AcquireError(8 * kMiB + 1),
              IsError(StatusCode::kResourceExhausted, "EXCEEDS_BUDGET"));
  EXPECT_THAT(AcquireError(8 * kMiB + 1), Says("--staging-budget"));
  pool_->Release(Acquire(8 * kMiB));
}

TEST_F(PoolTest, ADeadlineAtTheBudgetSaysSo) {
  MakePool(8 * kMiB);
  auto image = Acquire(6 * kMiB);
  EXPECT_THAT(AcquireError(3 * kMiB), IsError(StatusCode::kDeadlineExceeded, "STAGING_FULL"));
  EXPECT_EQ(pool_->GetUsage().waiting_count, 0);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 6 * kMiB);
  pool_->Release(std::move(image));
}

TEST_F(PoolTest, BlocksUntilRelease) {
  MakePool(8 * kMiB);
  auto image = Acquire(6 * kMiB);
  const uint64_t id = image->id();
  std::unique_ptr<Image> second;
  std::thread waiter([&] { second = Acquire(6 * kMiB); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  pool_->Release(std::move(image));
  waiter.join();
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->id(), id);
  pool_->Release(std::move(second));
}

TEST_F(PoolTest, BlocksUntilDiscard) {
  MakePool(8 * kMiB);
  auto image = Acquire(6 * kMiB);
  const uint64_t id = image->id();
  std::unique_ptr<Image> second;
  std::thread waiter([&] { second = Acquire(6 * kMiB); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  pool_->Discard(std::move(image));
  waiter.join();
  ASSERT_NE(second, nullptr);
  EXPECT_NE(second->id(), id) << "a client may still write to that one";
  pool_->Release(std::move(second));
}

// A large save is not starved by small ones that come behind it and would fit.
TEST_F(PoolTest, ServesInTheOrderOfTheCalls) {
  MakePool(10 * kMiB);
  auto held = Acquire(6 * kMiB);
  absl::Mutex mu;
  std::vector<std::string> order;
  auto take = [&](const std::string& name, uint64_t size) {
    auto image = Acquire(size);
    {
      absl::MutexLock lock(&mu);
      order.push_back(name);
    }
    pool_->Release(std::move(image));
  };
  std::thread large([&] { take("large", 10 * kMiB); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  std::thread small([&] { take("small", kMiB); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 2; }));
  EXPECT_THAT(AcquireError(4096), IsError(StatusCode::kDeadlineExceeded, "STAGING_FULL"));
  pool_->Release(std::move(held));
  large.join();
  small.join();
  EXPECT_THAT(order, ElementsAre("large", "small"));
}

TEST_F(PoolTest, GivesUpWhenCancelledAndMakesWayForTheNext) {
  MakePool(10 * kMiB);
  auto held = Acquire(6 * kMiB);
  CancelToken cancel{false};
  absl::Status status;
  std::thread first([&] { status = pool_->Acquire("", 10 * kMiB, Soon(), cancel).status(); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  std::unique_ptr<Image> image;
  std::thread second([&] { image = Acquire(kMiB); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 2; }));
  cancel = true;
  pool_->Wake();
  first.join();
  EXPECT_THAT(status, IsError(StatusCode::kCancelled, "ABORTED"));
  second.join();
  ASSERT_NE(image, nullptr);
  pool_->Release(std::move(image));
  pool_->Release(std::move(held));
}

TEST_F(PoolTest, DiscardLeavesNoFileAndNoCharge) {
  MakePool(10 * kMiB);
  pool_->Discard(Acquire(6 * kMiB));
  EXPECT_THAT(dir_.List(), IsEmpty());
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
  EXPECT_EQ(pool_->GetUsage().image_count, 0);
}

TEST_F(PoolTest, AnImageThatCannotBeParkedIsGivenBack) {
  MakePool(10 * kMiB);
  auto image = Acquire(6 * kMiB);
  fs_.FailNth(FsOp::kRename, 1, EIO);
  pool_->Release(std::move(image));
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
  pool_->Release(Acquire(10 * kMiB));
}

// Whatever system call fails: an error with a reason, nothing left behind, and the next call works.
TEST_F(PoolTest, SurvivesEveryFault) {
  MakePool(32 * kMiB);
  for (const uint64_t first : {uint64_t{0}, 4 * kMiB}) {  // nothing to reuse; one to be grown
    for (int n = 1;; ++n) {
      SCOPED_TRACE(n);
      if (first != 0) pool_->Release(Acquire(first));
      fs_.Reset();
      fs_.FailNth(n, ENOSPC);
      auto image = pool_->Acquire("", 6 * kMiB, Soon(), never_);
      const auto made = static_cast<int>(fs_.Calls().size());
      fs_.Reset();
      if (image.ok()) {
        pool_->Discard(*std::move(image));
      } else {
        EXPECT_THAT(image, IsError(StatusCode::kResourceExhausted, "POOL_EXHAUSTED"));
        EXPECT_THAT(image, Says("--shm-size"));
      }
      EXPECT_THAT(Names(), IsEmpty());
      EXPECT_THAT(FreeNames(), IsEmpty());
      EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
      pool_->Discard(Acquire(6 * kMiB));
      if (made < n) break;  // the n-th was never made: every one has had its turn
    }
  }
}

TEST_F(PoolTest, LeaksNoDescriptors) {
  const size_t before = CountOpenFiles();
  MakePool(32 * kMiB);
  for (int i = 0; i < 5; ++i) pool_->Discard(Acquire(kMiB));
  pool_->Release(Acquire(kMiB));
  pool_.reset();
  EXPECT_EQ(CountOpenFiles(), before);
}

// A kernel whose tmpfs has no unnamed files.
TEST_F(PoolTest, DoesWithoutUnnamedFiles) {
  MakePool(32 * kMiB);
  fs_.SetBefore([](FsCall& call) -> std::optional<int64_t> {
    // O_TMPFILE contains O_DIRECTORY, and the pool opens no other folder from here on.
    if (call.op == FsOp::kOpen && (call.flags & O_TMPFILE) == O_TMPFILE) return -EOPNOTSUPP;
    return std::nullopt;
  });
  auto image = Acquire(kMiB);
  EXPECT_EQ(Names().size(), 1u);
  pool_->Release(std::move(image));
  EXPECT_THAT(Names(), IsEmpty());
  pool_->Discard(Acquire(kMiB));
  EXPECT_THAT(FreeNames(), IsEmpty());
}

}  // namespace
}  // namespace ckptd
