// What the kernel holds of an image for direct writes is what the image has.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tests/server/staging/pool_fixture.h"

namespace ckptd {
namespace {

class RegisteredImageTest : public PoolTest {
 protected:
  void SetUp() override {
    MakePool(64 * kMiB);
    auto image = Acquire(kMiB);
    const int error = image->Register();
    pool_->Discard(std::move(image));
    if (error == -EPERM || error == -ENOSYS || error == -ENOMEM) {
      GTEST_SKIP() << "io_uring: " << std::strerror(-error);
    }
    ASSERT_EQ(error, 0);
    fs_.Reset();
  }

  // An image of one byte over and over, as a save fills it.
  std::unique_ptr<Image> Filled(uint64_t size, char c) {
    auto image = Acquire(size);
    std::memset(image->data(), c, image->capacity());
    return image;
  }
  // What a direct write of the whole image stores.
  std::string Stored(Image* image) {
    const std::string path = disk_ / "file";
    const int fd = open(path.c_str(), O_CREAT | O_WRONLY | O_TRUNC | O_DIRECT, 0600);
    RegisteredMemory* const memory = pool_->Register(image);
    EXPECT_NE(memory, nullptr);
    if (memory == nullptr) return "";
    const auto capacity = static_cast<ssize_t>(image->capacity());
    EXPECT_EQ(memory->Write(fd, image->data(), image->capacity(), 0), capacity);
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

TEST_F(RegisteredImageTest, AnotherCapacityIsHeldAnew) {
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

TEST_F(RegisteredImageTest, MemoryComesBackWithTheImage) {
  const auto free_blocks = [&] {
    struct statvfs info = {};
    EXPECT_EQ(statvfs(dir_.path().c_str(), &info), 0);
    return info.f_bfree * info.f_bsize;
  };
  auto image = Filled(32 * kMiB, 'a');
  EXPECT_NE(pool_->Register(image.get()), nullptr);
  const uint64_t before = free_blocks();
  pool_->Discard(std::move(image));
  // Others use this file system at the same time.
  EXPECT_GE(free_blocks(), before + 16 * kMiB);
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
