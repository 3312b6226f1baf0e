// What loads take of the pool, and how it comes back.

#include <unistd.h>

#include <cstring>

#include "tests/server/staging/pool_fixture.h"

namespace ckptd {
namespace {

const FileId kFile = {1, 2, 3, 4, 5};
const FileId kOther = {1, 2, 3, 4, 6};

class LendTest : public PoolTest {
 protected:
  // Keeps an image of a file, filled with `c`.
  void Keep(const FileId& file, char c, uint64_t size = 5 * kMiB) {
    auto image = Acquire(size);
    std::memset(image->data(), c, size);
    pool_->Release(std::move(image), file);
  }
};

TEST_F(LendTest, AnImageKeepsItsFileUntilItIsUsedAgain) {
  MakePool(64 * kMiB);
  Keep(kFile, 'a');
  EXPECT_EQ(pool_->GetUsage().kept_bytes, 5 * kMiB);
  EXPECT_EQ(pool_->TakeHolding(kOther), nullptr);
  auto image = pool_->TakeHolding(kFile);
  ASSERT_NE(image, nullptr);
  EXPECT_EQ(image->data()[kMiB], 'a');
  EXPECT_EQ(pool_->TakeHolding(kFile), nullptr) << "is given out twice";
  pool_->Release(std::move(image), kFile);
  pool_->Release(Acquire(5 * kMiB));
  EXPECT_EQ(pool_->TakeHolding(kFile), nullptr) << "a save may have written to it";
  EXPECT_EQ(pool_->GetUsage().kept_bytes, 0u);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 5 * kMiB);
}

TEST_F(LendTest, ASaveTakesWhatHoldsNothingThenTheOldest) {
  MakePool(64 * kMiB);
  auto first = Acquire(5 * kMiB);
  auto second = Acquire(5 * kMiB);
  auto third = Acquire(5 * kMiB);
  pool_->Release(std::move(first), kFile);
  pool_->Release(std::move(second));
  pool_->Release(std::move(third), kOther);
  auto a = Acquire(5 * kMiB);
  EXPECT_EQ(pool_->GetUsage().kept_bytes, 10 * kMiB);
  auto b = Acquire(5 * kMiB);
  EXPECT_EQ(pool_->TakeHolding(kFile), nullptr);
  auto kept = pool_->TakeHolding(kOther);
  EXPECT_NE(kept, nullptr);
  for (auto* image : {&a, &b, &kept}) pool_->Release(std::move(*image));
}

TEST_F(LendTest, ComesBackWhenNobodyHoldsIt) {
  MakePool(64 * kMiB);
  Keep(kFile, 'a');
  const int fd = Borrow(pool_->TakeHolding(kFile));
  EXPECT_EQ(pool_->GetUsage().lent_bytes, 5 * kMiB);
  EXPECT_THAT(Names(), testing::IsEmpty()) << "others can find it";
  pool_->Reclaim();
  EXPECT_EQ(pool_->GetUsage().lent_bytes, 5 * kMiB);
  const int inherited = dup(fd);
  close(fd);
  pool_->Reclaim();
  EXPECT_EQ(pool_->GetUsage().lent_bytes, 5 * kMiB) << "a child of the borrower has it still";
  close(inherited);
  pool_->Reclaim();
  EXPECT_EQ(pool_->GetUsage().lent_bytes, 0u);
  EXPECT_EQ(pool_->GetUsage().free_bytes, 5 * kMiB);
  EXPECT_EQ(pool_->TakeHolding(kFile), nullptr) << "its borrower may have written to it";
}

TEST_F(LendTest, ASaveThatWaitsGetsWhatComesBack) {
  MakePool(10 * kMiB);
  Keep(kFile, 'a');
  const int fd = Borrow(pool_->TakeHolding(kFile));
  auto saved = Acquire(5 * kMiB);
  EXPECT_THAT(AcquireError(5 * kMiB), IsError(absl::StatusCode::kDeadlineExceeded, "STAGING_FULL"));
  close(fd);
  auto image = Acquire(5 * kMiB);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 10 * kMiB);
  pool_->Release(std::move(image));
  pool_->Release(std::move(saved));
}

TEST_F(LendTest, LeavesEnoughForASaveOfTheSameSize) {
  MakePool(10 * kMiB - 1);
  Keep(kFile, 'a');
  EXPECT_EQ(pool_->TakeHolding(kFile), nullptr);
  EXPECT_EQ(pool_->TakeForReading(5 * kMiB), nullptr);
  pool_.reset();
  MakePool(10 * kMiB);
  auto image = pool_->TakeForReading(5 * kMiB);
  ASSERT_NE(image, nullptr);
  EXPECT_EQ(pool_->TakeForReading(5 * kMiB), nullptr);
  pool_->Release(std::move(image));
}

TEST_F(LendTest, WhatItsBorrowerHasCutIsNotUsedAgain) {
  MakePool(64 * kMiB);
  Keep(kFile, 'a');
  const int fd = Borrow(pool_->TakeHolding(kFile));
  ASSERT_EQ(ftruncate(fd, 100), 0);
  close(fd);
  pool_->Reclaim();
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
}

}  // namespace
}  // namespace ckptd
