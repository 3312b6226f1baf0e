#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/os/file_system.h"
#include "server/os/round_up.h"

namespace ckptd {
namespace {

#ifndef MADV_POPULATE_WRITE
constexpr int MADV_POPULATE_WRITE = 23;  // Linux 5.14; glibc's headers are older in some places
#endif
#ifndef MADV_COLLAPSE
constexpr int MADV_COLLAPSE = 25;  // Linux 6.1
#endif

// Makes huge pages of what has no pages yet, 512 by one fault, where the mapping allows and the
// kernel has some at hand: ten times as fast as the same memory page by page. What has pages is
// left alone: they may be held for direct writes (registered_memory.h), which would go on from
// those that were moved away. Whether there are huge pages wherever one fits.
bool MakeHugePages(uint8_t* data, size_t length) {
  constexpr size_t kStep = 8 * kHugePage;
  // Twice what it takes page by page. A kernel that must move others' pages first, or whose own
  // host has to find the memory, takes longer: it does so from the first step on.
  constexpr double kPatience = 1e-9;  // seconds for each byte
  uint8_t* const begin =
      data + (kHugePage - reinterpret_cast<uintptr_t>(data) % kHugePage) % kHugePage;
  const absl::Time start = absl::Now();
  for (uint8_t* at = begin; at < data + length && data + length - at >= ptrdiff_t{kHugePage};) {
    const size_t step =
        std::min<size_t>(kStep, static_cast<size_t>(data + length - at) / kHugePage * kHugePage);
    std::array<unsigned char, kStep / kPageBytes> pages;
    if (mincore(at, step, pages.data()) != 0) return false;
    const auto end = pages.begin() + static_cast<ptrdiff_t>(step / kPageBytes);
    if (std::any_of(pages.begin(), end, [](unsigned char page) { return (page & 1) != 0; })) {
      return false;
    }
    // A huge page is made where there is at least one page.
    for (size_t page = 0; page < step; page += kHugePage) {
      if (madvise(at + page, kPageBytes, MADV_POPULATE_WRITE) != 0) return false;
    }
    if (madvise(at, step, MADV_COLLAPSE) != 0) return false;
    at += step;
    const auto done = static_cast<double>(at - begin);
    if (absl::Now() - start > absl::Seconds(kPatience * done)) {
      return static_cast<size_t>(data + length - at) < kHugePage;
    }
  }
  return true;
}

template <typename Call>
auto Retry(Call call) -> decltype(call()) {
  for (;;) {
    auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return static_cast<decltype(result)>(-errno);
  }
}

class PosixFileSystem : public FileSystem {
 public:
  // Not retried: Linux closes the descriptor even when it says EINTR.
  int Close(int fd) override { return close(fd) == 0 || errno == EINTR ? 0 : -errno; }
  ssize_t Write(int fd, const void* data, size_t length, off_t offset) override {
    return Retry([&] { return pwrite(fd, data, length, offset); });
  }
  ssize_t Read(int fd, void* data, size_t length, off_t offset) override {
    return Retry([&] { return pread(fd, data, length, offset); });
  }
  int Truncate(int fd, off_t length) override {
    return Retry([&] { return ftruncate(fd, length); });
  }
  int Allocate(int fd, off_t length) override {
    return Retry([&] { return fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, length); });
  }
  int Stat(int fd, struct stat* out) override {
    return Retry([&] { return fstat(fd, out); });
  }
  int DataSync(int fd) override {
    return Retry([&] { return fdatasync(fd); });
  }
  int Sync(int fd) override {
    return Retry([&] { return fsync(fd); });
  }
  int GetFlags(int fd) override {
    return Retry([&] { return fcntl(fd, F_GETFL); });
  }
  int SetFlags(int fd, int flags) override {
    return Retry([&] { return fcntl(fd, F_SETFL, flags); });
  }
  int RealPath(const std::string& path, std::string* out) override {
    char* resolved = realpath(path.c_str(), nullptr);
    if (resolved == nullptr) return -errno;
    *out = resolved;
    free(resolved);  // NOLINT(cppcoreguidelines-no-malloc): realpath allocates with malloc
    return 0;
  }
  int StatVfs(const std::string& path, struct statvfs* out) override {
    return Retry([&] { return statvfs(path.c_str(), out); });
  }
  int64_t Type(const std::string& path) override {
    struct statfs info = {};
    const int result = Retry([&] { return statfs(path.c_str(), &info); });
    return result < 0 ? result : static_cast<int64_t>(info.f_type);
  }

  int OpenAt(int dir, const std::string& name, int flags, mode_t mode) override {
    return Retry([&] { return openat(dir, name.c_str(), flags | O_CLOEXEC, mode); });
  }
  int OpenBeneath(int dir, const std::string& path, int flags) override {
    struct open_how how = {};
    how.flags = static_cast<uint64_t>(flags | O_CLOEXEC);
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
    return static_cast<int>(
        Retry([&] { return syscall(SYS_openat2, dir, path.c_str(), &how, sizeof(how)); }));
  }
  // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; the /proc way needs nothing.
  int LinkAt(int fd, int dir, const std::string& name) override {
    const std::string source = absl::StrCat("/proc/self/fd/", fd);
    return Retry(
        [&] { return linkat(AT_FDCWD, source.c_str(), dir, name.c_str(), AT_SYMLINK_FOLLOW); });
  }
  int SymlinkAt(const std::string& to, int dir, const std::string& name) override {
    return Retry([&] { return symlinkat(to.c_str(), dir, name.c_str()); });
  }
  int ReadLinkAt(int dir, const std::string& name, std::string* to) override {
    to->resize(PATH_MAX);
    const ssize_t length =
        Retry([&] { return readlinkat(dir, name.c_str(), to->data(), to->size()); });
    to->resize(length < 0 ? 0 : static_cast<size_t>(length));
    return length < 0 ? static_cast<int>(length) : 0;
  }
  int RenameAt(int dir, const std::string& from, const std::string& to) override {
    return Retry([&] { return renameat(dir, from.c_str(), dir, to.c_str()); });
  }
  int UnlinkAt(int dir, const std::string& name) override {
    return Retry([&] { return unlinkat(dir, name.c_str(), 0); });
  }
  int RemoveDirectoryAt(int dir, const std::string& name) override {
    return Retry([&] { return unlinkat(dir, name.c_str(), AT_REMOVEDIR); });
  }
  int MakeDirectoryAt(int dir, const std::string& name, mode_t mode) override {
    return Retry([&] { return mkdirat(dir, name.c_str(), mode); });
  }
  int LinkStatAt(int dir, const std::string& name, struct stat* out) override {
    return Retry([&] { return fstatat(dir, name.c_str(), out, AT_SYMLINK_NOFOLLOW); });
  }
  int AccessAt(int dir, const std::string& name, int mode) override {
    return Retry([&] { return faccessat(dir, name.c_str(), mode, 0); });
  }
  int ListAt(int dir, const std::string& name, std::vector<std::string>* names) override {
    const int fd = OpenAt(dir, name, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return fd;
    DIR* stream = fdopendir(fd);
    if (stream == nullptr) {
      const int error = errno;
      close(fd);
      return -error;
    }
    names->clear();
    errno = 0;
    // NOLINTNEXTLINE(concurrency-mt-unsafe): readdir is safe on a stream of one's own
    while (const dirent* entry = readdir(stream)) {
      const absl::string_view found = entry->d_name;
      if (found != "." && found != "..") names->emplace_back(found);
    }
    const int error = errno;
    closedir(stream);
    return -error;
  }

  int Map(int fd, size_t length, uint8_t** out) override {
    void* data = MapAligned(fd, 0, length);
    if (data == MAP_FAILED) return -errno;
    // For a tmpfs that was mounted with huge=advise: a fault in place of 512.
    madvise(data, length, MADV_HUGEPAGE);
    *out = static_cast<uint8_t*>(data);
    return 0;
  }
  int Unmap(uint8_t* data, size_t length) override {
    return munmap(data, length) == 0 ? 0 : -errno;
  }
  int Remap(uint8_t* data, size_t old_length, size_t new_length, uint8_t** out) override {
    void* moved = mremap(data, old_length, new_length, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED) return -errno;
    *out = static_cast<uint8_t*>(moved);
    return 0;
  }
  int Populate(uint8_t* data, size_t length, bool* huge) override {
    *huge = MakeHugePages(data, length);
    return Retry([&] { return madvise(data, length, MADV_POPULATE_WRITE); });
  }
  int Gather(int fd, off_t offset, size_t length) override;
  int Register(uint8_t* data, size_t length, std::unique_ptr<RegisteredMemory>* out) override {
    return NewRegisteredMemory(data, length, out);
  }
};

// Through a mapping of its own, as that of the caller may have been moved.
int PosixFileSystem::Gather(int fd, off_t offset, size_t length) {
  void* const data = MapAligned(fd, offset, length);
  if (data == MAP_FAILED) return -errno;
  const int result = madvise(data, length, MADV_COLLAPSE) == 0 ? 0 : -errno;
  munmap(data, length);
  return result;
}

}  // namespace

std::unique_ptr<FileSystem> NewPosixFileSystem() { return std::make_unique<PosixFileSystem>(); }

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept
    : fs_(other.fs_), fd_(std::exchange(other.fd_, -1)) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    Close();
    fs_ = other.fs_;
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

int FileDescriptor::Close() {
  if (fd_ < 0) return 0;
  return fs_->Close(std::exchange(fd_, -1));
}

}  // namespace ckptd
