#include "server/queue/work_list.h"

#include <gtest/gtest.h>

#include <string>

namespace ckptd {
namespace {

std::shared_ptr<Work> MakeWork(uint64_t seq, uint64_t device) {
  auto work = std::make_shared<Work>(Operation::Kind::kSave);
  work->seq = seq;
  work->device = device;
  return work;
}

class WorkListTest : public testing::Test {
 protected:
  // Numbers of all that may run at `now`, in the order in which they are taken.
  std::string TakeAll(absl::Duration now = absl::ZeroDuration()) {
    std::string taken;
    while (auto work = list_.Take(now)) taken += std::to_string(work->seq) + " ";
    return taken;
  }

  WorkList list_{2};
};

TEST_F(WorkListTest, OldestFirst) {
  for (uint64_t seq : {3, 1, 2}) list_.Add(MakeWork(seq, seq));
  EXPECT_EQ(TakeAll(), "1 2 3 ");
  EXPECT_EQ(TakeAll(), "");
}

TEST_F(WorkListTest, ADeviceGetsItsShareAndNoMore) {
  for (uint64_t seq : {1, 2, 3, 4}) list_.Add(MakeWork(seq, 7));
  list_.Add(MakeWork(5, 8));
  EXPECT_EQ(TakeAll(), "1 2 5 ");
  EXPECT_FALSE(list_.HasRunnable(absl::ZeroDuration()));
  list_.Done(MakeWork(1, 7).get());
  EXPECT_TRUE(list_.HasRunnable(absl::ZeroDuration()));
  EXPECT_EQ(TakeAll(), "3 ");
}

TEST_F(WorkListTest, WaitsUntilItIsDue) {
  list_.Add(MakeWork(1, 1), absl::Seconds(10));
  list_.Add(MakeWork(2, 2), absl::Seconds(5));
  list_.Add(MakeWork(3, 3));
  EXPECT_EQ(list_.NextDue(absl::ZeroDuration()), absl::Seconds(5));
  EXPECT_EQ(TakeAll(), "3 ");
  EXPECT_EQ(TakeAll(absl::Seconds(5)), "2 ");
  EXPECT_EQ(list_.NextDue(absl::Seconds(5)), absl::Seconds(10));
  EXPECT_EQ(TakeAll(absl::Seconds(10)), "1 ");
  EXPECT_EQ(list_.NextDue(absl::Seconds(10)), absl::InfiniteDuration());
}

TEST_F(WorkListTest, PassesOverWhatIsPausedOrTakenOut) {
  const auto paused = MakeWork(1, 1);
  const auto removed = MakeWork(2, 2);
  paused->paused = true;
  list_.Add(paused);
  list_.Add(removed);
  EXPECT_TRUE(list_.Contains(removed.get()));
  list_.Remove(removed.get());
  EXPECT_FALSE(list_.Contains(removed.get()));
  EXPECT_EQ(TakeAll(), "");
  paused->paused = false;
  EXPECT_EQ(TakeAll(), "1 ");
}

}  // namespace
}  // namespace ckptd
