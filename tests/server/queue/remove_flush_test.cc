// Removals among the saves, and Flush.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>

#include "server/queue/save_queue.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

class RemoveTest : public QueueTest {
 protected:
  // Persists one save so that it fails for want of space.
  void FailOne(const std::string& id, const std::string& file) {
    fs_.FailNth(FsOp::kAllocate, 1, ENOSPC);
    ASSERT_NO_FATAL_FAILURE(Save(id, file, "x"));
    ASSERT_EQ(WaitForEnd(id).state(), v1::Save::FAILED);
  }
};

using FlushTest = RemoveTest;

TEST_F(RemoveTest, SaveThenRemoveLeavesNothing) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "1"));
  EXPECT_OK(Remove("f", /*wait=*/false));
  gate_.Open();
  EXPECT_OK(Flush());
  EXPECT_THAT(disk_.List(), IsEmpty());
  EXPECT_EQ(Get("s").state(), v1::Save::SUCCEEDED);
}

TEST_F(RemoveTest, RemoveThenSaveKeepsTheSave) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", "1"));
  EXPECT_OK(Remove("f", /*wait=*/false));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", "2"));
  gate_.Open();
  EXPECT_EQ(WaitForEnd("b").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "f"), "2");
}

TEST_F(RemoveTest, WaitsForAllThatItsJobHasSaved) {
  WriteFile(disk_ / "old", "old");
  WriteFile(disk_ / "other", "other");
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "new", "1"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_OK(Remove("old", /*wait=*/false));
  EXPECT_THAT(Remove("old", /*wait=*/true, "jobs/j", absl::Now()),
              IsError(StatusCode::kDeadlineExceeded, "PATH_BUSY"));
  // Another job does not wait for this one's saves.
  EXPECT_OK(Remove("other", /*wait=*/true, "jobs/k"));
  EXPECT_THAT(disk_.List(), ElementsAre("old"));
  gate_.Open();
  EXPECT_OK(Flush());
  EXPECT_THAT(disk_.List(), ElementsAre("new"));
}

TEST_F(RemoveTest, IsRefusedWhenTheNewestSaveIsNotDurable) {
  WriteFile(disk_ / "old", "old");
  ASSERT_NO_FATAL_FAILURE(Save("good", "a", "1"));
  WaitForEnd("good");
  ASSERT_NO_FATAL_FAILURE(FailOne("bad", "b"));
  const absl::Status status = Remove("old", /*wait=*/true);
  EXPECT_THAT(status, IsError(StatusCode::kFailedPrecondition, "SAVE_NOT_DURABLE"));
  EXPECT_THAT(status, Says("jobs/j/saves/bad"));
  EXPECT_EQ(ReadFile(disk_ / "old"), "old");
  // Told already: Flush does not tell it again.
  ASSERT_OK_AND_ASSIGN(const auto flushed, Flush("jobs/j"));
  EXPECT_EQ(flushed.failed_removals_size(), 0);
  // The job has a checkpoint to go back to again.
  ASSERT_NO_FATAL_FAILURE(Save("good2", "c", "1"));
  EXPECT_OK(Remove("old", /*wait=*/true));
  EXPECT_THAT(disk_.List(), ElementsAre("a", "c"));
}

TEST_F(RemoveTest, IsRefusedWhenTheNewestSaveWasCancelled) {
  WriteFile(disk_ / "old", "old");
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "new", "1"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_OK(Remove("old", /*wait=*/false));
  ASSERT_OK(queue_->CancelSave(Name("s")));
  gate_.Open();
  ASSERT_OK_AND_ASSIGN(const auto flushed, Flush("jobs/j"));
  ASSERT_EQ(flushed.failed_removals_size(), 1);
  EXPECT_EQ(flushed.failed_removals(0).path(), disk_ / "old");
  EXPECT_EQ(ReasonOf(FromRpc(flushed.failed_removals(0).error())), "SAVE_NOT_DURABLE");
  EXPECT_THAT(disk_.List(), ElementsAre("old"));
}

// To remove what the failed save was to replace takes nothing away that it had saved.
TEST_F(RemoveTest, TheTargetOfTheFailedSaveItselfMayGo) {
  WriteFile(disk_ / "f", "old");
  ASSERT_NO_FATAL_FAILURE(FailOne("bad", "f"));
  EXPECT_OK(Remove("f", /*wait=*/true));
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(RemoveTest, AFolderWaitsForTheSavesBelow) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "version_0/checkpoints/a.ckpt", "1"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_OK(Remove("version_0", /*wait=*/false, "jobs/another"));
  EXPECT_THAT(disk_.List(), ElementsAre("version_0"));
  gate_.Open();
  EXPECT_OK(Flush());
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(RemoveTest, ASaveAfterItsFolderWentFindsItMadeAgain) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "d/e/f", "1"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_OK(Remove("d", /*wait=*/false));
  ASSERT_NO_FATAL_FAILURE(Save("t", "d/e/f", "2"));
  ASSERT_NO_FATAL_FAILURE(Stage("u", "d/g", "3"));
  gate_.Open();
  EXPECT_EQ(WaitForEnd("t").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "d/e/f"), "2");
  // Begun before the removal, committed after it.
  EXPECT_OK(Remove("d", /*wait=*/true));
  ASSERT_OK(queue_->CommitSave(Name("u")));
  EXPECT_EQ(WaitForEnd("u").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "d/g"), "3");
}

TEST_F(RemoveTest, AMissingPathIsNoError) {
  EXPECT_OK(Remove("none", /*wait=*/true));
  EXPECT_OK(Remove("no/such/folder", /*wait=*/true));
}

TEST_F(RemoveTest, NeedsAJobAndAPath) {
  for (const char* parent : {"jobs/-", "", "jobs/", "jobs/a/saves/b"}) {
    EXPECT_THAT(Remove("f", true, parent), IsError(StatusCode::kInvalidArgument, "INVALID_NAME"))
        << parent;
  }
  v1::RemoveCheckpointRequest request;
  request.set_parent("jobs/j");
  request.set_path("relative");
  EXPECT_THAT(queue_->RemoveCheckpoint(request, Soon()),
              IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
}

TEST_F(RemoveTest, AFailureIsToldOnce) {
  WriteFile(disk_ / "f", "x");
  fs_.FailAll(FsOp::kUnlink, EROFS);
  EXPECT_THAT(Remove("f", /*wait=*/true),
              IsError(StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"));
  EXPECT_OK(Remove("f", /*wait=*/false));
  ASSERT_OK_AND_ASSIGN(const auto for_people, Flush("jobs/-"));
  EXPECT_EQ(for_people.failed_removals_size(), 1);
  ASSERT_OK_AND_ASSIGN(const auto first, Flush("jobs/j"));
  EXPECT_EQ(first.failed_removals_size(), 1) << "a person's flush took the news from the job";
  ASSERT_OK_AND_ASSIGN(const auto second, Flush("jobs/j"));
  EXPECT_EQ(second.failed_removals_size(), 0);
}

TEST_F(RemoveTest, OfFailuresThatNobodyAsksForTheOldestAreForgotten) {
  SaveQueue::Options options = NoRetry();
  options.history = 3;
  Start(options);
  WriteFile(disk_ / "f", "x");
  fs_.FailAll(FsOp::kUnlink, EROFS);
  for (const char* job : {"jobs/a", "jobs/a", "jobs/b", "jobs/b", "jobs/a"}) {
    EXPECT_OK(Remove("f", /*wait=*/false, job));
  }
  ASSERT_OK_AND_ASSIGN(const auto all, Flush("jobs/-"));
  EXPECT_EQ(all.failed_removals_size(), 3);
  EXPECT_THAT(journal_->Read()->removes, testing::SizeIs(3));
  ASSERT_OK_AND_ASSIGN(const auto of_a, Flush("jobs/a"));
  EXPECT_EQ(of_a.failed_removals_size(), 1);
  ASSERT_OK_AND_ASSIGN(const auto of_b, Flush("jobs/b"));
  EXPECT_EQ(of_b.failed_removals_size(), 2);
  EXPECT_THAT(journal_->Read()->removes, IsEmpty());
}

// ---- Flush -----------------------------------------------------------------------------------

TEST_F(FlushTest, WaitsForTheSavesOfItsJobAndPath) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "a/f", "1"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  const auto busy = IsError(StatusCode::kDeadlineExceeded, "FLUSH_TIMEOUT");
  EXPECT_THAT(Flush("jobs/-", "", absl::Now()), busy);
  EXPECT_THAT(Flush("jobs/j", "", absl::Now()), busy);
  EXPECT_THAT(Flush("jobs/j", "a/f", absl::Now()), busy);
  EXPECT_THAT(Flush("jobs/j", "a", absl::Now()), busy) << "what is below the path concerns it";
  EXPECT_OK(Flush("jobs/k"));
  EXPECT_OK(Flush("jobs/j", "other"));
  EXPECT_OK(Flush("jobs/j", "a/ff"));
  gate_.Open();
  EXPECT_OK(Flush("jobs/j"));
  EXPECT_EQ(Get("s").state(), v1::Save::SUCCEEDED);
}

TEST_F(FlushTest, WaitsForAJobWhoseNewestSaveIsForgotten) {
  SaveQueue::Options options = NoRetry();
  options.history = 0;
  Start(options);
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "1"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  ASSERT_NO_FATAL_FAILURE(Save("newest", "f", "2"));
  ASSERT_OK(queue_->CancelSave(Name("newest")));
  EXPECT_THAT(Flush("jobs/j", "", absl::Now()),
              IsError(StatusCode::kDeadlineExceeded, "FLUSH_TIMEOUT"));
  gate_.Open();
  EXPECT_OK(Flush("jobs/j"));
  EXPECT_EQ(ReadFile(disk_ / "f"), "1");
}

TEST_F(FlushTest, TellsWhatFailed) {
  ASSERT_NO_FATAL_FAILURE(FailOne("bad", "b"));
  ASSERT_NO_FATAL_FAILURE(Save("good", "a", "1"));
  ASSERT_OK_AND_ASSIGN(const auto all, Flush());
  ASSERT_EQ(all.failed_saves_size(), 1);
  EXPECT_EQ(all.failed_saves(0).name(), Name("bad"));
  EXPECT_EQ(ReasonOf(ErrorOf(all.failed_saves(0))), "STORAGE_FULL");
  ASSERT_OK_AND_ASSIGN(const auto other_job, Flush("jobs/k"));
  EXPECT_EQ(other_job.failed_saves_size(), 0);
  ASSERT_OK_AND_ASSIGN(const auto by_path, Flush("jobs/j", "b"));
  EXPECT_EQ(by_path.failed_saves_size(), 1);
  ASSERT_OK_AND_ASSIGN(const auto other_path, Flush("jobs/j", "a"));
  EXPECT_EQ(other_path.failed_saves_size(), 0);
}

TEST_F(FlushTest, NeedsAName) {
  EXPECT_THAT(Flush("nonsense"), IsError(StatusCode::kInvalidArgument, "INVALID_NAME"));
}

}  // namespace
}  // namespace ckptd
