// Loads among the saves.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <thread>

#include "server/queue/save_queue.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;

class LoadTest : public QueueTest {
 protected:
  std::string ReadAll(const std::string& load_id) {
    std::string content;
    for (;;) {
      auto data = queue_->ReadLoad(load_id, static_cast<int64_t>(content.size()), 4);
      EXPECT_OK(data);
      if (!data.ok() || data->empty()) return content;
      content += *data;
    }
  }
};

TEST_F(LoadTest, GivesTheFileByItsNumbers) {
  WriteFile(disk_ / "f", "0123456789");
  ASSERT_OK_AND_ASSIGN(const auto load, Load("f"));
  struct stat info = {};
  ASSERT_EQ(posix_->LinkStat(disk_ / "f", &info), 0);
  EXPECT_EQ(load.device(), info.st_dev);
  EXPECT_EQ(load.inode(), info.st_ino);
  EXPECT_EQ(load.size_bytes(), 10);
  EXPECT_EQ(ReadAll(load.load_id()), "0123456789");
  ASSERT_OK_AND_ASSIGN(const std::string part, queue_->ReadLoad(load.load_id(), 7, 100));
  EXPECT_EQ(part, "789");
  ASSERT_OK_AND_ASSIGN(const std::string beyond, queue_->ReadLoad(load.load_id(), 1000, 100));
  EXPECT_EQ(beyond, "");
  EXPECT_THAT(queue_->ReadLoad(load.load_id(), -1, 1),
              IsError(StatusCode::kInvalidArgument, "INVALID_OFFSET"));
  queue_->EndLoad(load.load_id());
  queue_->EndLoad(load.load_id());
  EXPECT_THAT(queue_->ReadLoad(load.load_id(), 0, 1),
              IsError(StatusCode::kNotFound, "LOAD_NOT_FOUND"));
}

TEST_F(LoadTest, WaitsForWhatIsPendingOnThePath) {
  WriteFile(disk_ / "f", "old");
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", "the new content"));
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", "the newest content"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_THAT(Load("f", absl::Now()), IsError(StatusCode::kDeadlineExceeded, "PATH_BUSY"));
  std::string content;
  std::thread loader([&] {
    auto load = Load("f");
    ASSERT_OK(load);
    EXPECT_EQ(Get("b").state(), v1::Save::SUCCEEDED);
    content = ReadAll(load->load_id());
  });
  gate_.Open();
  loader.join();
  EXPECT_EQ(content, "the newest content");
}

TEST_F(LoadTest, HoldsThePathButNotTheOthers) {
  WriteFile(disk_ / "f", "old");
  ASSERT_OK_AND_ASSIGN(const auto load, Load("f"));
  ASSERT_OK_AND_ASSIGN(const auto shared, Load("f"));
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "new"));
  ASSERT_NO_FATAL_FAILURE(Save("t", "g", "other"));
  EXPECT_EQ(WaitForEnd("t").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(Get("s").state(), v1::Save::QUEUED);
  queue_->EndLoad(shared.load_id());
  EXPECT_EQ(Get("s").state(), v1::Save::QUEUED);
  EXPECT_EQ(ReadAll(load.load_id()), "old");
  queue_->EndLoad(load.load_id());
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "f"), "new");
}

TEST_F(LoadTest, EndsWithItsClient) {
  WriteFile(disk_ / "f", "old");
  ASSERT_OK_AND_ASSIGN(const auto load, Load("f"));
  const std::string mine = session_;
  session_ = queue_->OpenSession("another client");
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "new"));
  EXPECT_EQ(Get("s").state(), v1::Save::QUEUED);
  queue_->CloseSession(mine);
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_THAT(queue_->ReadLoad(load.load_id(), 0, 1),
              IsError(StatusCode::kNotFound, "LOAD_NOT_FOUND"));
}

TEST_F(LoadTest, AWaitingLoadEndsWithItsClient) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "new"));
  v1::BeginLoadRequest request;
  request.set_session_id(queue_->OpenSession("a client that dies"));
  request.set_path(disk_ / "f");
  absl::Status status;
  std::thread loader([&] { status = queue_->BeginLoad(request, Soon()).status(); });
  queue_->CloseSession(request.session_id());
  loader.join();
  EXPECT_FALSE(status.ok());
  gate_.Open();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
}

TEST_F(LoadTest, OneThatGaveUpLeavesNothingDangling) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", "1"));
  for (int i = 0; i < 10; ++i) {
    EXPECT_THAT(Load("f", absl::Now()), IsError(StatusCode::kDeadlineExceeded, "PATH_BUSY"));
  }
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", "2"));
  gate_.Open();
  EXPECT_EQ(WaitForEnd("b").state(), v1::Save::SUCCEEDED);
  ASSERT_OK_AND_ASSIGN(const auto load, Load("f"));
  EXPECT_EQ(ReadAll(load.load_id()), "2");
}

TEST_F(LoadTest, ThroughASymlinkWaitsForTheFileItLeadsTo) {
  WriteFile(disk_ / "real", "old");
  std::filesystem::create_symlink("real", disk_ / "last.ckpt");
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "real", "the new content"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_THAT(Load("last.ckpt", absl::Now()), IsError(StatusCode::kDeadlineExceeded, "PATH_BUSY"));
  gate_.Open();
  ASSERT_OK_AND_ASSIGN(const auto load, Load("last.ckpt"));
  EXPECT_EQ(ReadAll(load.load_id()), "the new content");
}

TEST_F(LoadTest, AMissingFileIsNamed) {
  const auto load = Load("none");
  EXPECT_THAT(load, IsError(StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND"));
  EXPECT_EQ(std::string(load.status().message()), "Checkpoint file not found: " + (disk_ / "none"));
  EXPECT_THAT(Load("no/such/folder"), IsError(StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND"));
}

TEST_F(LoadTest, AMissingFileTellsWhyItsSaveFailed) {
  fs_.FailNth(FsOp::kAllocate, 1, ENOSPC);
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "x"));
  WaitForEnd("s");
  const auto load = Load("f");
  EXPECT_THAT(load, IsError(StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND"));
  EXPECT_THAT(load, Says("jobs/j/saves/s, failed: "));
  EXPECT_THAT(load, Says("No space left"));
}

TEST_F(LoadTest, AFolderIsNoFile) {
  std::filesystem::create_directory(disk_ / "folder");
  EXPECT_THAT(Load("folder"), IsError(StatusCode::kFailedPrecondition, "PATH_IS_DIRECTORY"));
  // The path is not held after that.
  EXPECT_OK(Remove("folder", /*wait=*/true));
}

TEST_F(LoadTest, AnErrorOfTheStorageIsPassedOn) {
  WriteFile(disk_ / "f", "x");
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kOpen && call.path == disk_ / "f") return -EACCES;
    return std::nullopt;
  });
  EXPECT_THAT(Load("f"), IsError(StatusCode::kPermissionDenied, "PERMISSION_DENIED"));
  fs_.SetBefore(nullptr);
  ASSERT_OK_AND_ASSIGN(const auto load, Load("f"));
  fs_.FailNth(FsOp::kRead, 1, EIO);
  EXPECT_THAT(queue_->ReadLoad(load.load_id(), 0, 1),
              IsError(StatusCode::kInternal, "STORAGE_ERROR"));
}

// ---- Memory that is lent

class LendingLoadTest : public LoadTest {
 protected:
  static constexpr size_t kSize = size_t{2} << 20;

  void SaveLarge(const std::string& id, char fill) {
    ASSERT_NO_FATAL_FAILURE(Save(id, "f", std::string(kSize, fill)));
    ASSERT_EQ(WaitForEnd(id).state(), v1::Save::SUCCEEDED);
  }
  v1::BeginLoadResponse Borrow() {
    v1::BeginLoadRequest request;
    request.set_session_id(session_);
    request.set_path(disk_ / "f");
    request.set_lend(true);
    auto load = queue_->BeginLoad(request, Soon());
    EXPECT_OK(load);
    return load.ok() ? *std::move(load) : v1::BeginLoadResponse();
  }
  // Opens the image as a client does, and ends the load.
  FileDescriptor Take(const v1::BeginLoadResponse& load) {
    FileDescriptor fd = OpenAndLock(load.image().path());
    queue_->EndLoad(load.load_id());
    return fd;
  }
  FileDescriptor OpenAndLock(const std::string& path) {
    FileDescriptor fd(posix_.get(), open(path.c_str(), O_RDWR | O_CLOEXEC));
    EXPECT_TRUE(fd) << path;
    EXPECT_EQ(flock(fd.get(), LOCK_SH | LOCK_NB), 0);
    return fd;
  }
  uint64_t lent_bytes() { return pool_->GetUsage().lent_bytes; }
};

TEST_F(LendingLoadTest, OfWhatIsInMemoryAndBack) {
  ASSERT_NO_FATAL_FAILURE(SaveLarge("a", 'a'));
  const v1::BeginLoadResponse load = Borrow();
  EXPECT_TRUE(load.image_filled());
  FileDescriptor fd = Take(load);
  char first = 0;
  EXPECT_EQ(pread(fd.get(), &first, 1, 0), 1);
  EXPECT_EQ(first, 'a');
  EXPECT_GE(lent_bytes(), kSize);
  // What its borrower does with it is nobody else's.
  EXPECT_EQ(pwrite(fd.get(), "z", 1, 0), 1);
  ASSERT_OK_AND_ASSIGN(const auto again, Load("f"));
  ASSERT_OK_AND_ASSIGN(const std::string stored, queue_->ReadLoad(again.load_id(), 0, 1));
  EXPECT_EQ(stored, "a");
  fd = FileDescriptor();
  pool_->Reclaim();
  EXPECT_EQ(lent_bytes(), 0);
}

TEST_F(LendingLoadTest, EmptyWhereNoImageHasTheFile) {
  WriteFile(disk_ / "f", std::string(kSize, 'x'));
  const v1::BeginLoadResponse load = Borrow();
  EXPECT_TRUE(load.has_image());
  EXPECT_FALSE(load.image_filled());
  queue_->EndLoad(load.load_id());
}

TEST_F(LendingLoadTest, ACopyWhereOthersMayLoadTheSame) {
  ASSERT_NO_FATAL_FAILURE(SaveLarge("a", 'a'));
  queue_->OpenSession("another");
  const FileDescriptor first = Take(Borrow());
  const v1::BeginLoadResponse second = Borrow();
  EXPECT_TRUE(second.image_filled());
  EXPECT_EQ(pwrite(first.get(), "z", 1, 0), 1);
  const FileDescriptor copy = Take(second);
  char byte = 0;
  EXPECT_EQ(pread(copy.get(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, 'a');
}

TEST_F(LendingLoadTest, NotOfSmallFilesAndNotUnasked) {
  ASSERT_NO_FATAL_FAILURE(Save("a", "f", "small"));
  ASSERT_EQ(WaitForEnd("a").state(), v1::Save::SUCCEEDED);
  const v1::BeginLoadResponse small = Borrow();
  EXPECT_FALSE(small.has_image());
  queue_->EndLoad(small.load_id());
  ASSERT_NO_FATAL_FAILURE(SaveLarge("b", 'b'));
  ASSERT_OK_AND_ASSIGN(const auto load, Load("f"));
  EXPECT_FALSE(load.has_image());
}

// Two owners of one image would be a save that changes what a trainer has loaded.
TEST_F(LendingLoadTest, AClientThatIsGoneOwnsItAloneAllTheSame) {
  ASSERT_NO_FATAL_FAILURE(SaveLarge("a", 'a'));
  const v1::BeginLoadResponse load = Borrow();
  const FileDescriptor fd = OpenAndLock(load.image().path());
  queue_->CloseSession(session_);
  session_ = queue_->OpenSession("next");
  ASSERT_NO_FATAL_FAILURE(SaveLarge("b", 'b'));
  ASSERT_NO_FATAL_FAILURE(SaveLarge("c", 'c'));
  char byte = 0;
  EXPECT_EQ(pread(fd.get(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, 'a');
}

TEST_F(LoadTest, NeedsASession) {
  session_ = "nobody";
  EXPECT_THAT(Load("f"), IsError(StatusCode::kNotFound, "SESSION_NOT_FOUND"));
}

}  // namespace
}  // namespace ckptd
