#ifndef CKPTD_TESTS_SERVER_PERSIST_PERSIST_FIXTURE_H_
#define CKPTD_TESTS_SERVER_PERSIST_PERSIST_FIXTURE_H_

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/persist/names.h"
#include "server/persist/persister.h"
#include "tests/server/testing/faulty_file_system.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {

// A content in memory as a save's image is: page-aligned, rubbish behind its end.
class PageAligned {
 public:
  explicit PageAligned(const std::string& content) : size_(content.size()) {
    data_ = static_cast<uint8_t*>(std::aligned_alloc(4096, capacity()));
    std::memset(data_, 0xEE, capacity());
    std::memcpy(data_, content.data(), size_);
  }
  ~PageAligned() { std::free(data_); }  // NOLINT(cppcoreguidelines-no-malloc)
  PageAligned(const PageAligned&) = delete;
  PageAligned& operator=(const PageAligned&) = delete;

  uint8_t* data() { return data_; }
  size_t capacity() const { return (size_ + 4095) / 4096 * 4096; }
  // Sealed from the start.
  PersistSource Source() const {
    PersistSource source;
    source.data = data_;
    source.size = size_;
    source.seal = [size = size_](const std::function<bool(uint64_t)>& sealed) {
      sealed(size);
      return absl::OkStatus();
    };
    return source;
  }

 private:
  const uint64_t size_;
  uint8_t* data_ = nullptr;
};

// `size` bytes that differ from one `seed` to another, and from page to page.
inline std::string Content(size_t size, uint32_t seed) {
  std::string page(4096, '\0');
  uint32_t state = seed * 2654435761U + 1;
  for (char& c : page) {
    state = state * 1664525U + 1013904223U;
    c = static_cast<char>(state >> 24);
  }
  std::string content;
  content.reserve(size + page.size());
  while (content.size() < size) {
    const uint64_t offset = content.size();
    std::memcpy(page.data() + seed % 100, &offset, sizeof(offset));
    content += page;
  }
  content.resize(size);
  return content;
}

// A target in a folder of its own over a file system that the test can break.
class PersistFixture : public testing::Test {
 protected:
  explicit PersistFixture(TempDir::Place place = TempDir::Place::kDisk) : dir_(place) {}

  absl::Status Persist(const std::string& content, mode_t umask = 022) {
    PersistControl control;
    return Persist(content, umask, &control);
  }
  absl::Status Persist(const std::string& content, mode_t umask, PersistControl* control) {
    PageAligned image(content);
    PersistSource source = image.Source();
    std::unique_ptr<RegisteredMemory> memory;
    if (registered_) EXPECT_EQ(fs_.Register(image.data(), image.capacity(), &memory), 0);
    source.registered = memory.get();
    return Persister(&fs_, {}, TempPrefix("test")).Persist(source, target_, umask, control);
  }

  std::vector<std::string> NamesOnly() const { return {"last.ckpt"}; }

  // Whether what Persist writes is registered before.
  bool registered_ = false;
  ScopedUmask umask_{0};
  TempDir dir_;
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
  const Target target_ = {dir_.path(), dir_ / "last.ckpt"};
};

inline bool IsDotName(const std::string& name) { return name.rfind(".ckptd-", 0) == 0; }

// A kernel or file system without unnamed files; folders can be opened.
inline std::optional<int64_t> RefuseTmpfile(const FsCall& call) {
  if (call.op == FsOp::kOpen && (call.flags & O_TMPFILE) == O_TMPFILE) return -EOPNOTSUPP;
  return std::nullopt;
}

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_PERSIST_PERSIST_FIXTURE_H_
