// The life of a save, from BeginSave to its end.

#include "server/queue/save_queue.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cerrno>
#include <climits>
#include <filesystem>
#include <optional>
#include <thread>

#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

TEST_F(QueueTest, GoesThroughAllStatesInOrder) {
  ASSERT_OK_AND_ASSIGN(const auto begun, Begin(Request("s", disk_ / "a/b/f", 10)));
  Recorder recorder(queue_.get(), Name("s"));
  clock_.Advance(absl::Seconds(1));
  ASSERT_OK(queue_->WriteSave(Name("s"), 0, "0123456789"));
  ASSERT_OK(queue_->CommitSave(Name("s")));
  const v1::Save save = WaitForEnd("s");
  EXPECT_THAT(recorder.States(),
              ElementsAre("s STAGING", "s QUEUED", "s PERSISTING", "s SUCCEEDED"));
  EXPECT_EQ(ReadFile(disk_ / "a/b/f"), "0123456789");

  EXPECT_EQ(begun.save().state(), v1::Save::STAGING);
  EXPECT_EQ(save.name(), "jobs/j/saves/s");
  EXPECT_EQ(save.path(), disk_ / "a/b/f");
  EXPECT_EQ(save.backend(), "raw");
  EXPECT_EQ(save.client(), "host:1 test");
  EXPECT_EQ(save.total_bytes(), 10);
  EXPECT_EQ(save.staged_bytes(), 10);
  EXPECT_EQ(save.persisted_bytes(), 10);
  EXPECT_EQ(save.attempts(), 1);
  EXPECT_FALSE(save.has_error());
  EXPECT_EQ(save.commit_time().seconds() - save.create_time().seconds(), 1);
  EXPECT_EQ(save.end_time().seconds(), save.persist_time().seconds());

  const v1::QueueStatus status = queue_->GetStatus();
  EXPECT_EQ(status.succeeded_count(), 1);
  EXPECT_EQ(status.persisted_bytes(), 10);
  EXPECT_EQ(status.staging_count() + status.queued_count() + status.persisting_count(), 0);
  EXPECT_THAT(LeasedImages(), IsEmpty());
  EXPECT_EQ(pool_->GetUsage().free_bytes, 4096u) << "the image is not back in the pool";
}

TEST_F(QueueTest, ModeAndFoldersFollowTheUmask) {
  v1::BeginSaveRequest request = Request("s", disk_ / "a/f", 1);
  request.set_umask(027);
  ASSERT_OK(Begin(request));
  struct stat info = {};
  ASSERT_EQ(stat((disk_ / "a").c_str(), &info), 0) << "the folder is there when BeginSave returns";
  EXPECT_EQ(info.st_mode & 07777, 0750u);
  ASSERT_OK(queue_->CommitSave(Name("s")));
  WaitForEnd("s");
  ASSERT_EQ(stat((disk_ / "a/f").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0640u);
}

// The way of a client that shares memory: no WriteSave, straight into the image by its name.
TEST_F(QueueTest, TheImageIsTheFile) {
  v1::BeginSaveRequest request = Request("s", disk_ / "f.ckpt", 3);
  request.set_backend("torch");
  v1::TensorSpec* tensor = request.add_tensors();
  tensor->set_name("0");
  tensor->set_size_bytes(5);
  ASSERT_OK_AND_ASSIGN(const auto begun, Begin(request));
  struct stat info = {};
  ASSERT_EQ(stat(begun.image().path().c_str(), &info), 0);
  EXPECT_EQ(info.st_ino, begun.image().inode());
  EXPECT_EQ(info.st_size, begun.image().size_bytes());
  EXPECT_EQ(begun.save().total_bytes(), begun.image().size_bytes());
  ASSERT_EQ(begun.tensor_offsets_size(), 1);
  {
    const FileDescriptor file(posix_.get(), posix_->Open(begun.image().path(), O_RDWR, 0));
    EXPECT_EQ(posix_->Write(file.get(), "obj", 3, begun.object_offset()), 3);
    EXPECT_EQ(posix_->Write(file.get(), "hello", 5, begun.tensor_offsets(0)), 5);
  }
  ASSERT_OK(queue_->CommitSave(Name("s")));
  EXPECT_EQ(WaitForEnd("s").staged_bytes(), 0);
  const std::string file = ReadFile(disk_ / "f.ckpt");
  EXPECT_EQ(file.size(), static_cast<size_t>(begun.image().size_bytes()));
  EXPECT_EQ(file.substr(0, 4), "PK\x03\x04");
  EXPECT_EQ(file.substr(static_cast<size_t>(begun.tensor_offsets(0)), 5), "hello");
}

TEST_F(QueueTest, BeginAndCommitAreIdempotent) {
  const v1::BeginSaveRequest request = Request("s", disk_ / "f", 3);
  ASSERT_OK_AND_ASSIGN(const auto first, Begin(request));
  ASSERT_OK_AND_ASSIGN(const auto second, Begin(request));
  EXPECT_EQ(first.image().id(), second.image().id());
  EXPECT_EQ(first.image().path(), second.image().path());
  // A client that has lost its session repeats it under a new one.
  v1::BeginSaveRequest reopened = request;
  reopened.set_session_id(queue_->OpenSession("host:1 test"));
  ASSERT_OK_AND_ASSIGN(const auto third, Begin(reopened));
  EXPECT_EQ(first.image().id(), third.image().id());

  ASSERT_OK(queue_->WriteSave(Name("s"), 0, "abc"));
  ASSERT_OK(queue_->CommitSave(Name("s")));
  ASSERT_OK(queue_->CommitSave(Name("s")));
  WaitForEnd("s");
  ASSERT_OK_AND_ASSIGN(const auto committed, queue_->CommitSave(Name("s")));
  EXPECT_EQ(committed.save().state(), v1::Save::SUCCEEDED);
  ASSERT_OK_AND_ASSIGN(const auto after, Begin(request));
  EXPECT_EQ(after.save().state(), v1::Save::SUCCEEDED);
  EXPECT_FALSE(after.has_image());
  EXPECT_EQ(queue_->GetStatus().succeeded_count(), 1);
}

TEST_F(QueueTest, ANameIsOneSave) {
  ASSERT_OK(Begin(Request("s", disk_ / "f", 3)));
  for (const auto& other : {Request("s", disk_ / "g", 3), Request("s", disk_ / "f", 4)}) {
    EXPECT_THAT(Begin(other), IsError(StatusCode::kAlreadyExists, "SAVE_EXISTS"));
  }
  v1::BeginSaveRequest other = Request("s", disk_ / "f", 3);
  other.set_umask(0);
  EXPECT_THAT(Begin(other), IsError(StatusCode::kAlreadyExists, "SAVE_EXISTS"));
}

TEST_F(QueueTest, ARepeatedBeginWaitsForTheImageOfTheFirst) {
  Start(SaveQueue::Options(), 8192);
  ASSERT_OK(Begin(Request("holder", disk_ / "h", 8192)));
  uint64_t ids[2] = {};
  auto begin = [&](uint64_t* id) {
    const auto begun = Begin(Request("s", disk_ / "f", 8192));
    EXPECT_OK(begun);
    if (begun.ok()) *id = begun->image().id();
  };
  std::thread first([&] { begin(ids); });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  std::thread second([&] { begin(ids + 1); });
  ASSERT_OK(queue_->AbortSave(Name("holder")));
  first.join();
  second.join();
  EXPECT_NE(ids[0], 0u);
  EXPECT_EQ(ids[0], ids[1]);
}

TEST_F(QueueTest, ARepeatedBeginTakesOverFromAFirstThatGotNoMemory) {
  Start(SaveQueue::Options(), 8192);
  ASSERT_OK(Begin(Request("holder", disk_ / "h", 8192)));
  std::thread first([&] {
    EXPECT_THAT(
        queue_->BeginSave(Request("s", disk_ / "f", 8192), absl::Now() + absl::Milliseconds(100)),
        IsError(StatusCode::kDeadlineExceeded, "STAGING_FULL"));
  });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  absl::StatusOr<v1::BeginSaveResponse> begun;
  std::thread second([&] { begun = Begin(Request("s", disk_ / "f", 8192)); });
  first.join();
  ASSERT_OK(queue_->AbortSave(Name("holder")));
  second.join();
  ASSERT_OK(begun);
  EXPECT_EQ(begun->save().state(), v1::Save::STAGING);
  EXPECT_NE(begun->image().id(), 0u);
}

TEST_F(QueueTest, SavesToOnePathLandInOrder) {
  HoldSaves();
  Recorder recorder(queue_.get());
  for (int i = 1; i <= 5; ++i) {
    ASSERT_NO_FATAL_FAILURE(Save("s" + std::to_string(i), "f", "content " + std::to_string(i)));
  }
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_EQ(queue_->GetStatus().queued_count(), 4);
  EXPECT_EQ(queue_->GetStatus().persisting_count(), 1);
  for (int i = 1; i <= 5; ++i) {
    ASSERT_TRUE(gate_.WaitForArrivals(i));
    gate_.Let(1);
    EXPECT_EQ(WaitForEnd("s" + std::to_string(i)).state(), v1::Save::SUCCEEDED);
    EXPECT_EQ(ReadFile(disk_ / "f"), "content " + std::to_string(i));
  }
  std::vector<std::string> ends;
  for (const std::string& state : recorder.States()) {
    if (state.find("SUCCEEDED") != std::string::npos) ends.push_back(state);
  }
  EXPECT_THAT(ends, ElementsAre("s1 SUCCEEDED", "s2 SUCCEEDED", "s3 SUCCEEDED", "s4 SUCCEEDED",
                                "s5 SUCCEEDED"));
}

TEST_F(QueueTest, SavesToOtherPathsDoNotWait) {
  HoldSaves();
  for (int i = 1; i <= 5; ++i) {
    const std::string n = std::to_string(i);
    ASSERT_NO_FATAL_FAILURE(Save("s" + n, "f" + n, n));
  }
  ASSERT_TRUE(gate_.WaitForArrivals(2)) << "two are written at the same time";
  gate_.Open();
  for (int i = 1; i <= 5; ++i) {
    const std::string n = std::to_string(i);
    EXPECT_EQ(WaitForEnd("s" + n).state(), v1::Save::SUCCEEDED);
    EXPECT_EQ(ReadFile(disk_ / ("f" + n)), n);
  }
}

TEST_F(QueueTest, WriteSaveKeepsInsideTheImage) {
  ASSERT_OK(Begin(Request("s", disk_ / "f", 10)));
  for (const int64_t offset : {int64_t{-1}, int64_t{9}, int64_t{11}, INT64_MAX, INT64_MIN}) {
    EXPECT_THAT(queue_->WriteSave(Name("s"), offset, "ab"),
                IsError(StatusCode::kInvalidArgument, "INVALID_OFFSET"))
        << offset;
  }
  EXPECT_THAT(queue_->WriteSave(Name("s"), 0, "01234567890"),
              IsError(StatusCode::kInvalidArgument, "INVALID_OFFSET"));
  EXPECT_OK(queue_->WriteSave(Name("s"), 10, ""));
  EXPECT_OK(queue_->WriteSave(Name("s"), 8, "89"));
  EXPECT_THAT(queue_->CommitSave(Name("s")),
              IsError(StatusCode::kFailedPrecondition, "INCOMPLETE_SAVE"));
  EXPECT_OK(queue_->WriteSave(Name("s"), 0, "01234567"));
  EXPECT_OK(queue_->CommitSave(Name("s")));
  EXPECT_THAT(queue_->WriteSave(Name("s"), 0, "x"),
              IsError(StatusCode::kFailedPrecondition, "SAVE_NOT_STAGING"));
  WaitForEnd("s");
  EXPECT_EQ(ReadFile(disk_ / "f"), "0123456789");
}

TEST_F(QueueTest, CommitTellsWhatHasEndedOnce) {
  auto commit = [&](const std::string& id) {
    std::vector<std::string> ended;
    const auto committed = queue_->CommitSave(Name(id));
    EXPECT_OK(committed);
    if (!committed.ok()) return ended;
    for (const v1::Save& save : committed->ended_saves()) {
      ended.push_back(save.name() + " " + v1::Save::State_Name(save.state()));
    }
    return ended;
  };
  ASSERT_NO_FATAL_FAILURE(Stage("a", "a", "1"));
  ASSERT_NO_FATAL_FAILURE(Stage("b", "b", "2"));
  ASSERT_NO_FATAL_FAILURE(Stage("c", "c", "3"));
  EXPECT_THAT(commit("a"), IsEmpty());
  WaitForEnd("a");
  fs_.FailNth(FsOp::kAllocate, 1, ENOSPC);
  EXPECT_THAT(commit("b"), ElementsAre("jobs/j/saves/a SUCCEEDED"));
  WaitForEnd("b");

  v1::BeginSaveRequest request = Request("other", disk_ / "o", 1);
  request.set_session_id(queue_->OpenSession("another client"));
  ASSERT_OK(Begin(request));
  EXPECT_THAT(commit("other"), IsEmpty()) << "those are another session's";

  EXPECT_THAT(commit("c"), ElementsAre("jobs/j/saves/b FAILED"));
  WaitForEnd("c");
  EXPECT_THAT(commit("c"), ElementsAre("jobs/j/saves/c SUCCEEDED"));
  EXPECT_THAT(commit("c"), IsEmpty());
}

// ---- Giving way ------------------------------------------------------------------------------

// Saves stop at their last piece until gate_ lets them go on.
class NicenessTest : public QueueTest {
 protected:
  void StartWith(int crowd) {
    SaveQueue::Options options = NoRetry();
    options.persist_nice = 3;
    options.crowd = crowd;
    Start(options, 4 * kSize);
    fs_.SetBefore([this](FsCall& call) -> std::optional<int64_t> {
      if (call.op == FsOp::kDataSync && WhatIsAdded() != 0) return -EIO;
      if (call.op != FsOp::kWrite || call.length != kLastPiece) return std::nullopt;
      {
        absl::MutexLock lock(&mu_);
        found_.push_back(WhatIsAdded());
      }
      gate_.Pass();
      return std::nullopt;
    });
  }
  // How much nicer than the process the end of each save was that was written so far.
  std::vector<int> Found() {
    absl::MutexLock lock(&mu_);
    return found_;
  }
  int WhatIsAdded() const { return getpriority(PRIO_PROCESS, 0) - own_; }

  static constexpr size_t kLastPiece = 4096;
  static constexpr size_t kSize = (size_t{64} << 20) + kLastPiece;
  const std::string content_ = std::string(kSize, 'x');
  const int own_ = getpriority(PRIO_PROCESS, 0);

 private:
  absl::Mutex mu_;
  std::vector<int> found_ ABSL_GUARDED_BY(mu_);
};

TEST_F(NicenessTest, OnlyASaveWithoutOthersGivesWay) {
  StartWith(/*crowd=*/INT_MAX);
  ASSERT_NO_FATAL_FAILURE(Save("alone", "f", content_));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  ASSERT_NO_FATAL_FAILURE(Save("meanwhile", "g", content_));
  ASSERT_TRUE(gate_.WaitForArrivals(2));
  gate_.Open();
  WaitForEnd("alone");
  WaitForEnd("meanwhile");
  EXPECT_THAT(Found(), ElementsAre(3, 0));

  ASSERT_NO_FATAL_FAILURE(Stage("copied", "h", content_));
  ASSERT_NO_FATAL_FAILURE(Save("beside", "i", content_));
  WaitForEnd("beside");
  ASSERT_OK(queue_->CommitSave(Name("copied")));
  WaitForEnd("copied");
  EXPECT_THAT(Found(), ElementsAre(3, 0, 0, 3));
  for (const char* id : {"alone", "meanwhile", "beside", "copied"}) {
    EXPECT_EQ(Get(id).state(), v1::Save::SUCCEEDED) << "the sync gives no way: " << id;
  }
  EXPECT_EQ(WhatIsAdded(), 0);
}

TEST_F(NicenessTest, InACrowdNoneDoes) {
  StartWith(/*crowd=*/0);
  gate_.Open();
  for (const char* id : {"a", "b"}) {
    ASSERT_NO_FATAL_FAILURE(Save(id, id, content_));
    WaitForEnd(id);
  }
  EXPECT_THAT(Found(), ElementsAre(0, 0));
}

// ---- Failures --------------------------------------------------------------------------------

TEST_F(QueueTest, AFailureHasAReasonAndGivesTheImageBack) {
  struct Case {
    FsOp op;
    int error;
    const char* reason;
  };
  int i = 0;
  for (const Case& c :
       {Case{FsOp::kAllocate, ENOSPC, "STORAGE_FULL"}, Case{FsOp::kWrite, EIO, "STORAGE_ERROR"},
        Case{FsOp::kDataSync, EROFS, "READ_ONLY_STORAGE"}}) {
    WriteFile(disk_ / "f", "old");
    ASSERT_NO_FATAL_FAILURE(Stage("s" + std::to_string(++i), "f", "new"));
    fs_.FailAll(c.op, c.error);
    ASSERT_OK(queue_->CommitSave(Name("s" + std::to_string(i))));
    const v1::Save save = WaitForEnd("s" + std::to_string(i));
    fs_.Reset();
    EXPECT_EQ(save.state(), v1::Save::FAILED);
    EXPECT_EQ(ReasonOf(ErrorOf(save)), c.reason);
    EXPECT_THAT(ErrorOf(save), Says(disk_ / "f"));
    EXPECT_EQ(ReadFile(disk_ / "f"), "old");
    EXPECT_THAT(LeasedImages(), IsEmpty());
  }
  EXPECT_EQ(queue_->GetStatus().failed_count(), 3);
  EXPECT_EQ(pool_->GetUsage().free_bytes, pool_->GetUsage().used_bytes);
  ASSERT_NO_FATAL_FAILURE(Save("after", "f", "new"));
  EXPECT_EQ(WaitForEnd("after").state(), v1::Save::SUCCEEDED);
}

TEST_F(QueueTest, AParentThatBecomesAFileFailsTheSave) {
  ASSERT_NO_FATAL_FAILURE(Stage("s", "d/f", "new"));
  std::filesystem::remove(disk_ / "d");
  WriteFile(disk_ / "d", "a file");
  ASSERT_OK(queue_->CommitSave(Name("s")));
  const v1::Save save = WaitForEnd("s");
  EXPECT_EQ(save.state(), v1::Save::FAILED);
  EXPECT_THAT(ErrorOf(save), IsError(StatusCode::kFailedPrecondition, "NOT_A_DIRECTORY"));
  EXPECT_EQ(ReadFile(disk_ / "d"), "a file");
}

TEST_F(QueueTest, ATargetThatBecomesAFolderFailsTheSave) {
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", "new"));
  std::filesystem::create_directory(disk_ / "f");
  ASSERT_OK(queue_->CommitSave(Name("s")));
  EXPECT_THAT(ErrorOf(WaitForEnd("s")),
              IsError(StatusCode::kFailedPrecondition, "PATH_IS_DIRECTORY"));
  EXPECT_THAT(disk_.List(), ElementsAre("f"));
}

TEST_F(QueueTest, ABackendThatCannotSealFailsTheSave) {
  v1::BeginSaveRequest request = Request("s", disk_ / "f", 10);
  (*request.mutable_options())["trap"] = "seal";
  ASSERT_OK(Begin(request));
  ASSERT_OK(queue_->CommitSave(Name("s")));
  EXPECT_THAT(ErrorOf(WaitForEnd("s")), Says("cannot seal, as it was told"));
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(QueueTest, AFailureDoesNotHoldUpTheNextSaveToThePath) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", "2"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  fs_.FailNth(FsOp::kLink, 1, EIO);
  gate_.Open();
  EXPECT_EQ(WaitForEnd("a").state(), v1::Save::FAILED);
  EXPECT_EQ(WaitForEnd("b").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "f"), "2");
}

}  // namespace
}  // namespace ckptd
