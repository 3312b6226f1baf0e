// Reserve: memory that is warm before the first save asks for it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "server/staging/pool.h"
#include "tests/server/staging/pool_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class PoolReserveTest : public PoolTest {
 protected:
  int Reserve(const std::string& owner, uint64_t size, int count) {
    auto result = pool_->Reserve(owner, size, count, /*wait=*/true, Soon(), never_);
    EXPECT_OK(result);
    if (!result.ok()) return -1;
    told_ = result->images;
    return result->count;
  }
  // Has each call of `op` wait for gate_.
  void StopAt(FsOp op) {
    fs_.SetBefore([this, op](FsCall& call) -> std::optional<int64_t> {
      if (call.op == op) gate_.Pass();
      return std::nullopt;
    });
  }
  // The ids of the images that the last call of Reserve has told of.
  std::vector<uint64_t> Told() const {
    std::vector<uint64_t> ids;
    for (const auto& image : told_) ids.push_back(image.id);
    return ids;
  }

  std::vector<Pool::FreeImage> told_;
};

TEST_F(PoolReserveTest, TheFirstSaveFindsWarmMemory) {
  MakePool(64 * kMiB);
  EXPECT_EQ(Reserve("a", 8 * kMiB, 2), 2);
  EXPECT_EQ(pool_->GetUsage().free_bytes, 16 * kMiB);
  EXPECT_THAT(Names(), IsEmpty()) << "is not leased";
  fs_.Reset();
  auto first = Acquire(8 * kMiB - 12345);
  auto second = Acquire(8 * kMiB);
  EXPECT_EQ(fs_.Count(FsOp::kPopulate), 0);
  EXPECT_EQ(pool_->GetUsage().image_count, 2);
  pool_->Release(std::move(first));
  pool_->Release(std::move(second));
}

TEST_F(PoolReserveTest, OwnersAddUpAndAWishIsReplaced) {
  MakePool(64 * kMiB);
  EXPECT_EQ(Reserve("a", 8 * kMiB, 1), 1);
  EXPECT_EQ(Reserve("a", 8 * kMiB, 1), 1);
  EXPECT_EQ(Reserve("b", 8 * kMiB, 2), 3);
  EXPECT_EQ(Reserve("a", 8 * kMiB, 2), 4);
  // A wish that is gone is not met again when its images are.
  pool_->Unreserve("b");
  for (int i = 0; i < 4; ++i) pool_->Discard(Acquire(8 * kMiB));
  EXPECT_EQ(Reserve("a", 8 * kMiB, 2), 2);
}

TEST_F(PoolReserveTest, TellsOfTheImagesThatTheOwnerGetsFirst) {
  MakePool(64 * kMiB);
  EXPECT_EQ(Reserve("a", 8 * kMiB, 1), 1);
  const std::vector<uint64_t> of_a = Told();
  EXPECT_EQ(Reserve("b", 8 * kMiB, 2), 3);
  const std::vector<uint64_t> of_b = Told();
  ASSERT_EQ(of_a.size(), 1u);
  ASSERT_EQ(of_b.size(), 2u) << "as many as were asked for";
  for (const auto& image : told_) {
    struct stat info = {};
    ASSERT_EQ(stat(image.path.c_str(), &info), 0) << image.path;
    EXPECT_EQ(info.st_ino, image.inode);
    EXPECT_EQ(static_cast<uint64_t>(info.st_size), image.size);
  }
  // Whichever was used last, and whichever is nearer: each gets its own, cut or grown.
  auto image = Acquire(8 * kMiB - 12345, "a");
  EXPECT_EQ(image->id(), of_a.front());
  EXPECT_EQ(image->cuts(), 1u);
  pool_->Release(std::move(image));
  auto first = Acquire(8 * kMiB, "b");
  auto second = Acquire(8 * kMiB, "b");
  EXPECT_THAT(of_b, UnorderedElementsAre(first->id(), second->id()));
  // Where there is none of its own, another's will do: it changes hands.
  auto third = Acquire(8 * kMiB, "b");
  EXPECT_EQ(third->id(), of_a.front());
  pool_->Release(std::move(third));
  EXPECT_EQ(Reserve("b", 8 * kMiB, 1), 1);
  EXPECT_EQ(Told(), of_a);
  pool_->Release(std::move(first));
  pool_->Release(std::move(second));
}

TEST_F(PoolReserveTest, ImagesInUseCountAsServed) {
  MakePool(64 * kMiB);
  EXPECT_EQ(Reserve("a", 8 * kMiB, 1), 1);
  auto image = Acquire(8 * kMiB);
  EXPECT_EQ(Reserve("a", 8 * kMiB, 1), 0) << "it is leased, and comes back";
  EXPECT_EQ(pool_->GetUsage().image_count, 1);
  pool_->Release(std::move(image));
}

TEST_F(PoolReserveTest, GoesAsFarAsTheBudget) {
  MakePool(20 * kMiB);
  EXPECT_EQ(Reserve("a", 8 * kMiB, 5), 2);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 16 * kMiB);
  EXPECT_THAT(pool_->Reserve("a", 20 * kMiB + 1, 1, true, Soon(), never_),
              IsError(StatusCode::kResourceExhausted, "EXCEEDS_BUDGET"));
}

TEST_F(PoolReserveTest, EvictsWhatNobodyAskedFor) {
  MakePool(20 * kMiB);
  pool_->Release(Acquire(16 * kMiB));
  EXPECT_EQ(Reserve("a", 8 * kMiB, 1), 1);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 8 * kMiB);
}

TEST_F(PoolReserveTest, DoesNotEvictWhatAnotherAskedFor) {
  MakePool(20 * kMiB);
  EXPECT_EQ(Reserve("a", 16 * kMiB, 1), 1);
  EXPECT_EQ(Reserve("b", 8 * kMiB, 1), 0);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 16 * kMiB);
  // A save is another matter: it comes first. What the wish still wants comes back after it.
  auto image = Acquire(8 * kMiB);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 8 * kMiB);
  pool_->Release(std::move(image));
}

TEST_F(PoolReserveTest, SpareImagesOfAWishedSizeMayGo) {
  MakePool(20 * kMiB);
  EXPECT_EQ(Reserve("a", 6 * kMiB, 3), 3);
  EXPECT_EQ(Reserve("a", 6 * kMiB, 1), 3);
  // Two of the three are spare, which is not enough for 17 MiB ...
  EXPECT_EQ(Reserve("b", 17 * kMiB, 1), 0);
  // ... but for 12.
  EXPECT_EQ(Reserve("b", 12 * kMiB, 1), 1);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 18 * kMiB);
}

TEST_F(PoolReserveTest, ASaveWaitsForTheImageThatIsOnItsWay) {
  MakePool(64 * kMiB);
  StopAt(FsOp::kPopulate);
  EXPECT_OK(pool_->Reserve("a", 8 * kMiB, 1, /*wait=*/false, Soon(), never_));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  std::unique_ptr<Image> image;
  std::thread waiter([&] { image = Acquire(8 * kMiB); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  EXPECT_EQ(pool_->GetUsage().image_count, 1);
  gate_.Open();
  waiter.join();
  ASSERT_NE(image, nullptr);
  EXPECT_EQ(fs_.Count(FsOp::kMap), 1);
  pool_->Release(std::move(image));
}

TEST_F(PoolReserveTest, WhatIsWarmedIsGathered) {
  MakePool(64 * kMiB);
  EXPECT_EQ(Reserve("a", 40 * kMiB + 5, 1), 1);
  EXPECT_EQ(fs_.Count(FsOp::kGather), 3);  // in steps of 16 MiB
  pool_->Release(Acquire(2 * kMiB));
  EXPECT_EQ(fs_.Count(FsOp::kGather), 3) << "a save waits for it";
}

// One that was made for a save that waited, where the kernel had no huge pages at hand.
TEST_F(PoolReserveTest, AScatteredImageIsGatheredOnceSomebodyAsksForIt) {
  MakePool(64 * kMiB);
  fs_.SetBefore([](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kPopulate) return 0;  // pages come one by one, as they are written to
    return std::nullopt;
  });
  std::unique_ptr<Image> image = Acquire(40 * kMiB);
  const uint64_t id = image->id();
  std::memset(image->data(), 'x', image->capacity());
  image->Register();
  pool_->Release(std::move(image));
  EXPECT_EQ(fs_.Count(FsOp::kGather), 0);
  EXPECT_EQ(Reserve("a", 40 * kMiB, 1), 1);
  EXPECT_EQ(fs_.Count(FsOp::kGather), 3);
  image = Acquire(40 * kMiB);
  EXPECT_EQ(image->id(), id);
  EXPECT_FALSE(image->scattered());
  EXPECT_EQ(image->registered(), nullptr) << "what is held may have been moved";
  EXPECT_EQ(std::count(image->data(), image->data() + image->capacity(), 'x'),
            static_cast<int64_t>(image->capacity()));
  pool_->Release(std::move(image));
}

TEST_F(PoolReserveTest, PagesThatCannotBeGatheredAreAsGood) {
  MakePool(64 * kMiB);
  fs_.FailAll(FsOp::kGather, ENOMEM);
  EXPECT_EQ(Reserve("a", 40 * kMiB, 1), 1);
  EXPECT_EQ(fs_.Count(FsOp::kGather), 3) << "the next ones may be had";
  fs_.FailAll(FsOp::kGather, EINVAL);
  EXPECT_EQ(Reserve("b", 20 * kMiB, 1), 1);
  EXPECT_EQ(fs_.Count(FsOp::kGather), 4) << "the kernel does not do it";
}

TEST_F(PoolReserveTest, WhoWaitsForMemoryDoesNotWaitForItsPagesToBeGathered) {
  MakePool(64 * kMiB);
  StopAt(FsOp::kGather);
  EXPECT_OK(pool_->Reserve("a", 40 * kMiB, 1, /*wait=*/false, Soon(), never_));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  std::unique_ptr<Image> image;
  std::thread waiter([&] { image = Acquire(40 * kMiB); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  gate_.Open();
  waiter.join();
  ASSERT_NE(image, nullptr);
  EXPECT_EQ(fs_.Count(FsOp::kGather), 1);
  pool_->Release(std::move(image));
}

TEST_F(PoolReserveTest, AWaitEndsWithItsDeadlineOrItsClient) {
  MakePool(64 * kMiB);
  StopAt(FsOp::kPopulate);
  EXPECT_OK(pool_->Reserve("a", 8 * kMiB, 1, /*wait=*/true, absl::Now(), never_));
  CancelToken cancel{false};
  std::thread waiter(
      [&] { EXPECT_OK(pool_->Reserve("b", 8 * kMiB, 1, /*wait=*/true, Soon(), cancel)); });
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  cancel = true;
  pool_->Wake();
  waiter.join();
  gate_.Open();
}

TEST_F(PoolReserveTest, GivesUpWhereTheTmpfsIsFull) {
  MakePool(64 * kMiB);
  fs_.FailAll(FsOp::kPopulate, EFAULT);
  EXPECT_EQ(Reserve("a", 8 * kMiB, 3), 0);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
  EXPECT_EQ(fs_.Count(FsOp::kPopulate), 1) << "tries it again and again";
  fs_.Reset();
  EXPECT_EQ(Reserve("a", 8 * kMiB, 3), 3);
}

}  // namespace
}  // namespace ckptd
