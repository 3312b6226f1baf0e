// Saves whose path is there when CommitSave answers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fcntl.h>

#include <cerrno>
#include <filesystem>
#include <thread>

#include "server/queue/save_queue.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr char kContent[] = "content";

class VisibleTest : public QueueTest {
 protected:
  v1::BeginSaveRequest Visible(const std::string& id, const std::string& file) {
    v1::BeginSaveRequest request = Request(id, disk_ / file, sizeof(kContent) - 1);
    request.set_visible(v1::BeginSaveRequest::AT_RETURN);
    return request;
  }
  // Fills the image of a save as a client does that has it mapped. Returns where that is.
  std::string StageMapped(const v1::BeginSaveRequest& request) {
    const auto begun = Begin(request);
    EXPECT_OK(begun);
    if (!begun.ok()) return "";
    const FileDescriptor image(posix_.get(), posix_->Open(begun->image().path(), O_RDWR, 0));
    EXPECT_EQ(posix_->Write(image.get(), kContent, sizeof(kContent) - 1, 0),
              static_cast<ssize_t>(sizeof(kContent) - 1));
    return begun->image().path();
  }
  std::string SaveMapped(const std::string& id, const std::string& file) {
    std::string image = StageMapped(Visible(id, file));
    EXPECT_OK(queue_->CommitSave(Name(id)));
    return image;
  }
  bool IsLink(const std::string& file) {
    return std::filesystem::is_symlink(std::filesystem::symlink_status(disk_ / file));
  }
  // A worker has this save, and another to "f" waits for it.
  void HoldAnother() {
    HoldSaves();
    ASSERT_NO_FATAL_FAILURE(Save("first", "f", "first"));
    ASSERT_TRUE(gate_.WaitForArrivals(1));
  }
};

TEST_F(VisibleTest, IsALinkUntilTheFileReplacesIt) {
  HoldSaves();
  const std::string image = SaveMapped("s", "f");
  EXPECT_EQ(std::filesystem::read_symlink(disk_ / "f"), image);
  EXPECT_EQ(ReadFile(disk_ / "f"), kContent);
  EXPECT_THAT(disk_.List(), ElementsAre("f"));
  gate_.Open();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_FALSE(IsLink("f"));
  EXPECT_EQ(ReadFile(disk_ / "f"), kContent);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u) << "whoever has opened it may still read it";
}

TEST_F(VisibleTest, APathThatExistsKeepsItsFile) {
  WriteFile(disk_ / "f", "old");
  HoldSaves();
  SaveMapped("s", "f");
  EXPECT_FALSE(IsLink("f"));
  EXPECT_EQ(ReadFile(disk_ / "f"), "old");
  gate_.Open();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "f"), kContent);
  EXPECT_EQ(pool_->GetUsage().free_bytes, 4096u) << "nobody has seen it: the memory is reused";
}

TEST_F(VisibleTest, WhoDoesNotSeeThePoolHasNoLink) {
  HoldSaves();
  ASSERT_OK(Begin(Visible("s", "f")));
  ASSERT_OK(queue_->WriteSave(Name("s"), 0, kContent));
  ASSERT_OK(queue_->CommitSave(Name("s")));
  EXPECT_THAT(disk_.List(), IsEmpty());
  gate_.Open();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
}

TEST_F(VisibleTest, ASaveThatFailsTakesItAway) {
  fs_.FailAll(FsOp::kAllocate, ENOSPC);
  SaveMapped("s", "f");
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::FAILED);
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(VisibleTest, OneThatIsCancelledTakesItAway) {
  ASSERT_NO_FATAL_FAILURE(HoldAnother());
  SaveMapped("s", "f");
  EXPECT_TRUE(IsLink("f"));
  EXPECT_OK(queue_->CancelSave(Name("s")));
  EXPECT_EQ(Get("s").state(), v1::Save::CANCELLED);
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(VisibleTest, OneThatGivesWayTakesItAway) {
  Start(NoRetry(), 8192);
  ASSERT_NO_FATAL_FAILURE(HoldAnother());
  SaveMapped("s", "f");
  EXPECT_TRUE(IsLink("f"));
  v1::BeginSaveRequest next = Visible("next", "f");
  next.set_on_full(v1::BeginSaveRequest::SUPERSEDE);
  const std::string image = StageMapped(next);
  EXPECT_EQ(Get("s").state(), v1::Save::SUPERSEDED);
  EXPECT_THAT(disk_.List(), IsEmpty());
  EXPECT_OK(queue_->CommitSave(Name("next")));
  EXPECT_EQ(std::filesystem::read_symlink(disk_ / "f"), image);
}

// Whatever fails once the save is begun: at its end there is the file, or nothing, or a link that
// the next start removes.
TEST_F(VisibleTest, EachCallFailsInItsTurn) {
  for (int n = 1, made = 1; n <= made; ++n) {
    const std::string id = absl::StrCat("s", n);
    StageMapped(Visible(id, id));
    fs_.Reset();
    fs_.FailNth(n, EIO);
    const auto committed = queue_->CommitSave(Name(id));
    if (committed.ok()) WaitForEnd(id);
    made = static_cast<int>(fs_.Calls().size());
    fs_.Reset();
    if (!committed.ok()) EXPECT_OK(queue_->AbortSave(Name(id)));
    if (Get(id).state() == v1::Save::SUCCEEDED) {
      EXPECT_FALSE(IsLink(id)) << "call " << n;
      EXPECT_EQ(ReadFile(disk_ / id), kContent) << "call " << n;
    } else if (IsLink(id)) {
      Restart();
      EXPECT_FALSE(IsLink(id)) << "call " << n;
    }
  }
  Restart();
  EXPECT_THAT(LeasedImages(), IsEmpty());
}

TEST_F(VisibleTest, ALinkThatCannotBeRemovedIsKnownToTheNextStart) {
  fs_.FailAll(FsOp::kAllocate, ENOSPC);
  fs_.FailAll(FsOp::kReadLink, EIO);
  SaveMapped("s", "f");
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::FAILED);
  EXPECT_TRUE(IsLink("f"));
  fs_.Reset();
  Restart();
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(VisibleTest, NothingEndsASaveWhileItsLinkIsPut) {
  fs_.SetBefore([this](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kSymlink) gate_.Pass();
    return std::nullopt;
  });
  StageMapped(Visible("s", "f"));
  std::thread committer([&] { EXPECT_OK(queue_->CommitSave(Name("s"))); });
  EXPECT_TRUE(gate_.WaitForArrivals(1));
  std::thread closer([&] { queue_->CloseSession(session_); });
  EXPECT_EQ(Get("s").state(), v1::Save::STAGING);
  gate_.Open();
  committer.join();
  closer.join();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED) << "it was accepted";
  EXPECT_EQ(ReadFile(disk_ / "f"), kContent);
}

TEST_F(VisibleTest, StorageThatHangsKeepsNobody) {
  SaveQueue::Options options = NoRetry();
  options.target_patience = absl::Milliseconds(1);
  Start(options);
  StageMapped(Visible("s", "f"));
  fs_.SetBefore([this](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kSymlink) gate_.Pass();
    return std::nullopt;
  });
  EXPECT_OK(queue_->CommitSave(Name("s")));
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  gate_.Open();
  StopAll();
  EXPECT_FALSE(IsLink("f"));
  EXPECT_EQ(ReadFile(disk_ / "f"), kContent);
}

TEST_F(VisibleTest, ALinkThatComesTooLateGoes) {
  SaveQueue::Options options = NoRetry();
  options.target_patience = absl::Milliseconds(1);
  Start(options);
  StageMapped(Visible("s", "f"));
  fs_.SetBefore([this](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kSymlink) gate_.Pass();
    if (call.op == FsOp::kAllocate) return -ENOSPC;
    return std::nullopt;
  });
  EXPECT_OK(queue_->CommitSave(Name("s")));
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::FAILED);
  gate_.Open();
  StopAll();
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(VisibleTest, TheNextDaemonPutsTheLinkAndReplacesIt) {
  Jam();
  const std::string image = SaveMapped("s", "f");
  StopJammed();
  EXPECT_EQ(ReadFile(disk_ / "f"), kContent) << "while there is no daemon";
  // As if it had died before it was put.
  std::filesystem::remove(disk_ / "f");
  Jam();
  Restart();
  EXPECT_EQ(std::filesystem::read_symlink(disk_ / "f"), image);
  gate_.Open();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_FALSE(IsLink("f"));
  EXPECT_EQ(ReadFile(disk_ / "f"), kContent);
}

TEST_F(VisibleTest, ALinkWhoseImageIsLostGoes) {
  Jam();
  SaveMapped("s", "f");
  StopJammed();
  StopAll();
  for (const std::string& name : LeasedImages()) std::filesystem::remove(shm_ / name);
  Restart();
  EXPECT_THAT(ErrorOf(Get("s")), IsError(StatusCode::kDataLoss, "IMAGE_LOST"));
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(VisibleTest, TheLinkOfAQuarantinedSaveGoesAndItsImageIsKeptAndNotUsedAgain) {
  Jam();
  SaveMapped("s", "f");
  StopJammed();
  Restart(NoRetry(), {1, 1, 1});
  EXPECT_THAT(ErrorOf(Get("s")), IsError(StatusCode::kInternal, "QUARANTINED"));
  EXPECT_THAT(disk_.List(), IsEmpty());
  v1::ExportSaveRequest request;
  request.set_name(Name("s"));
  request.set_path(disk_ / "exported");
  EXPECT_OK(queue_->ExportSave(request));
  EXPECT_EQ(ReadFile(disk_ / "exported"), kContent);
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);
}

TEST_F(VisibleTest, TheLinkOfASaveWhoseJournalIsLostGoes) {
  Jam();
  const std::string image = SaveMapped("s", "f");
  StopJammed();
  StopAll();
  for (const std::string& name : state_.List()) std::filesystem::remove(state_ / name);
  keep_images_ = true;
  Restart();
  ASSERT_OK(queue_->RestoreOrphans({image.substr(image.rfind('/') + 1)}));
  EXPECT_THAT(ErrorOf(Get("s")), IsError(StatusCode::kDataLoss, "JOURNAL_LOST"));
  EXPECT_THAT(disk_.List(), IsEmpty());
}

TEST_F(VisibleTest, AnUnknownVisibilityIsRefused) {
  v1::BeginSaveRequest request = Visible("s", "f");
  request.set_visible(static_cast<v1::BeginSaveRequest::Visibility>(7));
  EXPECT_THAT(Begin(request), IsError(StatusCode::kInvalidArgument, "INVALID_REQUEST"));
}

}  // namespace
}  // namespace ckptd
