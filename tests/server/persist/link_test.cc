#include "server/persist/link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>

#include "tests/server/testing/faulty_file_system.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr char kImage[] = "/pool/image-1-abc";

class LinkTest : public testing::Test {
 protected:
  TempDir dir_;
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
  AllowedRoots roots_;
  Target target_{dir_.path(), dir_ / "a.ckpt"};
};

TEST_F(LinkTest, IsPutAndRemoved) {
  EXPECT_EQ(IsFree(&fs_, roots_, target_).value_or(false), true);
  EXPECT_EQ(PutLink(&fs_, roots_, target_, kImage).value_or(false), true);
  EXPECT_EQ(std::filesystem::read_symlink(target_.path), kImage);
  EXPECT_THAT(dir_.List(), ElementsAre("a.ckpt"));
  EXPECT_EQ(PutLink(&fs_, roots_, target_, kImage).value_or(false), true) << "is there";
  EXPECT_EQ(IsFree(&fs_, roots_, target_).value_or(true), false) << "although it leads nowhere";
  fs_.Reset();
  EXPECT_OK(RemoveLink(&fs_, roots_, target_, kImage));
  EXPECT_THAT(dir_.List(), IsEmpty());
  EXPECT_EQ(fs_.Calls()[fs_.Calls().size() - 2].op, FsOp::kSync) << "or a power cut brings it back";
  EXPECT_OK(RemoveLink(&fs_, roots_, target_, kImage));
}

TEST_F(LinkTest, WhatIsNotOursStays) {
  const auto expect_that_it_stays = [&] {
    EXPECT_EQ(IsFree(&fs_, roots_, target_).value_or(true), false);
    EXPECT_EQ(PutLink(&fs_, roots_, target_, kImage).value_or(true), false);
    EXPECT_OK(RemoveLink(&fs_, roots_, target_, kImage));
    EXPECT_THAT(dir_.List(), ElementsAre("a.ckpt"));
  };
  WriteFile(target_.path, "old");
  expect_that_it_stays();
  EXPECT_EQ(ReadFile(target_.path), "old");
  std::filesystem::remove(target_.path);
  std::filesystem::create_symlink("/pool/image-1-abd", target_.path);
  expect_that_it_stays();
  std::filesystem::remove(target_.path);
  std::filesystem::create_directory(target_.path);
  expect_that_it_stays();
}

TEST_F(LinkTest, AFolderThatIsGoneHasNone) {
  target_ = {dir_ / "gone", dir_ / "gone/a.ckpt"};
  EXPECT_EQ(IsFree(&fs_, roots_, target_).value_or(true), false);
  EXPECT_FALSE(PutLink(&fs_, roots_, target_, kImage).ok());
  EXPECT_OK(RemoveLink(&fs_, roots_, target_, kImage));
}

TEST_F(LinkTest, EachErrorIsTold) {
  fs_.FailNth(FsOp::kSymlink, 1, EROFS);
  EXPECT_THAT(PutLink(&fs_, roots_, target_, kImage),
              IsError(StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"));
  fs_.Reset();
  ASSERT_OK(PutLink(&fs_, roots_, target_, kImage));
  for (FsOp op : {FsOp::kReadLink, FsOp::kUnlink, FsOp::kSync}) {
    fs_.Reset();
    fs_.FailNth(op, 1, EIO);
    EXPECT_EQ(ReasonOf(RemoveLink(&fs_, roots_, target_, kImage)), "STORAGE_ERROR");
  }
  fs_.Reset();
  fs_.FailNth(FsOp::kLinkStat, 1, EIO);
  EXPECT_EQ(ReasonOf(IsFree(&fs_, roots_, target_).status()), "STORAGE_ERROR");
}

TEST_F(LinkTest, StaysBeneathTheAllowedRoots) {
  TempDir elsewhere;
  const auto roots = AllowedRoots::Open(&fs_, {dir_ / "."});
  ASSERT_OK(roots);
  // Swapped in after the path was resolved.
  std::filesystem::create_directory_symlink(elsewhere.path(), dir_ / "sub");
  const Target swapped{dir_ / "sub", dir_ / "sub/a.ckpt"};
  EXPECT_EQ(ReasonOf(PutLink(&fs_, *roots, swapped, kImage).status()), "PATH_NOT_ALLOWED");
  std::filesystem::create_symlink(kImage, elsewhere / "a.ckpt");
  EXPECT_EQ(ReasonOf(RemoveLink(&fs_, *roots, swapped, kImage)), "PATH_NOT_ALLOWED");
  EXPECT_THAT(elsewhere.List(), ElementsAre("a.ckpt"));
}

}  // namespace
}  // namespace ckptd
