#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/os/errors.h"
#include "server/os/file_system.h"
#include "server/os/memory_limit.h"
#include "server/os/runnable.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"
#include "tests/server/testing/wait.h"

namespace ckptd {
namespace {

using absl::StatusCode;

// ---- Errors ----------------------------------------------------------------------------------

TEST(OsErrorTest, MapsWhatTheKernelSays) {
  struct Case {
    int error;
    StatusCode code;
    const char* reason;
  };
  const std::vector<Case> cases = {
      {ENOSPC, StatusCode::kResourceExhausted, "STORAGE_FULL"},
      {EDQUOT, StatusCode::kResourceExhausted, "STORAGE_FULL"},
      {EROFS, StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"},
      {EACCES, StatusCode::kPermissionDenied, "PERMISSION_DENIED"},
      {EPERM, StatusCode::kPermissionDenied, "PERMISSION_DENIED"},
      {ENOTDIR, StatusCode::kFailedPrecondition, "NOT_A_DIRECTORY"},
      {EISDIR, StatusCode::kFailedPrecondition, "PATH_IS_DIRECTORY"},
      {ENAMETOOLONG, StatusCode::kInvalidArgument, "INVALID_PATH"},
      {ELOOP, StatusCode::kInvalidArgument, "INVALID_PATH"},
      {EMFILE, StatusCode::kResourceExhausted, "STORAGE_ERROR"},
      {ENFILE, StatusCode::kResourceExhausted, "STORAGE_ERROR"},
      {EIO, StatusCode::kInternal, "STORAGE_ERROR"},
      {ESTALE, StatusCode::kInternal, "STORAGE_ERROR"},
  };
  for (const Case& c : cases) {
    const absl::Status status = OsError("checkpoint /x", "write", c.error);
    EXPECT_THAT(status, IsError(c.code, c.reason)) << c.error;
    EXPECT_THAT(std::string(status.message()), testing::StartsWith("checkpoint /x: cannot write: "))
        << c.error;
  }
  EXPECT_THAT(OsError("a", "b", ENOSPC), Says("No space left on device; free space"));
}

// ---- MemoryLimit -----------------------------------------------------------------------------

class MemoryLimitTest : public testing::Test {
 protected:
  void Put(const std::string& file, const std::string& content) {
    const std::string path = root_ / file;
    std::filesystem::create_directories(path.substr(0, path.rfind('/')));
    WriteFile(path, content);
  }
  void PutRam(uint64_t bytes) {
    Put("proc/meminfo", absl::StrCat("MemTotal:       ", bytes / 1024,
                                     " kB\nMemFree:        1 kB\nHugePages_Total:       0\n"));
  }
  uint64_t Limit() const { return MemoryLimit(root_.path() + "/"); }

  TempDir root_;
};

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST_F(MemoryLimitTest, IsRamWithoutGroups) {
  PutRam(4 * kGiB);
  EXPECT_EQ(Limit(), 4 * kGiB);
}

TEST_F(MemoryLimitTest, FindsMemTotalBehindOtherLines) {
  Put("proc/meminfo", "Something:  7\nOther: 1 kB\nMemTotal: 1024 kB\n");
  EXPECT_EQ(Limit(), 1024u * 1024);
}

TEST_F(MemoryLimitTest, Version2) {
  PutRam(4 * kGiB);
  Put("proc/self/cgroup", "0::/user.slice/job\n");
  Put("sys/fs/cgroup/user.slice/job/memory.max", "1073741824\n");
  EXPECT_EQ(Limit(), kGiB);
  Put("sys/fs/cgroup/user.slice/job/memory.max", "max\n");
  EXPECT_EQ(Limit(), 4 * kGiB);
}

TEST_F(MemoryLimitTest, AGroupAboveMayBeTighter) {
  PutRam(4 * kGiB);
  Put("proc/self/cgroup", "0::/a/b/c\n");
  Put("sys/fs/cgroup/a/b/c/memory.max", "3221225472\n");
  Put("sys/fs/cgroup/a/b/memory.max", "max\n");
  Put("sys/fs/cgroup/a/memory.max", "2147483648\n");
  EXPECT_EQ(Limit(), 2 * kGiB);
}

// As in a container with a namespace of its own: the group is the root of what it sees.
TEST_F(MemoryLimitTest, Version2AtTheRoot) {
  PutRam(4 * kGiB);
  Put("proc/self/cgroup", "0::/\n");
  Put("sys/fs/cgroup/memory.max", "536870912\n");
  EXPECT_EQ(Limit(), kGiB / 2);
}

TEST_F(MemoryLimitTest, Version1) {
  PutRam(4 * kGiB);
  Put("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/abc\n0::/\n");
  Put("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "1073741824\n");
  EXPECT_EQ(Limit(), kGiB);
  // As it writes "none".
  Put("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(Limit(), 4 * kGiB);
}

// A container without such a namespace: its path is that of the host and leads nowhere here.
TEST_F(MemoryLimitTest, Version1MountedAtTheGroup) {
  PutRam(4 * kGiB);
  Put("proc/self/cgroup", "4:memory:/docker/abc\n");
  Put("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
  EXPECT_EQ(Limit(), kGiB);
}

TEST_F(MemoryLimitTest, ALimitAboveRamIsNone) {
  PutRam(kGiB);
  Put("proc/self/cgroup", "0::/a\n");
  Put("sys/fs/cgroup/a/memory.max", "9999999999999\n");
  EXPECT_EQ(Limit(), kGiB);
}

TEST_F(MemoryLimitTest, RealMachine) {
  EXPECT_GT(MemoryLimit("/"), uint64_t{64} << 20);
  EXPECT_LT(MemoryLimit("/"), uint64_t{1} << 50);
}

// ---- The kernel's file system ----------------------------------------------------------------

TEST(PosixFileSystemTest, AnswersLikeTheKernel) {
  const TempDir dir;
  const auto fs = NewPosixFileSystem();
  EXPECT_EQ(fs->Open(dir / "none", O_RDONLY, 0), -ENOENT);
  EXPECT_EQ(fs->Unlink(dir / "none"), -ENOENT);
  EXPECT_EQ(fs->Close(-1), -EBADF);
  EXPECT_EQ(fs->MakeDirectory(dir.path(), 0700), -EEXIST);
  std::vector<std::string> names;
  EXPECT_EQ(fs->List(dir / "none", &names), -ENOENT);
  std::string real;
  EXPECT_EQ(fs->RealPath(dir / "none", &real), -ENOENT);
}

TEST(PosixFileSystemTest, StaysBeneathAFolder) {
  const TempDir dir;
  const auto fs = NewPosixFileSystem();
  std::filesystem::create_directories(dir / "in/deep");
  WriteFile(dir / "in/deep/f", "");
  WriteFile(dir / "out", "");
  const FileDescriptor in(fs.get(), fs->Open(dir / "in", O_PATH | O_DIRECTORY, 0));
  const auto open = [&](const std::string& path) {
    const FileDescriptor file(fs.get(), fs->OpenBeneath(in.get(), path, O_RDONLY));
    return file ? 0 : file.get();
  };
  std::filesystem::create_symlink("../deep/f", dir / "in/deep/stays");
  std::filesystem::create_symlink("../../out", dir / "in/deep/leaves");
  std::filesystem::create_symlink(dir / "in/deep/f", dir / "in/absolute");
  std::filesystem::create_symlink("/proc/self/fd/" + std::to_string(in.get()), dir / "in/proc");
  EXPECT_EQ(open("."), 0);
  EXPECT_EQ(open("deep/f"), 0);
  EXPECT_EQ(open("deep/../deep/stays"), 0);
  EXPECT_EQ(open("none"), -ENOENT);
  for (const char* path : {"..", "../out", "deep/../../out", "deep/leaves", "absolute", "proc/f"}) {
    EXPECT_EQ(open(path), -EXDEV) << path;
  }
  EXPECT_EQ(open(dir / "in/deep/f"), -EXDEV);
}

TEST(PosixFileSystemTest, GivesAnUnnamedFileAName) {
  const TempDir dir;
  const auto fs = NewPosixFileSystem();
  FileDescriptor file(fs.get(), fs->Open(dir.path(), O_TMPFILE | O_RDWR, 0600));
  ASSERT_TRUE(file);
  EXPECT_EQ(fs->Write(file.get(), "abc", 3, 2), 3);
  EXPECT_EQ(fs->Link(file.get(), dir / "f"), 0);
  EXPECT_EQ(fs->Link(file.get(), dir / "f"), -EEXIST);
  EXPECT_EQ(ReadFile(dir / "f"), std::string("\0\0abc", 5));
  EXPECT_EQ(file.Close(), 0);
  EXPECT_EQ(file.Close(), 0) << "nothing happens the second time";
}

TEST(PosixFileSystemTest, DescriptorsAreClosedOnceAndNotInherited) {
  const TempDir dir;
  const auto fs = NewPosixFileSystem();
  const size_t before = CountOpenFiles();
  {
    FileDescriptor a(fs.get(), fs->Open(dir.path(), O_RDONLY | O_DIRECTORY, 0));
    ASSERT_TRUE(a);
    EXPECT_NE(fcntl(a.get(), F_GETFD) & FD_CLOEXEC, 0);
    FileDescriptor b(std::move(a));
    FileDescriptor c;
    c = std::move(b);
    EXPECT_TRUE(c);
    EXPECT_EQ(CountOpenFiles(), before + 1);
  }
  EXPECT_EQ(CountOpenFiles(), before);
}

TEST(PosixFileSystemTest, KeepsWhatIsMappedOverARemap) {
  const TempDir dir(TempDir::Place::kMemory);
  const auto fs = NewPosixFileSystem();
  FileDescriptor file(fs.get(), fs->Open(dir / "f", O_CREAT | O_RDWR, 0600));
  ASSERT_EQ(fs->Truncate(file.get(), 1 << 20), 0);
  uint8_t* data = nullptr;
  ASSERT_EQ(fs->Map(file.get(), 4096, &data), 0);
  bool huge = false;
  ASSERT_EQ(fs->Populate(data, 4096, &huge), 0);
  data[7] = 42;
  ASSERT_EQ(fs->Remap(data, 4096, 1 << 20, &data), 0);
  EXPECT_EQ(data[7], 42);
  // Behind the end of the file there is no page to be had.
  ASSERT_EQ(fs->Truncate(file.get(), 4096), 0);
  EXPECT_EQ(fs->Populate(data, 1 << 20, &huge), -EFAULT);
  EXPECT_EQ(fs->Unmap(data, 1 << 20), 0);
}

// How much of the mapping that begins at `data` are huge pages, as the kernel says.
size_t HugeBytesAt(const uint8_t* data) {
  std::ifstream maps("/proc/self/smaps");
  const std::string start = absl::StrCat(absl::Hex(reinterpret_cast<uintptr_t>(data)), "-");
  std::string line;
  while (std::getline(maps, line) && !absl::StartsWith(line, start)) {
  }
  while (std::getline(maps, line) && !absl::StartsWith(line, "ShmemPmdMapped:")) {
  }
  const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  size_t kib = 0;
  return words.size() == 3 && absl::SimpleAtoi(words[1], &kib) ? kib << 10 : 0;
}

// A file in memory of three huge pages and one small one, mapped.
class PopulateTest : public testing::Test {
 protected:
  static constexpr size_t kSize = 3 * kHugePage + 4096;
  void SetUp() override {
    ASSERT_TRUE(file_);
    ASSERT_EQ(fs_->Truncate(file_.get(), kSize), 0);
    ASSERT_EQ(fs_->Map(file_.get(), kSize, &data_), 0);
  }
  void TearDown() override {
    if (data_ != nullptr) EXPECT_EQ(fs_->Unmap(data_, kSize), 0);
  }
  bool IsAllThere() const {
    struct stat info = {};
    return fs_->Stat(file_.get(), &info) == 0 && info.st_blocks * 512 >= ptrdiff_t{kSize};
  }

  const TempDir dir_{TempDir::Place::kMemory};
  const std::unique_ptr<FileSystem> fs_ = NewPosixFileSystem();
  const FileDescriptor file_{fs_.get(), fs_->Open(dir_ / "f", O_RDWR | O_CREAT, 0600)};
  uint8_t* data_ = nullptr;
};

TEST_F(PopulateTest, MakesHugePagesOfWhatHasNone) {
  bool huge = false;
  ASSERT_EQ(fs_->Populate(data_, kSize, &huge), 0);
  EXPECT_TRUE(IsAllThere());
  EXPECT_EQ(std::count(data_, data_ + kSize, 0), ptrdiff_t{kSize});
  const size_t found = HugeBytesAt(data_);
  if (found == 0 && fs_->Gather(file_.get(), 0, 3 * kHugePage) != 0) {
    GTEST_SKIP() << "this kernel makes no huge pages in shared memory";
  }
  EXPECT_EQ(found == 3 * kHugePage, huge);
}

// They may be held for direct writes.
TEST_F(PopulateTest, LeavesPagesWhereTheyAre) {
  data_[kHugePage + 7] = 42;
  bool huge = true;
  ASSERT_EQ(fs_->Populate(data_, kSize, &huge), 0);
  EXPECT_FALSE(huge);
  EXPECT_TRUE(IsAllThere());
  EXPECT_EQ(data_[kHugePage + 7], 42);
  EXPECT_EQ(HugeBytesAt(data_), 0);
}

TEST(PosixFileSystemTest, GatheredPagesAreTheSame) {
  const TempDir dir(TempDir::Place::kMemory);
  const auto fs = NewPosixFileSystem();
  const FileDescriptor file(fs.get(), fs->Open(dir / "f", O_RDWR | O_CREAT, 0600));
  constexpr size_t kSize = 3 * kHugePage + 4096;
  ASSERT_EQ(fs->Truncate(file.get(), kSize), 0);
  uint8_t* data = nullptr;
  ASSERT_EQ(fs->Map(file.get(), kSize, &data), 0);
  for (size_t i = 0; i < kSize; ++i) data[i] = static_cast<uint8_t>(i / 4096 * 7 + i);
  const std::string before(reinterpret_cast<const char*>(data), kSize);
  const int error = fs->Gather(file.get(), kHugePage, 2 * kHugePage);
  EXPECT_TRUE(std::string(reinterpret_cast<const char*>(data), kSize) == before);
  data[kHugePage + 1] ^= 1;
  EXPECT_EQ(static_cast<uint8_t>(ReadFile(dir / "f")[kHugePage + 1]), data[kHugePage + 1]);
  EXPECT_EQ(fs->Unmap(data, kSize), 0);
  if (error != 0) GTEST_SKIP() << "this kernel does not gather: " << std::strerror(-error);
}

// ---- Load ------------------------------------------------------------------------------------

TEST(RunnableThreadsTest, CountsThoseThatWantToRun) {
  if (RunnableThreads() == 0) GTEST_SKIP() << "/proc/loadavg does not tell of them here";
  constexpr int kBusy = 8;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  threads.reserve(kBusy);
  for (int i = 0; i < kBusy; ++i) {
    threads.emplace_back([&stop] {
      while (!stop) {
      }
    });
  }
  EXPECT_TRUE(Eventually([] { return RunnableThreads() > kBusy; }));
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace ckptd
