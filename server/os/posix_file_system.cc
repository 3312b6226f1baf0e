#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/os/file_system.h"

namespace ckptd {
namespace {

#ifndef MADV_POPULATE_WRITE
constexpr int MADV_POPULATE_WRITE = 23;  // Linux 5.14; glibc's headers are older in some places
#endif

template <typename Call>
auto Retry(Call call) -> decltype(call()) {
  for (;;) {
    auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return -errno;
  }
}

class PosixFileSystem : public FileSystem {
 public:
  int Open(const std::string& path, int flags, mode_t mode) override {
    return Retry([&] { return open(path.c_str(), flags | O_CLOEXEC, mode); });
  }
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
  int Chmod(int fd, mode_t mode) override {
    return Retry([&] { return fchmod(fd, mode); });
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
  // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH; the /proc way needs nothing.
  int Link(int fd, const std::string& path) override {
    const std::string source = absl::StrCat("/proc/self/fd/", fd);
    return Retry([&] {
      return linkat(AT_FDCWD, source.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW);
    });
  }

  int Rename(const std::string& from, const std::string& to) override {
    return Retry([&] { return rename(from.c_str(), to.c_str()); });
  }
  int Unlink(const std::string& path) override {
    return Retry([&] { return unlink(path.c_str()); });
  }
  int RemoveDirectory(const std::string& path) override {
    return Retry([&] { return rmdir(path.c_str()); });
  }
  int MakeDirectory(const std::string& path, mode_t mode) override {
    return Retry([&] { return mkdir(path.c_str(), mode); });
  }
  int LinkStat(const std::string& path, struct stat* out) override {
    return Retry([&] { return lstat(path.c_str(), out); });
  }
  int Access(const std::string& path, int mode) override {
    return Retry([&] { return access(path.c_str(), mode); });
  }
  int RealPath(const std::string& path, std::string* out) override {
    char* resolved = realpath(path.c_str(), nullptr);
    if (resolved == nullptr) return -errno;
    *out = resolved;
    free(resolved);  // NOLINT(cppcoreguidelines-no-malloc): realpath allocates with malloc
    return 0;
  }
  int List(const std::string& path, std::vector<std::string>* names) override {
    DIR* dir = opendir(path.c_str());
    if (dir == nullptr) return -errno;
    names->clear();
    errno = 0;
    // NOLINTNEXTLINE(concurrency-mt-unsafe): readdir is safe on a stream of one's own
    while (const dirent* entry = readdir(dir)) {
      const absl::string_view name = entry->d_name;
      if (name != "." && name != "..") names->emplace_back(name);
    }
    const int error = errno;
    closedir(dir);
    return -error;
  }
  int StatVfs(const std::string& path, struct statvfs* out) override {
    return Retry([&] { return statvfs(path.c_str(), out); });
  }
  int64_t Type(const std::string& path) override {
    struct statfs info = {};
    const int result = Retry([&] { return statfs(path.c_str(), &info); });
    return result < 0 ? result : static_cast<int64_t>(info.f_type);
  }

  int Map(int fd, size_t length, uint8_t** out) override {
    void* data = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) return -errno;
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
  int Populate(uint8_t* data, size_t length) override {
    return Retry([&] { return madvise(data, length, MADV_POPULATE_WRITE); });
  }
};

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
