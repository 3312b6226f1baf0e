// Errors of the storage: what may pass is tried again, what will not is the end.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "server/queue/save_queue.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::IsEmpty;

class RetryTest : public QueueTest {
 protected:
  // Never gives up.
  void SetUp() override { Start(Patient()); }
  static SaveQueue::Options Patient() {
    SaveQueue::Options options;
    options.retry_timeout = absl::InfiniteDuration();
    return options;
  }

  // Restarts the queue with a journal in which `sql` was run.
  void ChangeJournal(const std::string& sql) {
    StopAll();
    {
      auto database = SqlDatabase::Open(state_ / "journal.db");
      ASSERT_OK(database);
      ASSERT_OK((*database)->Execute(sql));
    }
    Restart(Patient());
  }

  // Lets the clock go on until `condition` holds.
  bool Later(const std::function<bool()>& condition) {
    return Eventually([&] {
      if (condition()) return true;
      clock_.Advance(absl::Milliseconds(100));
      return false;
    });
  }
};

TEST_F(RetryTest, AnErrorThatPassesIsTriedAgainAndSaidMeanwhile) {
  for (const int error : {ENOSPC, EIO, EMFILE, ENOMEM, EINTR, ESTALE}) {
    fs_.Reset();
    fs_.FailAll(FsOp::kAllocate, error);
    const std::string id = "s" + std::to_string(error);
    ASSERT_NO_FATAL_FAILURE(Save(id, "f", "content"));
    ASSERT_TRUE(Later([&] { return Get(id).attempts() >= 3; })) << error;
    ASSERT_TRUE(Later([&] { return Get(id).has_error(); })) << error;
    EXPECT_EQ(Get(id).state(), v1::Save::PERSISTING) << error;
    EXPECT_THAT(ErrorOf(Get(id)), Says("cannot allocate")) << error;
    fs_.Reset();
    ASSERT_TRUE(Later([&] { return Get(id).has_end_time(); })) << error;
    EXPECT_EQ(Get(id).state(), v1::Save::SUCCEEDED) << error;
    EXPECT_FALSE(Get(id).has_error()) << error;
    EXPECT_EQ(ReadFile(disk_ / "f"), "content");
  }
}

TEST_F(RetryTest, GivesUpInTheEnd) {
  const SaveQueue::Options options;
  Start(options);
  fs_.FailAll(FsOp::kAllocate, ENOSPC);
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", "content"));
  Recorder recorder(queue_.get(), Name("s"));
  ASSERT_OK(queue_->CommitSave(Name("s")));
  const absl::Duration start = clock_.Uptime();
  // One longest delay for each attempt. It is told when it begins, and when it has failed.
  for (size_t told = 4; !Get("s").has_end_time(); told += 2) {
    ASSERT_TRUE(recorder.WaitUntil([&](const std::vector<v1::Save>& saves) {
      return saves.size() == told || saves.back().has_end_time();
    })) << told;
    if (!Get("s").has_end_time()) clock_.Advance(options.max_retry_delay);
  }
  EXPECT_EQ(Get("s").state(), v1::Save::FAILED);
  EXPECT_THAT(ErrorOf(Get("s")), IsError(StatusCode::kResourceExhausted, "STORAGE_FULL"));
  EXPECT_GE(clock_.Uptime() - start, options.retry_timeout - options.max_retry_delay);
  EXPECT_GE(Get("s").attempts(), 6) << "30 s of 5 s each";
  EXPECT_THAT(LeasedImages(), IsEmpty());
}

TEST_F(RetryTest, WhatWillNotPassIsTheEndAtOnce) {
  for (const int error : {EROFS, ENOTDIR, EACCES, EPERM, EISDIR, ENAMETOOLONG}) {
    fs_.Reset();
    fs_.FailAll(FsOp::kAllocate, error);
    const std::string id = "s" + std::to_string(error);
    ASSERT_NO_FATAL_FAILURE(Save(id, "f", "content"));
    EXPECT_EQ(WaitForEnd(id).state(), v1::Save::FAILED) << error;
    EXPECT_EQ(Get(id).attempts(), 1) << error;
  }
}

TEST_F(RetryTest, AClockThatIsSetChangesNothing) {
  fs_.FailAll(FsOp::kAllocate, EIO);
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_TRUE(Eventually([&] { return Get("s").has_error(); }));
  clock_.Jump(absl::Hours(24 * 365));
  ASSERT_TRUE(Later([&] { return Get("s").attempts() == 2; }));
  EXPECT_EQ(Get("s").state(), v1::Save::PERSISTING);
  clock_.Jump(-absl::Hours(24 * 365 * 2));
  fs_.Reset();
  ASSERT_TRUE(Later([&] { return Get("s").has_end_time(); }));
  EXPECT_EQ(Get("s").state(), v1::Save::SUCCEEDED);
}

TEST_F(RetryTest, OneThatWaitsHoldsUpNoOtherPath) {
  fs_.FailNth(FsOp::kAllocate, 1, EIO);
  ASSERT_NO_FATAL_FAILURE(Save("waits", "f", "1"));
  ASSERT_TRUE(Eventually([&] { return Get("waits").has_error(); }));
  ASSERT_NO_FATAL_FAILURE(Save("same", "f", "2"));
  ASSERT_NO_FATAL_FAILURE(Save("other", "g", "3"));
  EXPECT_EQ(WaitForEnd("other").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(Get("same").state(), v1::Save::QUEUED);
  ASSERT_TRUE(Later([&] { return Get("same").has_end_time(); }));
  EXPECT_EQ(Get("waits").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "f"), "2");
}

TEST_F(RetryTest, CanBeCancelledBetweenTwoAttempts) {
  fs_.FailAll(FsOp::kAllocate, EIO);
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_TRUE(Eventually([&] { return Get("s").has_error(); }));
  ASSERT_OK(queue_->CancelSave(Name("s")));
  EXPECT_EQ(Get("s").state(), v1::Save::CANCELLED);
  EXPECT_THAT(LeasedImages(), IsEmpty());
}

TEST_F(RetryTest, ARemovalIsTriedAgain) {
  WriteFile(disk_ / "f", "old");
  fs_.FailAll(FsOp::kUnlink, EIO);
  ASSERT_OK(Remove("f", /*wait=*/false));
  ASSERT_TRUE(Later([&] { return fs_.Count(FsOp::kUnlink) >= 3; }));
  fs_.Reset();
  ASSERT_TRUE(Later([&] { return disk_.List().empty(); }));
  EXPECT_OK(Flush());
}

TEST_F(RetryTest, AStorageThatHangsHoldsUpNeitherTheTrainerNorOtherDevices) {
  SaveQueue::Options options = Patient();
  options.target_patience = absl::Milliseconds(500);
  Start(options);
  TempDir other(TempDir::Place::kMemory);
  // As if all that is on the disk hung.
  const std::string hung = disk_.path();
  fs_.SetBefore([this, hung](FsCall& call) -> std::optional<int64_t> {
    if (call.path.rfind(hung, 0) == 0) gate_.Pass();
    return std::nullopt;
  });
  ASSERT_NO_FATAL_FAILURE(Save("hangs1", "a", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("hangs2", "b", "2"));
  ASSERT_NO_FATAL_FAILURE(Save("hangs3", "c", "3"));
  for (int i = 0; i < 5; ++i) {
    const std::string id = "other" + std::to_string(i);
    ASSERT_OK(Begin(Request(id, other / id, 1)));
    ASSERT_OK(queue_->WriteSave(Name(id), 0, "x"));
    ASSERT_OK(queue_->CommitSave(Name(id)));
    EXPECT_EQ(WaitForEnd(id).state(), v1::Save::SUCCEEDED);
  }
  EXPECT_FALSE(Get("hangs1").has_end_time());
  gate_.Open();
  for (const char* id : {"hangs1", "hangs2", "hangs3"}) {
    EXPECT_EQ(WaitForEnd(id).state(), v1::Save::SUCCEEDED);
  }
  EXPECT_EQ(ReadFile(disk_ / "c"), "3");
}

TEST_F(RetryTest, AnEndThatCannotBeWrittenDownIsTriedAgainForEver) {
  ChangeJournal(
      "CREATE TRIGGER sabotage BEFORE INSERT ON saves WHEN NEW.ended > 0 "
      "BEGIN SELECT RAISE(ABORT, 'no end'); END");
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_TRUE(Eventually([&] { return Get("s").has_error(); }));
  EXPECT_EQ(ReadFile(disk_ / "f"), "content");
  for (int i = 0; i < 10; ++i) clock_.Advance(absl::Hours(1));
  EXPECT_THAT(ErrorOf(Get("s")), Says("no end"));
  EXPECT_EQ(Get("s").state(), v1::Save::PERSISTING);
  EXPECT_THAT(LeasedImages(), testing::SizeIs(1)) << "it may have to be done again";
  ChangeJournal("DROP TRIGGER sabotage");
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
}

TEST_F(RetryTest, WhatIsDurableIsNotCancelled) {
  ChangeJournal(
      "CREATE TRIGGER sabotage BEFORE INSERT ON saves "
      "WHEN NEW.ended > 0 AND instr(NEW.save, CAST('CANCELLED' AS BLOB)) = 0 "
      "BEGIN SELECT RAISE(ABORT, 'no other end'); END");
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_TRUE(Eventually([&] { return Get("s").has_error(); }));
  auto save = queue_->CancelSave(Name("s"));
  ASSERT_OK(save);
  EXPECT_EQ(save->state(), v1::Save::PERSISTING);
  ChangeJournal("DROP TRIGGER sabotage");
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
}

TEST_F(RetryTest, ASaveThatCannotBeWrittenDownIsNotAccepted) {
  ChangeJournal(
      "CREATE TRIGGER sabotage BEFORE INSERT ON saves WHEN NEW.ended = 0 "
      "BEGIN SELECT RAISE(ABORT, 'no place'); END;"
      "CREATE TRIGGER sabotage2 BEFORE INSERT ON removes "
      "BEGIN SELECT RAISE(ABORT, 'no place'); END");
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", "content"));
  EXPECT_THAT(queue_->CommitSave(Name("s")), IsError(StatusCode::kInternal, "JOURNAL_ERROR"));
  EXPECT_EQ(Get("s").state(), v1::Save::STAGING);
  WriteFile(disk_ / "old", "old");
  EXPECT_THAT(Remove("old", true), IsError(StatusCode::kInternal, "JOURNAL_ERROR"));
  EXPECT_EQ(ReadFile(disk_ / "old"), "old");
  ASSERT_OK(queue_->AbortSave(Name("s")));
  EXPECT_THAT(LeasedImages(), IsEmpty());
  ChangeJournal("DROP TRIGGER sabotage; DROP TRIGGER sabotage2");
  ASSERT_NO_FATAL_FAILURE(Save("t", "f", "content"));
  EXPECT_EQ(WaitForEnd("t").state(), v1::Save::SUCCEEDED);
}

}  // namespace
}  // namespace ckptd
