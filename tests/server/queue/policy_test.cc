// What a save does where the staging budget is used up.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "server/queue/save_queue.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;

constexpr size_t kSize = 8192;

class PolicyTest : public QueueTest {
 protected:
  void SetUp() override {
    Start(NoRetry(), 2 * kSize);
    HoldSaves();
  }

  v1::BeginSaveRequest Full(const std::string& id, const std::string& file,
                            v1::BeginSaveRequest::OnFull on_full) {
    v1::BeginSaveRequest request = Request(id, disk_ / file, kSize);
    request.set_on_full(on_full);
    return request;
  }
  static std::string Content(char c) { return std::string(kSize, c); }

  // Has "begun" in a worker's hands, "waiting" give way to "new", all to "f", and between those two
  // the removal of "old".
  void SupersedeBeforeARemoval() {
    ASSERT_NO_FATAL_FAILURE(Save("begun", "f", Content('a')));
    ASSERT_TRUE(gate_.WaitForArrivals(1));
    ASSERT_NO_FATAL_FAILURE(Save("waiting", "f", Content('b')));
    ASSERT_OK(Remove("old", /*wait=*/false));
    ASSERT_OK(Begin(Full("new", "f", v1::BeginSaveRequest::SUPERSEDE)));
    ASSERT_OK(queue_->WriteSave(Name("new"), 0, Content('c')));
    ASSERT_OK(queue_->CommitSave(Name("new")));
  }
};

TEST_F(PolicyTest, BlockWaitsAndSaysForWhat) {
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", Content('a')));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", Content('b')));
  absl::Status begun;
  std::thread call([&] { begun = Begin(Full("c", "f", v1::BeginSaveRequest::BLOCK)).status(); });
  EXPECT_TRUE(Eventually([&] {
    auto save = queue_->GetSave(Name("c"));
    return save.ok() && save->has_error();
  }));
  EXPECT_EQ(Get("c").state(), v1::Save::STAGING);
  EXPECT_THAT(ErrorOf(Get("c")), IsError(StatusCode::kUnavailable, "STAGING_FULL"));
  EXPECT_THAT(ErrorOf(Get("c")), Says("waits for 8192 bytes"));
  gate_.Open();
  call.join();
  EXPECT_OK(begun);
  EXPECT_FALSE(Get("c").has_error());
}

TEST_F(PolicyTest, RejectFailsAtOnceAndIsSeen) {
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", Content('a')));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", Content('b')));
  const auto request = Full("c", "f", v1::BeginSaveRequest::REJECT);
  EXPECT_THAT(queue_->BeginSave(request, absl::InfiniteFuture()),
              IsError(StatusCode::kResourceExhausted, "STAGING_FULL"));
  EXPECT_EQ(Get("c").state(), v1::Save::FAILED);
  EXPECT_THAT(ErrorOf(Get("c")), Says("policy is to reject"));
  // The same call may be made again.
  EXPECT_THAT(Begin(request), IsError(StatusCode::kResourceExhausted, "STAGING_FULL"));
  gate_.Open();
  WaitForEnd("b");
  EXPECT_OK(Begin(request));
  EXPECT_EQ(Get("c").state(), v1::Save::STAGING);
}

TEST_F(PolicyTest, RejectTakesMemoryThatIsThere) {
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", Content('a')));
  EXPECT_OK(Begin(Full("b", "f", v1::BeginSaveRequest::REJECT)));
}

TEST_F(PolicyTest, SupersedeTakesTheMemoryOfASaveThatIsNotBegun) {
  ASSERT_NO_FATAL_FAILURE(Save("begun", "f", Content('a')));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  ASSERT_NO_FATAL_FAILURE(Save("waiting", "f", Content('b')));
  auto begun = Begin(Full("new", "f", v1::BeginSaveRequest::SUPERSEDE));
  ASSERT_OK(begun);
  EXPECT_EQ(Get("waiting").state(), v1::Save::SUPERSEDED);
  EXPECT_THAT(ErrorOf(Get("waiting")), IsError(StatusCode::kAborted, "SUPERSEDED"));
  EXPECT_THAT(ErrorOf(Get("waiting")), Says("gave way to jobs/j/saves/new"));
  EXPECT_EQ(Get("begun").state(), v1::Save::PERSISTING);
  ASSERT_OK(queue_->WriteSave(Name("new"), 0, Content('c')));
  ASSERT_OK(queue_->CommitSave(Name("new")));
  gate_.Open();
  EXPECT_EQ(WaitForEnd("new").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "f"), Content('c'));
  Restart();
  EXPECT_EQ(Get("waiting").state(), v1::Save::SUPERSEDED) << "in the journal, too";
}

TEST_F(PolicyTest, SupersedeTouchesNoOtherPathAndThenWaits) {
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", Content('a')));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", Content('b')));
  const auto request = Full("c", "g", v1::BeginSaveRequest::SUPERSEDE);
  EXPECT_THAT(queue_->BeginSave(request, absl::Now()),
              IsError(StatusCode::kDeadlineExceeded, "STAGING_FULL"));
  EXPECT_EQ(Get("b").state(), v1::Save::QUEUED);
}

TEST_F(PolicyTest, SupersedeTakesNothingWhileThereIsMemory) {
  Start(NoRetry(), 3 * kSize);
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", Content('a')));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", Content('b')));
  ASSERT_OK(Begin(Full("c", "f", v1::BeginSaveRequest::SUPERSEDE)));
  gate_.Open();
  EXPECT_EQ(WaitForEnd("b").state(), v1::Save::SUCCEEDED);
}

// The removal was accepted behind a save that then gave way: the one that took its place counts.
TEST_F(PolicyTest, ARemovalFollowsTheSaveThatTookTheMemory) {
  WriteFile(disk_ / "old", "old");
  ASSERT_NO_FATAL_FAILURE(SupersedeBeforeARemoval());
  gate_.Let(1);
  ASSERT_TRUE(gate_.WaitForArrivals(2)) << "the new one is being written";
  EXPECT_EQ(ReadFile(disk_ / "old"), "old");
  gate_.Open();
  auto flushed = Flush("jobs/j");
  ASSERT_OK(flushed);
  EXPECT_EQ(flushed->failed_removals_size(), 0);
  EXPECT_THAT(disk_.List(), ElementsAre("f"));
}

TEST_F(PolicyTest, ARemovalStillFollowsItAfterARestart) {
  WriteFile(disk_ / "old", "old");
  Jam();
  ASSERT_NO_FATAL_FAILURE(SupersedeBeforeARemoval());
  StopJammed();
  Restart();
  auto flushed = Flush("jobs/j");
  ASSERT_OK(flushed);
  EXPECT_EQ(flushed->failed_removals_size(), 0);
  EXPECT_THAT(disk_.List(), ElementsAre("f"));
}

// Each would wait for the other: the removal for what took the memory of the save before it, and
// that for the removal of its path.
TEST_F(PolicyTest, ARemovalDoesNotWaitForASaveThatWaitsForIt) {
  for (const std::string removed : {"d/f", "d"}) {
    SCOPED_TRACE(removed);
    Start(NoRetry(), 2 * kSize);
    gate_.Close();
    HoldSaves();
    ASSERT_NO_FATAL_FAILURE(Save("begun", "d/f", Content('a')));
    ASSERT_NO_FATAL_FAILURE(Save("waiting", "d/f", Content('b')));
    ASSERT_OK(Remove(removed, /*wait=*/false));
    ASSERT_OK(Begin(Full("new", "d/f", v1::BeginSaveRequest::SUPERSEDE)));
    ASSERT_OK(queue_->WriteSave(Name("new"), 0, Content('c')));
    ASSERT_OK(queue_->CommitSave(Name("new")));
    gate_.Open();
    EXPECT_EQ(WaitForEnd("new").state(), v1::Save::SUCCEEDED);
    EXPECT_OK(Flush());
    EXPECT_EQ(ReadFile(disk_ / "d/f"), Content('c'));
  }
}

}  // namespace
}  // namespace ckptd
