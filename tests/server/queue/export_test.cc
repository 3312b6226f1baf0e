// Images that go elsewhere: ExportSave.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <thread>

#include "server/persist/names.h"
#include "server/queue/save_queue.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;

class ExportTest : public QueueTest {
 protected:
  absl::StatusOr<v1::Save> Export(const std::string& id, const std::string& path) {
    v1::ExportSaveRequest request;
    request.set_name(Name(id));
    request.set_path(path);
    request.set_umask(022);
    return queue_->ExportSave(request);
  }
  // Of a save that waits for another one, which is held: that goes on once the export is under way,
  // and so is not over, and this one's turn, before.
  absl::Status ExportWhileHeld(const std::string& id, const std::string& path) {
    absl::Status status;
    std::thread exporting([&] { status = Export(id, path).status(); });
    EXPECT_TRUE(gate_.WaitForArrivals(2)) << "one of them is the export's";
    gate_.Let(2);
    exporting.join();
    return status;
  }
};

TEST_F(ExportTest, WritesOneThatWaitsAndLeavesItsTurn) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("first", "f", "1"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  ASSERT_NO_FATAL_FAILURE(Save("second", "f", "2"));
  EXPECT_THAT(Export("first", disk_ / "x"), IsError(StatusCode::kFailedPrecondition, "SAVE_BUSY"));
  ASSERT_OK(ExportWhileHeld("second", disk_ / "elsewhere/g"));
  EXPECT_EQ(ReadFile(disk_ / "elsewhere/g"), "2");
  gate_.Open();
  EXPECT_EQ(WaitForEnd("second").state(), v1::Save::SUCCEEDED);
  EXPECT_EQ(ReadFile(disk_ / "f"), "2");
}

TEST_F(ExportTest, WritesOneWhoseStorageFails) {
  SaveQueue::Options options;
  options.retry_timeout = absl::InfiniteDuration();
  Start(options);
  fs_.FailNth(FsOp::kAllocate, 1, ENOSPC);
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  ASSERT_TRUE(Eventually([&] { return Get("s").has_error(); }));
  ASSERT_OK(Export("s", disk_ / "g"));
  EXPECT_EQ(ReadFile(disk_ / "g"), "content");
  EXPECT_EQ(Get("s").state(), v1::Save::PERSISTING) << "it is not given up";
}

TEST_F(ExportTest, WhatADeathLeftGoesWithTheNextAttempt) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("first", "f", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("second", "f", "2"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  std::filesystem::create_directory(disk_ / "elsewhere");
  WriteFile(disk_ / ("elsewhere/" + TempPrefix(journal_->id()) + "01234567"), "x");
  ASSERT_OK(ExportWhileHeld("second", disk_ / "elsewhere/g"));
  EXPECT_THAT(ListDir(disk_ / "elsewhere"), testing::ElementsAre("g"));
}

TEST_F(ExportTest, OneThatCouldNotBeExportedIsAsItWas) {
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(Save("first", "f", "1"));
  ASSERT_NO_FATAL_FAILURE(Save("second", "f", "2"));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_THAT(Export("second", "relative"), IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
  EXPECT_THAT(Export("second", disk_.path()),
              IsError(StatusCode::kFailedPrecondition, "PATH_IS_DIRECTORY"));
  gate_.Open();
  EXPECT_EQ(WaitForEnd("second").state(), v1::Save::SUCCEEDED);
}

TEST_F(ExportTest, OnlyOneThatIsThere) {
  EXPECT_THAT(Export("none", disk_ / "g"), IsError(StatusCode::kNotFound, "SAVE_NOT_FOUND"));
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "content"));
  WaitForEnd("s");
  EXPECT_THAT(Export("s", disk_ / "g"), IsError(StatusCode::kFailedPrecondition, "SAVE_BUSY"));
  ASSERT_NO_FATAL_FAILURE(Stage("t", "f", "content"));
  EXPECT_THAT(Export("t", disk_ / "g"), IsError(StatusCode::kFailedPrecondition, "SAVE_BUSY"));
  EXPECT_EQ(ReadFile(disk_ / "g"), "<none>");
}

}  // namespace
}  // namespace ckptd
