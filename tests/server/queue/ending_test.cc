// Drain and Stop.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "server/queue/save_queue.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::IsEmpty;
using testing::SizeIs;

class EndingTest : public QueueTest {};

TEST_F(EndingTest, DrainWaitsForWhatIsAcceptedAndWhatIsStaging) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("accepted", "a", "1"));
  ASSERT_NO_FATAL_FAILURE(Stage("staging", "b", "2"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_FALSE(queue_->draining());
  EXPECT_EQ(queue_->Drain(absl::Now()), 2);
  EXPECT_TRUE(queue_->draining());

  EXPECT_THAT(Begin(Request("new", disk_ / "c", 1)), IsError(StatusCode::kUnavailable, "DRAINING"));
  EXPECT_THAT(Remove("a", false), IsError(StatusCode::kUnavailable, "DRAINING"));
  // What was begun may be finished, and looked at.
  ASSERT_OK(queue_->CommitSave(Name("staging")));
  gate_.Open();
  EXPECT_EQ(queue_->Drain(Soon()), 0);
  EXPECT_EQ(Get("accepted").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(Get("staging").state(), v1::Save::SUCCEEDED);
  EXPECT_OK(Load("a"));
}

TEST_F(EndingTest, DrainEndsWithTheClientOfAStagingSave) {
  ASSERT_NO_FATAL_FAILURE(Stage("staging", "b", "2"));
  int left = -1;
  std::thread drainer([&] { left = queue_->Drain(Soon()); });
  ASSERT_TRUE(Eventually([&] { return queue_->draining(); }));
  queue_->CloseSession(session_);
  drainer.join();
  EXPECT_EQ(left, 0);
}

TEST_F(EndingTest, StopEndsEveryCallThatWaits) {
  Start(SaveQueue::Options(), 8192);
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", std::string(8192, 'x')));
  ASSERT_TRUE(gate_.WaitForArrivals(1));

  const absl::Time never = absl::InfiniteFuture();
  std::vector<absl::Status> results(5);
  std::vector<std::thread> calls;
  calls.emplace_back(
      [&] { results[0] = queue_->BeginSave(Request("t", disk_ / "g", 8192), never).status(); });
  calls.emplace_back([&] { results[1] = Load("f", never).status(); });
  calls.emplace_back([&] { results[2] = Remove("f", true, "jobs/j", never); });
  calls.emplace_back([&] { results[3] = Flush("jobs/-", "", never).status(); });
  calls.emplace_back(
      [&] { results[4] = queue_->BeginSave(Request("t", disk_ / "g", 8192), never).status(); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  std::thread stopper([&] { queue_->Stop(); });
  for (std::thread& call : calls) call.join();
  for (const absl::Status& result : results) EXPECT_FALSE(result.ok());
  // The save that is being written is left, too, but not before its system call returns; it stays
  // accepted.
  gate_.Open();
  stopper.join();
  EXPECT_EQ(Get("s").state(), v1::Save::PERSISTING);
  EXPECT_THAT(disk_.List(), IsEmpty());
  EXPECT_THAT(LeasedImages(), SizeIs(1));
  queue_->Stop();  // idempotent
}

TEST_F(EndingTest, NothingIsTakenAfterStop) {
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", "x"));
  queue_->Stop();
  EXPECT_FALSE(queue_->WriteSave(Name("s"), 0, "y").ok());
  EXPECT_FALSE(queue_->CommitSave(Name("s")).ok());
  EXPECT_FALSE(Begin(Request("t", disk_ / "g", 1)).ok());
  EXPECT_FALSE(Load("f").ok());
  EXPECT_FALSE(Remove("f", true).ok());
  const std::string late = queue_->OpenSession("late");
  queue_->CloseSession(late);
  EXPECT_THAT(LeasedImages(), IsEmpty());
}

// Calls of WriteSave copy without the lock: the memory must not go while they do.
TEST_F(EndingTest, StopWaitsForCopiesUnderWay) {
  const std::string content(size_t{16} << 20, 'x');
  for (int round = 0; round < 5; ++round) {
    Start(SaveQueue::Options());
    ASSERT_OK(Begin(Request("s", disk_ / "f", content.size())));
    std::atomic<int> copies{0};
    std::thread writer([&] {
      while (queue_->WriteSave(Name("s"), 0, content).ok()) ++copies;
    });
    ASSERT_TRUE(Eventually([&] { return copies >= 1; }));
    queue_->Stop();
    writer.join();
  }
}

TEST_F(EndingTest, IsIdleWithoutClientsAndWork) {
  EXPECT_EQ(queue_->IdleFor(), absl::ZeroDuration());
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "x"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  queue_->CloseSession(session_);
  clock_.Advance(absl::Seconds(5));
  EXPECT_EQ(queue_->IdleFor(), absl::ZeroDuration()) << "there is still work";
  gate_.Open();
  WaitForEnd("s");
  EXPECT_TRUE(Eventually([&] { return queue_->GetStatus().persisting_count() == 0; }));
  clock_.Advance(absl::Seconds(5));
  EXPECT_EQ(queue_->IdleFor(), absl::Seconds(5));
  clock_.Jump(absl::Hours(1000));
  EXPECT_EQ(queue_->IdleFor(), absl::Seconds(5)) << "somebody has set the clock";
  const std::string session = queue_->OpenSession("another");
  EXPECT_EQ(queue_->IdleFor(), absl::ZeroDuration());
  queue_->CloseSession(session);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(queue_->IdleFor(), absl::Seconds(1));
}

}  // namespace
}  // namespace ckptd
