#ifndef CKPTD_TESTS_SERVER_STAGING_POOL_FIXTURE_H_
#define CKPTD_TESTS_SERVER_STAGING_POOL_FIXTURE_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "server/staging/pool.h"
#include "server/staging/pool_dir.h"
#include "tests/server/testing/faulty_file_system.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"
#include "tests/server/testing/wait.h"

namespace ckptd {

inline constexpr uint64_t kMiB = uint64_t{1} << 20;

// A pool in a folder of its own on a real tmpfs, over a file system that the test can break.
class PoolTest : public testing::Test {
 protected:
  ~PoolTest() override {
    gate_.Open();
    pool_.reset();
  }

  void MakePool(uint64_t budget) {
    auto lock = PreparePoolDir(&fs_, dir_.path());
    ASSERT_OK(lock);
    Pool::Options options;
    options.dir = dir_.path();
    options.budget_bytes = budget;
    pool_ = std::make_unique<Pool>(&fs_, options, *std::move(lock));
  }

  // Takes what must be there at once, or at least soon.
  std::unique_ptr<Image> Acquire(uint64_t size, const std::string& owner = "") {
    auto image = pool_->Acquire(owner, size, Soon(), never_);
    EXPECT_OK(image);
    return image.ok() ? *std::move(image) : nullptr;
  }
  // Lends an image, and returns the descriptor by which its borrower holds it.
  int Borrow(std::unique_ptr<Image> image) {
    const int fd = open(image->path().c_str(), O_RDWR | O_CLOEXEC);
    EXPECT_EQ(flock(fd, LOCK_SH | LOCK_NB), 0);
    pool_->Lend(std::move(image));
    return fd;
  }
  // The error of a call that does not wait.
  absl::Status AcquireError(uint64_t size) {
    return pool_->Acquire("", size, absl::Now(), never_).status();
  }

  std::vector<std::string> FreeNames() const { return ListDir(FreeDir(dir_.path())); }
  // Names in the pool's folder but for that of the free images.
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const std::string& name : dir_.List()) {
      if (name != ".free") names.push_back(name);
    }
    return names;
  }

  TempDir dir_{TempDir::Place::kMemory};
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
  CancelToken never_{false};
  // For what a test puts into fs_: the pool's thread may be there until the pool ends.
  Gate gate_;
  std::unique_ptr<Pool> pool_;
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_STAGING_POOL_FIXTURE_H_
