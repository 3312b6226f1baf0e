// A queue whose daemon was told --allow-root.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;

class AllowRootTest : public QueueTest {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(disk_ / "root/a");
    std::filesystem::create_directory(disk_ / "outside");
    WriteFile(disk_ / "outside/f", "secret");
    SaveQueue::Options options;
    ASSERT_OK_AND_ASSIGN(options.allow_roots, AllowedRoots::Open(&fs_, {disk_ / "root"}));
    Start(options);
  }
  ~AllowRootTest() override {
    EXPECT_THAT(ListDir(disk_ / "outside"), ElementsAre("f"));
    EXPECT_EQ(ReadFile(disk_ / "outside/f"), "secret");
  }
  void LeadOut() {
    std::filesystem::rename(disk_ / "root/a", disk_ / "root/moved");
    std::filesystem::create_symlink("../outside", disk_ / "root/a");
  }
};

TEST_F(AllowRootTest, RefusesPathsThatAreOutside) {
  const auto not_allowed = IsError(StatusCode::kPermissionDenied, "PATH_NOT_ALLOWED");
  for (const char* path : {"outside/f", "root/../outside/f", "outside/new/f"}) {
    EXPECT_THAT(Begin(Request("s", disk_ / path)), not_allowed) << path;
    EXPECT_THAT(Load(path), not_allowed) << path;
    EXPECT_THAT(Remove(path, /*wait=*/true), not_allowed) << path;
  }
  EXPECT_THAT(queue_->GetSave(Name("s")), IsError(StatusCode::kNotFound, "SAVE_NOT_FOUND"));
}

TEST_F(AllowRootTest, SavesLoadsAndRemovesBeneath) {
  Save("s", "root/a/new/f", "content");
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
  EXPECT_OK(Load("root/a/new/f"));
  std::filesystem::create_symlink("a/new/f", disk_ / "root/last.ckpt");
  EXPECT_OK(Load("root/last.ckpt"));
  EXPECT_THAT(Load("root/a/none"), IsError(StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND"));
}

TEST_F(AllowRootTest, ALinkThatLeadsOutIsNotRead) {
  std::filesystem::create_symlink("../outside/f", disk_ / "root/last.ckpt");
  EXPECT_THAT(Load("root/last.ckpt"), IsError(StatusCode::kPermissionDenied, "PATH_NOT_ALLOWED"));
}

TEST_F(AllowRootTest, ASymlinkThatComesInBeforeTheSaveIsPersisted) {
  ASSERT_NO_FATAL_FAILURE(Stage("s", "root/a/f", "content"));
  LeadOut();
  ASSERT_OK(queue_->CommitSave(Name("s")));
  const v1::Save save = WaitForEnd("s");
  EXPECT_EQ(save.state(), v1::Save::FAILED);
  EXPECT_THAT(ErrorOf(save), IsError(StatusCode::kPermissionDenied, "PATH_NOT_ALLOWED"));
}

TEST_F(AllowRootTest, ASymlinkThatComesInBeforeARemovalIsDone) {
  WriteFile(disk_ / "root/a/f", "kept");
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("s", "root/g", "content"));
  ASSERT_OK(Remove("root/a/f", /*wait=*/false));
  LeadOut();
  gate_.Open();
  ASSERT_OK_AND_ASSIGN(const auto flushed, Flush("jobs/j"));
  ASSERT_EQ(flushed.failed_removals_size(), 1);
  EXPECT_THAT(FromRpc(flushed.failed_removals(0).error()),
              IsError(StatusCode::kPermissionDenied, "PATH_NOT_ALLOWED"));
  EXPECT_EQ(ReadFile(disk_ / "root/moved/f"), "kept");
}

}  // namespace
}  // namespace ckptd
