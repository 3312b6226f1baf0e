#include "server/staging/pool_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "server/staging/image.h"
#include "server/staging/pool.h"
#include "tests/server/staging/pool_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class PoolDirTest : public testing::Test {
 protected:
  ScopedUmask umask_{0};
  TempDir dir_{TempDir::Place::kMemory};
  const std::string pool_dir_ = dir_ / "a/b/pool";
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
};

mode_t ModeOf(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
  return info.st_mode & 07777;
}

TEST_F(PoolDirTest, MakesAPrivateFolder) {
  ASSERT_OK(PreparePoolDir(&fs_, pool_dir_));
  EXPECT_EQ(ModeOf(pool_dir_), 0700u);
  EXPECT_EQ(ModeOf(dir_ / "a/b"), 0755u);
  ASSERT_OK(PreparePoolDir(&fs_, pool_dir_)) << "a second time, after the first let go";
}

TEST_F(PoolDirTest, ASecondDaemonIsRefused) {
  ASSERT_OK_AND_ASSIGN(FileDescriptor lock, PreparePoolDir(&fs_, pool_dir_));
  WriteFile(pool_dir_ + "/image-1-00", "the first one's");
  const auto second = PreparePoolDir(&fs_, pool_dir_);
  EXPECT_THAT(second, IsError(StatusCode::kFailedPrecondition, "ALREADY_RUNNING"));
  EXPECT_THAT(second, Says("--pool-dir"));
  EXPECT_THAT(ListDir(pool_dir_), ElementsAre("image-1-00"));
}

TEST_F(PoolDirTest, RemovesStraysAndNothingElse) {
  std::filesystem::create_directories(pool_dir_ + "/.free");
  std::filesystem::create_directories(pool_dir_ + "/.notes");
  ASSERT_EQ(chmod(pool_dir_.c_str(), 0700), 0);
  WriteFile(pool_dir_ + "/image-1-0123456789abcdef", "x");
  WriteFile(pool_dir_ + "/.free/image-2-0123456789abcdef", "x");
  WriteFile(pool_dir_ + "/.notes/image-1-0123456789abcdef", "x");
  WriteFile(pool_dir_ + "/.notes/image-3-0123456789abcdef", "x");
  WriteFile(pool_dir_ + "/image-3-0123456789abcdef", "x");
  WriteFile(pool_dir_ + "/not-ours", "x");
  ASSERT_OK(PreparePoolDir(&fs_, pool_dir_));
  ASSERT_OK_AND_ASSIGN(const auto images, ListImages(&fs_, pool_dir_));
  EXPECT_THAT(images, UnorderedElementsAre("image-1-0123456789abcdef", "image-3-0123456789abcdef"));
  fs_.FailNth(FsOp::kList, 1, EMFILE);
  EXPECT_THAT(ListImages(&fs_, pool_dir_),
              IsError(StatusCode::kResourceExhausted, "STORAGE_ERROR"));
  RemoveStrays(&fs_, pool_dir_, {"image-3-0123456789abcdef"});
  EXPECT_THAT(ListDir(pool_dir_), ElementsAre(".notes", "image-3-0123456789abcdef", "not-ours"));
  EXPECT_THAT(ListDir(pool_dir_ + "/.notes"), ElementsAre("image-3-0123456789abcdef"));
}

TEST_F(PoolDirTest, RefusesAFolderThatOthersMayWriteTo) {
  std::filesystem::create_directories(pool_dir_);
  for (const mode_t mode : {0777u, 0770u, 0702u, 01777u}) {
    ASSERT_EQ(chmod(pool_dir_.c_str(), mode), 0);
    EXPECT_THAT(PreparePoolDir(&fs_, pool_dir_),
                IsError(StatusCode::kPermissionDenied, "PERMISSION_DENIED"))
        << mode;
    EXPECT_THAT(PreparePoolDir(&fs_, pool_dir_), Says("chmod 700")) << mode;
  }
  ASSERT_EQ(chmod(pool_dir_.c_str(), 0755), 0);
  EXPECT_OK(PreparePoolDir(&fs_, pool_dir_));
}

TEST_F(PoolDirTest, RefusesAFolderOfAnother) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give a folder to another user";
  std::filesystem::create_directories(pool_dir_);
  ASSERT_EQ(chmod(pool_dir_.c_str(), 0700), 0);
  ASSERT_EQ(chown(pool_dir_.c_str(), 65534, 65534), 0);
  const auto result = PreparePoolDir(&fs_, pool_dir_);
  EXPECT_THAT(result, IsError(StatusCode::kPermissionDenied, "PERMISSION_DENIED"));
  EXPECT_THAT(result, Says("uid 65534"));
}

TEST_F(PoolDirTest, RefusesWhatIsNoFolder) {
  std::filesystem::create_directories(dir_ / "a/b");
  WriteFile(pool_dir_, "");
  EXPECT_THAT(PreparePoolDir(&fs_, pool_dir_),
              IsError(StatusCode::kFailedPrecondition, "NOT_A_DIRECTORY"));
  std::filesystem::remove(pool_dir_);
  // One that leads to a folder of ours may be made to lead elsewhere.
  std::filesystem::create_directory_symlink(dir_.path(), pool_dir_);
  EXPECT_THAT(PreparePoolDir(&fs_, pool_dir_),
              IsError(StatusCode::kFailedPrecondition, "NOT_A_DIRECTORY"));
}

TEST_F(PoolDirTest, SaysWhyItCannotBeMade) {
  fs_.FailAll(FsOp::kMakeDirectory, EROFS);
  EXPECT_THAT(PreparePoolDir(&fs_, pool_dir_),
              IsError(StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"));
}

TEST_F(PoolDirTest, TheDefaultBudgetIsAQuarterOfTheSmallest) {
  struct statvfs info = {};
  ASSERT_EQ(statvfs("/dev/shm", &info), 0);
  const uint64_t tmpfs = uint64_t{info.f_blocks} * info.f_frsize;
  ASSERT_OK_AND_ASSIGN(const uint64_t by_tmpfs, DefaultBudget(&fs_, dir_.path(), UINT64_MAX));
  EXPECT_EQ(by_tmpfs, tmpfs / 4);
  ASSERT_OK_AND_ASSIGN(const uint64_t by_memory, DefaultBudget(&fs_, dir_.path(), 40 * kMiB));
  EXPECT_EQ(by_memory, 10 * kMiB);
  fs_.FailAll(FsOp::kStatVfs, EIO);
  EXPECT_THAT(DefaultBudget(&fs_, dir_.path(), 1), IsError(StatusCode::kInternal, "STORAGE_ERROR"));
}

// A tmpfs of 16 MiB: what a container has by default is not much larger.
class SmallTmpfsTest : public PoolTest {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "only root can mount a tmpfs";
    if (mount("tmpfs", dir_.path().c_str(), "tmpfs", 0, "size=16m,mode=0700") != 0) {
      GTEST_SKIP() << "cannot mount a tmpfs here: " << std::strerror(errno);
    }
    mounted_ = true;
  }
  void TearDown() override {
    pool_.reset();
    if (mounted_) EXPECT_EQ(umount2(dir_.path().c_str(), MNT_DETACH), 0);
  }

  bool mounted_ = false;
};

TEST_F(SmallTmpfsTest, AFullOneIsAnErrorAndNoSignal) {
  MakePool(64 * kMiB);
  EXPECT_THAT(AcquireError(32 * kMiB), IsError(StatusCode::kResourceExhausted, "POOL_EXHAUSTED"));
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_EQ(pool_->GetUsage().used_bytes, 0u);

  // Each page that is handed out is there: to write to all of it raises no SIGBUS.
  auto image = Acquire(10 * kMiB);
  std::memset(image->data(), 1, image->size());
  EXPECT_THAT(AcquireError(10 * kMiB), IsError(StatusCode::kResourceExhausted, "POOL_EXHAUSTED"));
  std::memset(image->data(), 2, image->size());
  pool_->Release(std::move(image));
  // An image that cannot grow is given back, which makes room for the next.
  EXPECT_THAT(AcquireError(10 * kMiB + 4 * kMiB), IsOk());
}

TEST_F(SmallTmpfsTest, AnImageThatCannotGrowIsGivenBack) {
  MakePool(64 * kMiB);
  auto other = Acquire(8 * kMiB);
  pool_->Release(Acquire(6 * kMiB));
  // Near enough to be grown from 6 to 9, and 8 + 9 are more than 16.
  EXPECT_THAT(AcquireError(9 * kMiB), IsError(StatusCode::kResourceExhausted, "POOL_EXHAUSTED"));
  EXPECT_EQ(pool_->GetUsage().used_bytes, 8 * kMiB);
  pool_->Release(Acquire(7 * kMiB));
  pool_->Release(std::move(other));
}

TEST_F(SmallTmpfsTest, TheDefaultBudgetFitsIt) {
  ASSERT_OK_AND_ASSIGN(const uint64_t budget, DefaultBudget(&fs_, dir_.path(), UINT64_MAX));
  EXPECT_EQ(budget, 4 * kMiB);
}

}  // namespace
}  // namespace ckptd
