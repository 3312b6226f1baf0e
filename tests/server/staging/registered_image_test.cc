// What the kernel holds of an image for direct writes is what the image has.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>
#include <string>

#include "tests/server/staging/pool_fixture.h"
#include "tests/server/testing/registering.h"

namespace ckptd {
namespace {

class RegisteredImageTest : public PoolTest {
 protected:
  void SetUp() override {
    const std::string refusal = WhyNoRegisteredMemory();
    if (!refusal.empty()) GTEST_SKIP() << refusal;
    MakePool(64 * kMiB);
  }

  // An image of one byte over and over, as a save fills it.
  std::unique_ptr<Image> Filled(uint64_t size, char c) {
    auto image = Acquire(size);
    std::memset(image->data(), c, image->capacity());
    return image;
  }
  // What direct writes of the whole image store, of memory that is held where it is.
  std::string Stored(Image* image) {
    const std::string path = disk_ / "file";
    const int fd = open(path.c_str(), O_CREAT | O_WRONLY | O_TRUNC | O_DIRECT, 0600);
    RegisteredMemory* const memory = pool_->Register(image);
    EXPECT_NE(memory, nullptr);
    if (memory == nullptr) return "";
    const size_t held = std::min<size_t>(memory->size(), image->capacity());
    for (size_t at = 0; at < held; at += RegisteredMemory::kPartBytes) {
      const size_t length = std::min(RegisteredMemory::kPartBytes, held - at);
      EXPECT_EQ(memory->Begin(fd, at, length), 0);
      EXPECT_EQ(memory->End().result, static_cast<ssize_t>(length));
    }
    const size_t rest = image->capacity() - held;
    EXPECT_EQ(pwrite(fd, image->data() + held, rest, static_cast<off_t>(held)),
              static_cast<ssize_t>(rest));
    close(fd);
    return ReadFile(path).substr(0, image->size());
  }
  int Registrations() const { return fs_.Count(FsOp::kRegister); }

  TempDir disk_{TempDir::Place::kDisk};
};

TEST_F(RegisteredImageTest, IsHeldFromSaveToSave) {
  for (const char c : {'a', 'b', 'c'}) {
    auto image = Filled(5 * kMiB, c);
    EXPECT_TRUE(Stored(image.get()) == std::string(5 * kMiB, c)) << c;
    pool_->Release(std::move(image));
  }
  EXPECT_EQ(Registrations(), 1);
}

TEST_F(RegisteredImageTest, ALengthThatChangesInTheLastPageChangesNothing) {
  for (const uint64_t size : {kMiB + 5, kMiB + 9, kMiB + 1}) {
    auto image = Filled(size, 'a');
    EXPECT_TRUE(Stored(image.get()) == std::string(size, 'a')) << size;
    pool_->Release(std::move(image));
  }
  EXPECT_EQ(Registrations(), 1);
}

TEST_F(RegisteredImageTest, AFewPagesMoreAreNotHeldAndThoseThatWentAreNoLonger) {
  char c = 'a';
  const auto store = [&](uint64_t size) {
    auto image = Filled(size, ++c);
    EXPECT_TRUE(Stored(image.get()) == std::string(size, c)) << size;
    pool_->Release(std::move(image));
  };
  constexpr uint64_t kFew = kMiB / 64;
  constexpr uint64_t kSmall = 2 * kMiB - 2 * kFew;
  for (const uint64_t size :
       {kSmall, kSmall - 8192, kSmall + 4096, kSmall + kFew, kSmall - kFew, kSmall}) {
    store(size);
  }
  EXPECT_EQ(Registrations(), 1);
  // One that is cut within a huge page is mapped anew, which counts as a change of its pages.
  for (const uint64_t size : {16 * kMiB, 16 * kMiB - 8192, 16 * kMiB + 4096, 16 * kMiB}) {
    store(size);
  }
}

TEST_F(RegisteredImageTest, OneThatGrowsOrShrinksByMuchIsHeldAnew) {
  for (const uint64_t size : {5 * kMiB, 6 * kMiB, 4 * kMiB}) {
    auto image = Filled(size, 'a');
    EXPECT_TRUE(Stored(image.get()) == std::string(size, 'a')) << size;
    pool_->Release(std::move(image));
  }
  EXPECT_EQ(Registrations(), 3);
}

// Each of these leaves the file as long as it was, and with all its pages: other ones.
TEST_F(RegisteredImageTest, PagesThatAClientHasReplacedAreNotWritten) {
  pool_->Release(Filled(5 * kMiB, '-'));
  const auto cut = [](int fd) {
    return ftruncate(fd, 0) == 0 && ftruncate(fd, static_cast<off_t>(5 * kMiB)) == 0;
  };
  const auto punch = [](int fd) {
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kMiB) == 0;
  };
  const auto remove = [](int fd) {
    void* const data = mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return madvise(data, kMiB, MADV_REMOVE) == 0 && munmap(data, kMiB) == 0;
  };
  for (bool (*const replace)(int) : {+cut, +punch, +remove}) {
    auto image = Filled(5 * kMiB, 'a');
    EXPECT_TRUE(Stored(image.get()) == std::string(5 * kMiB, 'a'));
    const int fd = open(image->path().c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_TRUE(replace(fd));
    close(fd);
    std::memset(image->data(), 'b', image->capacity());
    EXPECT_TRUE(Stored(image.get()) == std::string(5 * kMiB, 'b'));
    pool_->Release(std::move(image));
  }
}

// A borrower may do with its pages what it likes, as long as all are there in the end.
TEST_F(RegisteredImageTest, PagesThatABorrowerHasReplacedAreNotWritten) {
  for (const bool replaces : {false, true}) {
    auto image = Filled(5 * kMiB, 'a');
    EXPECT_TRUE(Stored(image.get()) == std::string(5 * kMiB, 'a'));
    const int before = Registrations();
    const int fd = Borrow(std::move(image));
    if (replaces) {
      ASSERT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kMiB), 0);
      ASSERT_EQ(fallocate(fd, 0, 0, kMiB), 0);
    }
    close(fd);
    image = Filled(5 * kMiB, 'b');
    EXPECT_TRUE(Stored(image.get()) == std::string(5 * kMiB, 'b'));
    EXPECT_EQ(Registrations() - before, replaces ? 1 : 0);
    pool_->Release(std::move(image));
  }
}

// What is held for nothing would be beyond the budget.
TEST_F(RegisteredImageTest, PagesAreHeldNoLongerThanTheyAreTheImages) {
  // In MiB, as the kernel counts for this process.
  const auto held = [] {
    std::istringstream status(ReadFile("/proc/self/status"));
    std::string line;
    while (std::getline(status, line)) {
      if (line.rfind("VmPin:", 0) == 0) return std::stoi(line.substr(6)) / 1024;
    }
    return -1;
  };
  auto image = Filled(32 * kMiB, 'a');
  EXPECT_NE(pool_->Register(image.get()), nullptr);
  EXPECT_EQ(held(), 32);
  pool_->Release(std::move(image));
  image = Acquire(30 * kMiB);
  EXPECT_EQ(image->cuts(), 1u);
  EXPECT_EQ(held(), 0);
  EXPECT_NE(pool_->Register(image.get()), nullptr);
  EXPECT_EQ(held(), 30);
  pool_->Discard(std::move(image));
  EXPECT_EQ(held(), 0);
}

TEST_F(RegisteredImageTest, WhereItIsRefusedItIsTriedOnce) {
  fs_.FailAll(FsOp::kRegister, EPERM);
  for (int i = 0; i < 3; ++i) {
    auto image = Acquire(kMiB);
    EXPECT_EQ(pool_->Register(image.get()), nullptr);
    pool_->Release(std::move(image));
  }
  EXPECT_EQ(Registrations(), 1);
}

// One whose client has cut it says nothing about the others.
TEST_F(RegisteredImageTest, AFaultOfOneIsNoRefusal) {
  fs_.FailNth(FsOp::kRegister, 1, EFAULT);
  auto image = Filled(kMiB, 'a');
  EXPECT_EQ(pool_->Register(image.get()), nullptr);
  EXPECT_TRUE(Stored(image.get()) == std::string(kMiB, 'a'));
  pool_->Release(std::move(image));
}

}  // namespace
}  // namespace ckptd
