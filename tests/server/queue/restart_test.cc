// What a queue leaves, by Stop or by its death, the next one goes on with.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/persist/names.h"
#include "server/queue/save_queue.h"
#include "server/staging/pool_dir.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

using RestartTest = QueueTest;

TEST_F(RestartTest, AcceptedSavesAndRemovalsGoOnInTheirOrder) {
  WriteFile(disk_ / "old", "old");
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", "2"));
  ASSERT_NO_FATAL_FAILURE(Save("c", "g", "3"));
  ASSERT_OK(Remove("old", /*wait=*/false));
  ASSERT_OK(Remove("g", /*wait=*/false));
  ASSERT_NO_FATAL_FAILURE(Save("d", "g", "4"));
  ASSERT_NO_FATAL_FAILURE(Stage("staging", "h", "5"));
  ASSERT_TRUE(gate_.WaitForArrivals(2));
  StopJammed();
  EXPECT_EQ(ReadFile(disk_ / "f"), "<none>");
  EXPECT_EQ(ReadFile(disk_ / "old"), "old");

  Restart();
  for (const char* id : {"a", "b", "c", "d"}) {
    EXPECT_EQ(WaitForEnd(id).state(), v1::Save::SUCCEEDED) << id;
  }
  ASSERT_OK(Flush());
  EXPECT_EQ(ReadFile(disk_ / "f"), "2");
  EXPECT_EQ(ReadFile(disk_ / "g"), "4");
  EXPECT_THAT(disk_.List(), ElementsAre("f", "g"));
  EXPECT_THAT(queue_->GetSave(Name("staging")), IsError(StatusCode::kNotFound, "SAVE_NOT_FOUND"));
  EXPECT_THAT(LeasedImages(), IsEmpty());
  EXPECT_THAT(ListDir(shm_ / ".notes"), IsEmpty());
}

TEST_F(RestartTest, TheHistoryIsKept) {
  ASSERT_NO_FATAL_FAILURE(Save("good", "f", "1"));
  WaitForEnd("good");
  fs_.FailNth(FsOp::kAllocate, 1, EROFS);
  ASSERT_NO_FATAL_FAILURE(Save("bad", "g", "2"));
  WaitForEnd("bad");
  ASSERT_NO_FATAL_FAILURE(Stage("aborted", "g", "2"));
  ASSERT_OK(queue_->AbortSave(Name("aborted")));
  const auto before = ListSaves(v1::ListSavesRequest());
  ASSERT_OK(before);
  ASSERT_THAT(before->saves(), SizeIs(3));
  Restart();
  const auto after = ListSaves(v1::ListSavesRequest());
  ASSERT_OK(after);
  EXPECT_EQ(after->DebugString(), before->DebugString());
  EXPECT_THAT(ErrorOf(Get("bad")), IsError(StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"));
  // New ones come after the old ones.
  ASSERT_NO_FATAL_FAILURE(Save("new", "f", "3"));
  EXPECT_EQ(ListSaves(v1::ListSavesRequest())->saves(0).name(), Name("new"));
}

TEST_F(RestartTest, TheHistoryHasItsBounds) {
  SaveQueue::Options options = NoRetry();
  options.history = 3;
  options.history_age = absl::Hours(1);
  Start(options);
  for (int i = 0; i < 5; ++i) {
    ASSERT_NO_FATAL_FAILURE(Save(absl::StrCat("s", i), "f", "1"));
    WaitForEnd(absl::StrCat("s", i));
  }
  EXPECT_TRUE(Eventually([&] { return journal_->Read()->saves.size() == 3; }));
  clock_.Advance(absl::Hours(2));
  Restart(options);
  EXPECT_THAT(ListSaves(v1::ListSavesRequest())->saves(), IsEmpty());
  EXPECT_THAT(journal_->Read()->saves, IsEmpty());
}

TEST_F(RestartTest, ABeginAndACommitMayBeRepeatedAcrossIt) {
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  const v1::BeginSaveRequest request = Request("s", disk_ / "f", 7);
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  StopJammed();
  Restart();
  v1::BeginSaveRequest again = request;
  again.set_session_id(session_);
  auto begun = Begin(again);
  ASSERT_OK(begun);
  EXPECT_NE(begun->save().state(), v1::Save::STAGING);
  EXPECT_OK(queue_->CommitSave(Name("s")));
  WaitForEnd("s");
  EXPECT_OK(Begin(again));
  again.set_path(disk_ / "other");
  EXPECT_THAT(Begin(again), IsError(StatusCode::kAlreadyExists, "SAVE_EXISTS"));
}

TEST_F(RestartTest, AnImageThatIsGoneIsALoudFailure) {
  WriteFile(disk_ / "f", "old");
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_NO_FATAL_FAILURE(Save("t", "g", "content"));
  ASSERT_TRUE(gate_.WaitForArrivals(2));
  StopJammed();
  // As after a reboot.
  StopAll();
  for (const std::string& name : LeasedImages()) std::filesystem::remove(shm_ / name);
  std::filesystem::remove_all(shm_ / ".notes");
  Restart();
  for (const char* id : {"s", "t"}) {
    EXPECT_EQ(Get(id).state(), v1::Save::FAILED);
    EXPECT_THAT(ErrorOf(Get(id)), IsError(StatusCode::kDataLoss, "IMAGE_LOST"));
  }
  EXPECT_THAT(ErrorOf(Get("s")), Says("restart of the machine"));
  EXPECT_EQ(ReadFile(disk_ / "f"), "old");
  Restart();
  EXPECT_EQ(Get("s").state(), v1::Save::FAILED);
  ASSERT_NO_FATAL_FAILURE(Save("u", "f", "new"));
  EXPECT_EQ(WaitForEnd("u").state(), v1::Save::SUCCEEDED);
}

TEST_F(RestartTest, AnImageOfAnotherSizeIsNotTaken) {
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  StopJammed();
  StopAll();
  ASSERT_THAT(LeasedImages(), SizeIs(1));
  std::filesystem::resize_file(shm_ / LeasedImages()[0], 3);
  Restart();
  EXPECT_THAT(ErrorOf(Get("s")), IsError(StatusCode::kDataLoss, "IMAGE_LOST"));
  EXPECT_THAT(LeasedImages(), IsEmpty());
}

TEST_F(RestartTest, ASaveThatCrashesTheDaemonIsQuarantined) {
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  StopJammed();
  const uint64_t number = journal_->Read()->saves[0].number;
  for (int crash = 1; crash <= 3; ++crash) {
    EXPECT_FALSE(Get("s").has_end_time()) << crash;
    StopAll();
    gate_.Close();
    Jam();
    Restart(NoRetry(), {number});
    if (crash < 3) {
      ASSERT_TRUE(Eventually([&] { return Get("s").state() == v1::Save::PERSISTING; }));
      StopJammed();
    }
  }
  EXPECT_EQ(Get("s").state(), v1::Save::FAILED);
  EXPECT_TRUE(Get("s").image_kept());
  EXPECT_THAT(ErrorOf(Get("s")), IsError(StatusCode::kInternal, "QUARANTINED"));
  fs_.Reset();
  Restart();
  EXPECT_TRUE(Get("s").image_kept()) << "for as long as nobody decides";
  EXPECT_EQ(ReadFile(disk_ / "f"), "<none>");

  v1::ExportSaveRequest request;
  request.set_name(Name("s"));
  request.set_path(disk_ / "rescued");
  ASSERT_OK(queue_->ExportSave(request));
  EXPECT_EQ(ReadFile(disk_ / "rescued"), "content");
  EXPECT_FALSE(Get("s").image_kept());
  EXPECT_THAT(LeasedImages(), IsEmpty());
}

TEST_F(RestartTest, WithoutAJournalImagesAreKeptForExport) {
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_NO_FATAL_FAILURE(Save("t", "g", "other"));
  ASSERT_TRUE(gate_.WaitForArrivals(2));
  StopJammed();
  StopAll();
  for (const std::string& name : state_.List()) std::filesystem::remove(state_ / name);
  const std::vector<std::string> images = LeasedImages();
  ASSERT_THAT(images, SizeIs(2));
  keep_images_ = true;
  Restart();
  ASSERT_OK(queue_->RestoreOrphans(images));
  for (const char* id : {"s", "t"}) {
    EXPECT_EQ(Get(id).state(), v1::Save::FAILED);
    EXPECT_THAT(ErrorOf(Get(id)), IsError(StatusCode::kDataLoss, "JOURNAL_LOST"));
    EXPECT_TRUE(Get(id).image_kept());
  }
  EXPECT_THAT(disk_.List(), IsEmpty());
  v1::ExportSaveRequest request;
  request.set_name(Name("s"));
  request.set_path(disk_ / "rescued");
  ASSERT_OK(queue_->ExportSave(request));
  EXPECT_EQ(ReadFile(disk_ / "rescued"), "content");
  // The other one is given up, and then its memory is free.
  ASSERT_OK(queue_->CancelSave(Name("t")));
  EXPECT_FALSE(Get("t").image_kept());
  EXPECT_EQ(Get("t").state(), v1::Save::FAILED);
  EXPECT_THAT(LeasedImages(), IsEmpty());
}

TEST_F(RestartTest, LeftoversBesideTheTargetGoAndNothingElse) {
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  StopJammed();
  const std::string ours = TempPrefix(journal_->id()) + "01234567";
  const std::string foreign = TempPrefix("fedcba9876543210") + "01234567";
  WriteFile(disk_ / ours, "x");
  WriteFile(disk_ / foreign, "x");
  Restart();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_THAT(disk_.List(), ElementsAre(foreign, "f"));
}

TEST_F(RestartTest, LeftoversGoThoughTheirSaveHasNoTurnAnyMore) {
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("first", "f", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("cancelled", "f", "2"));
  ASSERT_NO_FATAL_FAILURE(Save("lost", "sub/g", "3"));
  ASSERT_TRUE(gate_.WaitForArrivals(2));
  StopJammed();
  const std::string name = TempPrefix(journal_->id()) + "01234567";
  const std::string image = journal_->Read()->saves[2].image;
  StopAll();
  std::filesystem::remove(shm_ / image);
  gate_.Close();
  Jam();
  WriteFile(disk_ / ("sub/" + name), "x");
  Restart();
  EXPECT_THAT(ErrorOf(Get("lost")), IsError(StatusCode::kDataLoss, "IMAGE_LOST"));
  EXPECT_TRUE(Eventually([&] { return ListDir(disk_ / "sub").empty(); }));
  ASSERT_TRUE(gate_.WaitForArrivals(3)) << "the first one's worker has looked already";
  WriteFile(disk_ / name, "x");
  ASSERT_OK(queue_->CancelSave(Name("cancelled")));
  EXPECT_TRUE(Eventually([&] { return disk_.List() == std::vector<std::string>{"sub"}; }));
  gate_.Open();
  EXPECT_EQ(WaitForEnd("first").state(), v1::Save::SUCCEEDED);
}

TEST_F(RestartTest, AFolderThatCouldNotBeReadIsLookedAtAgain) {
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  StopJammed();
  WriteFile(disk_ / (TempPrefix(journal_->id()) + "01234567"), "x");
  std::atomic<bool> failed{false};
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    if (call.op != FsOp::kList || !absl::StartsWith(call.path, disk_.path())) return std::nullopt;
    if (failed.exchange(true)) return std::nullopt;
    return -EMFILE;
  });
  Restart();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_TRUE(Eventually([&] { return disk_.List() == std::vector<std::string>{"f"}; }));
}

TEST_F(RestartTest, WhatAnotherWorkerIsWritingIsNoLeftover) {
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("t", "g", "2"));
  ASSERT_TRUE(gate_.WaitForArrivals(2));
  StopJammed();
  // No unnamed files. The first worker has its file when the second one looks for leftovers, and
  // goes on with it when the second one has looked.
  Gate opened;
  std::atomic<int> looks{0};
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    if (!absl::StartsWith(call.path, disk_.path())) return std::nullopt;
    if (call.op == FsOp::kOpen && (call.flags & O_TMPFILE) == O_TMPFILE) return -EOPNOTSUPP;
    if (call.op == FsOp::kList && ++looks == 2) EXPECT_TRUE(opened.WaitForArrivals(1));
    if (call.op == FsOp::kRename) opened.Pass();
    return std::nullopt;
  });
  Restart();
  EXPECT_TRUE(opened.WaitForArrivals(2));
  opened.Open();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(WaitForEnd("t").state(), v1::Save::SUCCEEDED);
  EXPECT_THAT(disk_.List(), ElementsAre("f", "g"));
}

TEST_F(RestartTest, AFailedRemovalIsToldByTheNextDaemonOnce) {
  WriteFile(disk_ / "old", "old");
  fs_.FailAll(FsOp::kUnlink, EROFS);
  ASSERT_OK(Remove("old", /*wait=*/false));
  EXPECT_TRUE(Eventually([&] {
    auto contents = journal_->Read();
    return contents->removes.size() == 1 && contents->removes[0].error.has_value();
  }));
  fs_.Reset();
  Restart();
  auto flushed = Flush("jobs/j");
  ASSERT_OK(flushed);
  ASSERT_EQ(flushed->failed_removals_size(), 1);
  EXPECT_EQ(flushed->failed_removals(0).path(), disk_ / "old");
  Restart();
  EXPECT_EQ(Flush("jobs/j")->failed_removals_size(), 0);
}

TEST_F(RestartTest, ARemovalStillKnowsThatTheSaveBeforeItFailed) {
  WriteFile(disk_ / "old", "old");
  fs_.FailNth(FsOp::kAllocate, 1, EROFS);
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "x"));
  WaitForEnd("s");
  fs_.SetBefore([this](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kLinkStat) gate_.Pass();
    return std::nullopt;
  });
  StopAll();
  // A removal that was accepted and not begun.
  {
    auto journal = Journal::Open(posix_.get(), state_ / "journal.db");
    ASSERT_OK(journal);
    Journal::RemoveEntry entry;
    entry.seq = 100;
    entry.job = "j";
    entry.path = entry.target = disk_ / "old";
    entry.newest_save = Name("s");
    ASSERT_OK((*journal)->PutRemove(entry));
  }
  gate_.Open();
  Restart();
  auto flushed = Flush("jobs/j");
  ASSERT_OK(flushed);
  ASSERT_EQ(flushed->failed_removals_size(), 1);
  EXPECT_THAT(FromRpc(flushed->failed_removals(0).error()),
              IsError(StatusCode::kFailedPrecondition, "SAVE_NOT_DURABLE"));
  EXPECT_EQ(ReadFile(disk_ / "old"), "old");
}

TEST_F(RestartTest, ASmallerBudgetStillHoldsWhatWasAccepted) {
  Jam();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", std::string(100000, 'x')));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  StopJammed();
  budget_ = 8192;
  Restart();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  ASSERT_NO_FATAL_FAILURE(Save("t", "f", "small"));
  EXPECT_EQ(WaitForEnd("t").state(), v1::Save::SUCCEEDED);
}

}  // namespace
}  // namespace ckptd
