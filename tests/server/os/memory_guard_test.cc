#include "server/os/memory_guard.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "server/os/file_system.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPages = 16;
constexpr size_t kBytes = kPages * kPage;

// A file full of 'x', mapped, that anybody may cut.
class SharedFile {
 public:
  explicit SharedFile(FileSystem* fs)
      : fs_(fs), fd_(fs, fs->Open("/dev/shm", O_TMPFILE | O_RDWR, 0600)) {
    Cut(kBytes);
    EXPECT_EQ(fs_->Map(fd_.get(), kBytes, &data_), 0);
    std::memset(data_, 'x', kBytes);
  }
  ~SharedFile() { fs_->Unmap(data_, kBytes); }
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  void Cut(size_t size) { EXPECT_EQ(fs_->Truncate(fd_.get(), static_cast<off_t>(size)), 0); }
  int fd() const { return fd_.get(); }
  uint8_t* data() const { return data_; }
  // How many of the bytes are `value`.
  int64_t Count(int value) const { return std::count(data_, data_ + kBytes, value); }

 private:
  FileSystem* const fs_;
  const FileDescriptor fd_;
  uint8_t* data_ = nullptr;
};

class MemoryGuardTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_OK(InstallMemoryGuard()); }

  const std::unique_ptr<FileSystem> fs_ = NewPosixFileSystem();
};

TEST_F(MemoryGuardTest, WhatIsLostReadsAsZeros) {
  SharedFile file(fs_.get());
  GuardedRange range;
  range.Cover(file.data(), kBytes);
  EXPECT_EQ(file.Count('x'), static_cast<int64_t>(kBytes));
  EXPECT_FALSE(range.torn());
  file.Cut(kBytes / 2);
  EXPECT_FALSE(range.torn()) << "nobody has touched it yet";
  errno = 7;
  EXPECT_EQ(file.Count('x'), static_cast<int64_t>(kBytes / 2));
  EXPECT_EQ(errno, 7);
  EXPECT_EQ(file.Count(0), static_cast<int64_t>(kBytes / 2));
  EXPECT_TRUE(range.torn());
}

TEST_F(MemoryGuardTest, WhatIsLostCanBeWrittenTo) {
  SharedFile file(fs_.get());
  GuardedRange range;
  range.Cover(file.data(), kBytes);
  file.Cut(0);
  std::memset(file.data(), 'y', kBytes);
  EXPECT_TRUE(range.torn());
  EXPECT_EQ(file.Count('y'), static_cast<int64_t>(kBytes));
}

TEST_F(MemoryGuardTest, OneFaultIsEnoughForAllThatFollows) {
  SharedFile file(fs_.get());
  GuardedRange range;
  range.Cover(file.data(), kBytes);
  file.Cut(kPage);
  EXPECT_EQ(file.data()[3 * kPage], 0);
  // No longer guarded: another fault would end the process.
  range.Uncover();
  EXPECT_EQ(std::count(file.data() + 3 * kPage, file.data() + kBytes, 0),
            static_cast<int64_t>(kBytes - 3 * kPage));
}

TEST_F(MemoryGuardTest, OnlyTheRangeThatLostMemoryIsTorn) {
  std::vector<std::unique_ptr<SharedFile>> files;
  std::vector<std::unique_ptr<GuardedRange>> ranges;
  // More than one piece of the table.
  for (int i = 0; i < 600; ++i) {
    files.push_back(std::make_unique<SharedFile>(fs_.get()));
    ranges.push_back(std::make_unique<GuardedRange>());
    ranges.back()->Cover(files.back()->data(), kBytes);
  }
  for (const size_t i : {size_t{0}, size_t{300}, size_t{599}}) {
    files[i]->Cut(0);
    EXPECT_EQ(files[i]->Count(0), static_cast<int64_t>(kBytes));
  }
  for (size_t i = 0; i < ranges.size(); ++i) {
    EXPECT_EQ(ranges[i]->torn(), i == 0 || i == 300 || i == 599) << i;
  }
  // What is used again begins anew.
  ranges.clear();
  for (int i = 0; i < 600; ++i) {
    ranges.push_back(std::make_unique<GuardedRange>());
    EXPECT_FALSE(ranges.back()->torn()) << i;
  }
}

TEST_F(MemoryGuardTest, ARangeMovesWithItsMemoryAndStaysTorn) {
  SharedFile file(fs_.get());
  SharedFile other(fs_.get());
  GuardedRange range;
  range.Cover(file.data(), kBytes);
  range.Cover(other.data(), kBytes);
  other.Cut(0);
  EXPECT_EQ(other.Count(0), static_cast<int64_t>(kBytes));
  EXPECT_TRUE(range.torn());
  range.Cover(file.data(), kBytes);
  EXPECT_TRUE(range.torn());
}

TEST_F(MemoryGuardTest, ManyThreadsMayFaultAtOnce) {
  SharedFile file(fs_.get());
  GuardedRange range;
  range.Cover(file.data(), kBytes);
  file.Cut(0);
  std::vector<std::thread> threads;
  std::vector<int64_t> zeros(8);
  threads.reserve(zeros.size());
  for (int64_t& count : zeros) {
    threads.emplace_back([&] { count = file.Count(0); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(zeros, std::vector<int64_t>(zeros.size(), kBytes));
  EXPECT_TRUE(range.torn());
}

TEST_F(MemoryGuardTest, MendsNothingElse) {
  SharedFile file(fs_.get());
  GuardedRange range;
  range.Cover(file.data(), kBytes);
  siginfo_t info = {};
  info.si_code = BUS_ADRERR;
  info.si_addr = file.data() + kBytes;
  EXPECT_FALSE(MendFault(info));
  info.si_addr = file.data() - 1;
  EXPECT_FALSE(MendFault(info));
  // Memory that is broken, or a signal that was sent.
  info.si_addr = file.data();
  info.si_code = BUS_MCEERR_AR;
  EXPECT_FALSE(MendFault(info));
  info.si_code = SI_USER;
  EXPECT_FALSE(MendFault(info));
  EXPECT_FALSE(range.torn());
  EXPECT_EQ(file.Count('x'), static_cast<int64_t>(kBytes));
}

// What the daemon relies on where it writes an image to storage.
TEST_F(MemoryGuardTest, TheKernelAnswersEfaultForLostMemory) {
  SharedFile file(fs_.get());
  const TempDir dir;
  const FileDescriptor out(fs_.get(), fs_->Open(dir / "f", O_CREAT | O_WRONLY, 0600));
  file.Cut(0);
  EXPECT_EQ(fs_->Write(out.get(), file.data(), kBytes, 0), -EFAULT);
}

}  // namespace
}  // namespace ckptd
