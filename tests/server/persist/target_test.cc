#include "server/persist/target.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>

#include "tests/server/testing/faulty_file_system.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using absl::StatusCode;

class TargetTest : public testing::Test {
 protected:
  mode_t ModeOf(const std::string& path) {
    struct stat info = {};
    EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
    return info.st_mode & 07777;
  }

  ScopedUmask umask_{0};
  TempDir dir_;
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
};

TEST_F(TargetTest, ChecksThePath) {
  const std::string longest = "/" + std::string(PATH_MAX - 2 - 255, 'a') + "/";
  const std::vector<std::string> bad = {
      "",
      "x",
      "./x",
      "/",
      "/x/",
      "/x/.",
      "/x/..",
      std::string("/x\0y", 4),
      "/" + std::string(256, 'a'),
      longest + std::string(255, 'b') + "c",
  };
  for (const std::string& path : bad) {
    EXPECT_THAT(CheckPath(path), IsError(StatusCode::kInvalidArgument, "INVALID_PATH")) << path;
    EXPECT_THAT(ResolveTarget(&fs_, {}, path),
                IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
    EXPECT_THAT(PrepareTarget(&fs_, {}, path, 0),
                IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
  }
  EXPECT_OK(CheckPath("/x"));
  EXPECT_OK(CheckPath("/" + std::string(255, 'a')));
  std::string at_limit = "/";
  while (at_limit.size() < PATH_MAX - 1) at_limit += at_limit.size() % 200 == 0 ? "/" : "a";
  EXPECT_OK(CheckPath(at_limit));
  EXPECT_THAT(CheckPath(at_limit + "a"), Says("4095"));
  EXPECT_TRUE(fs_.Calls().empty()) << "a bad path touches nothing";
}

TEST_F(TargetTest, EachWayToAPlaceHasTheSameKey) {
  std::filesystem::create_directories(dir_ / "real/sub");
  std::filesystem::create_directory_symlink("real", dir_ / "link");
  std::filesystem::create_directory_symlink(dir_ / "link/sub", dir_ / "deep");
  for (const char* way :
       {"real/sub/f", "link/sub/f", "deep/f", "real/./sub//f", "link/../real/sub/f"}) {
    ASSERT_OK_AND_ASSIGN(const Target target, ResolveTarget(&fs_, {}, dir_ / way));
    EXPECT_EQ(target.path, dir_ / "real/sub/f") << way;
    EXPECT_EQ(target.dir, dir_ / "real/sub") << way;
    ASSERT_OK_AND_ASSIGN(const Target prepared, PrepareTarget(&fs_, {}, dir_ / way, 0));
    EXPECT_EQ(prepared.path, target.path) << way;
  }
}

// A symlink as the last part is a name of its own: it is what a save replaces and a remove removes.
TEST_F(TargetTest, TheLastPartIsNotFollowed) {
  WriteFile(dir_ / "file", "x");
  std::filesystem::create_symlink("file", dir_ / "last.ckpt");
  ASSERT_OK_AND_ASSIGN(const Target target, ResolveTarget(&fs_, {}, dir_ / "last.ckpt"));
  EXPECT_EQ(target.path, dir_ / "last.ckpt");
  std::filesystem::create_symlink("/nowhere/at/all", dir_ / "dangling");
  EXPECT_OK(PrepareTarget(&fs_, {}, dir_ / "dangling", 0));
}

TEST_F(TargetTest, WhatDoesNotExistIsTakenAsItStands) {
  std::filesystem::create_directories(dir_ / "real");
  std::filesystem::create_directory_symlink("real", dir_ / "link");
  ASSERT_OK_AND_ASSIGN(const Target target, ResolveTarget(&fs_, {}, dir_ / "link/a/b/f"));
  EXPECT_EQ(target.path, dir_ / "real/a/b/f");
  EXPECT_EQ(target.dir, dir_ / "real/a/b");
  EXPECT_TRUE(ListDir(dir_ / "real").empty()) << "looking makes nothing";
}

// Or a load and a save of one place would not wait for each other.
TEST_F(TargetTest, WhatDoesNotExistHasOneKeyToo) {
  std::filesystem::create_directories(dir_ / "real");
  std::filesystem::create_directory_symlink("real", dir_ / "link");
  WriteFile(dir_ / "file", "x");
  for (const char* way :
       {"real/a/b/f", "link/a/b/f", "real//a//b//f", "real/a/./b/f", "a/../link/a/b/f",
        "a/b/../../real/a/c/../b/f", "real/../a/../real/a/b/f"}) {
    ASSERT_OK_AND_ASSIGN(const Target target, ResolveTarget(&fs_, {}, dir_ / way));
    EXPECT_EQ(target.path, dir_ / "real/a/b/f") << way;
    EXPECT_EQ(target.dir, dir_ / "real/a/b") << way;
  }
  for (const char* way : {"file/f", "file//f", "file/./f", "a/../file/f"}) {
    ASSERT_OK_AND_ASSIGN(const Target target, ResolveTarget(&fs_, {}, dir_ / way));
    EXPECT_EQ(target.path, dir_ / "file/f") << way;
  }
  ASSERT_OK_AND_ASSIGN(const Target top, ResolveTarget(&fs_, {}, "/no-such/../../no-such-file"));
  EXPECT_EQ(top.path, "/no-such-file");
}

TEST_F(TargetTest, TheKeyIsNotTooLongEither) {
  const std::string long_name(200, 'n');
  std::filesystem::create_directory(dir_ / long_name);
  std::filesystem::create_directory_symlink(long_name, dir_ / "n");
  std::string path = dir_ / "n";
  while (path.size() < PATH_MAX - 150) path += "/y";
  EXPECT_OK(CheckPath(path));
  EXPECT_THAT(ResolveTarget(&fs_, {}, path), IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
}

TEST_F(TargetTest, ResolvesAtTheRoot) {
  ASSERT_OK_AND_ASSIGN(const Target target, ResolveTarget(&fs_, {}, "/no-such-file"));
  EXPECT_EQ(target.path, "/no-such-file");
  EXPECT_EQ(target.dir, "/");
  ASSERT_OK_AND_ASSIGN(const Target deeper, ResolveTarget(&fs_, {}, "/no-such-dir/f"));
  EXPECT_EQ(deeper.path, "/no-such-dir/f");
  EXPECT_EQ(deeper.dir, "/no-such-dir");
}

TEST_F(TargetTest, MakesTheFoldersByTheUmask) {
  ASSERT_OK_AND_ASSIGN(const Target target, PrepareTarget(&fs_, {}, dir_ / "a/b/c/f", 027));
  EXPECT_EQ(target.dir, dir_ / "a/b/c");
  for (const char* made : {"a", "a/b", "a/b/c"}) EXPECT_EQ(ModeOf(dir_ / made), 0750u) << made;
  ASSERT_OK(PrepareTarget(&fs_, {}, dir_ / "a/b/d/f", 077));
  EXPECT_EQ(ModeOf(dir_ / "a/b"), 0750u) << "what was there stays as it was";
  EXPECT_EQ(ModeOf(dir_ / "a/b/d"), 0700u);
}

// It is the trainer that waits here; a Persister syncs them.
TEST_F(TargetTest, SyncsNothing) {
  ASSERT_OK(PrepareTarget(&fs_, {}, dir_ / "a/b/f", 022));
  EXPECT_EQ(fs_.Count(FsOp::kSync), 0);
}

TEST_F(TargetTest, RefusesAFileAsParent) {
  WriteFile(dir_ / "file", "x");
  std::filesystem::create_symlink("file", dir_ / "link");
  for (const char* path : {"file/f", "file/a/b/f", "link/f"}) {
    const auto target = PrepareTarget(&fs_, {}, dir_ / path, 0);
    EXPECT_THAT(target, IsError(StatusCode::kFailedPrecondition, "NOT_A_DIRECTORY")) << path;
    EXPECT_THAT(target, Says("path " + (dir_ / path))) << path;
  }
  EXPECT_EQ(ReadFile(dir_ / "file"), "x");
}

TEST_F(TargetTest, RefusesADanglingSymlinkAsParent) {
  std::filesystem::create_symlink("nowhere", dir_ / "link");
  EXPECT_THAT(PrepareTarget(&fs_, {}, dir_ / "link/f", 0), testing::Not(IsOk()));
}

TEST_F(TargetTest, RefusesAFolderAsPath) {
  std::filesystem::create_directory(dir_ / "folder");
  const auto target = PrepareTarget(&fs_, {}, dir_ / "folder", 0);
  EXPECT_THAT(target, IsError(StatusCode::kFailedPrecondition, "PATH_IS_DIRECTORY"));
  EXPECT_THAT(target, Says("choose another path, or remove the folder"));
  EXPECT_OK(ResolveTarget(&fs_, {}, dir_ / "folder")) << "but it may be removed";
}

TEST_F(TargetTest, RefusesAFolderThatMayNotBeWrittenTo) {
  fs_.FailAll(FsOp::kAccess, EACCES);
  const auto target = PrepareTarget(&fs_, {}, dir_ / "f", 0);
  EXPECT_THAT(target, IsError(StatusCode::kPermissionDenied, "PERMISSION_DENIED"));
  EXPECT_THAT(target, Says(dir_.path()));
}

TEST_F(TargetTest, RefusesAReadOnlyFileSystem) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can mount a tmpfs";
  const std::string mount_point = dir_ / "ro";
  std::filesystem::create_directory(mount_point);
  if (mount("tmpfs", mount_point.c_str(), "tmpfs", MS_RDONLY, "size=1m") != 0) {
    GTEST_SKIP() << "cannot mount a tmpfs here: " << std::strerror(errno);
  }
  EXPECT_THAT(PrepareTarget(&fs_, {}, mount_point + "/f", 0),
              IsError(StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"));
  EXPECT_THAT(PrepareTarget(&fs_, {}, mount_point + "/a/b/f", 0),
              IsError(StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"));
  EXPECT_EQ(umount2(mount_point.c_str(), MNT_DETACH), 0);
}

TEST_F(TargetTest, ALoopOfSymlinksIsABadPath) {
  std::filesystem::create_symlink("b", dir_ / "a");
  std::filesystem::create_symlink("a", dir_ / "b");
  EXPECT_THAT(ResolveTarget(&fs_, {}, dir_ / "a/f"),
              IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
}

TEST_F(TargetTest, EveryFaultIsAnErrorThatNamesThePath) {
  for (int n = 1;; ++n) {
    fs_.Reset();
    fs_.FailNth(n, EIO);
    const std::string path = dir_ / ("d" + std::to_string(n) + "/e/f");
    const auto target = PrepareTarget(&fs_, {}, path, 0);
    if (static_cast<int>(fs_.Calls().size()) < n) {
      EXPECT_OK(target);
      break;
    }
    // The close of a folder that was only read tells nothing.
    if (fs_.Calls()[static_cast<size_t>(n) - 1].op == FsOp::kClose) continue;
    EXPECT_THAT(target, IsError(StatusCode::kInternal, "STORAGE_ERROR")) << Describe(fs_.Calls());
    EXPECT_THAT(target, Says("path " + path)) << n;
  }
}

}  // namespace
}  // namespace ckptd
