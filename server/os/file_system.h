#ifndef CKPTD_SERVER_OS_FILE_SYSTEM_H_
#define CKPTD_SERVER_OS_FILE_SYSTEM_H_

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "client/cpp/core/huge_page.h"
#include "server/os/registered_memory.h"

namespace ckptd {

// The one seam between the daemon and the files it touches: what tests must be able to break.
// Each method is one system call and answers as the kernel does: a result >= 0, or -errno.
// Thread-safe. EINTR is retried inside where POSIX leaves the call undone.
class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // ---- Files by descriptor; the caller owns what an Open returns.
  int Open(const std::string& path, int flags, mode_t mode) {
    return OpenAt(AT_FDCWD, path, flags, mode);
  }
  virtual int Close(int fd) = 0;
  virtual ssize_t Write(int fd, const void* data, size_t length, off_t offset) = 0;
  virtual ssize_t Read(int fd, void* data, size_t length, off_t offset) = 0;
  virtual int Truncate(int fd, off_t length) = 0;
  // Allocates storage without changing the file's length.
  virtual int Allocate(int fd, off_t length) = 0;
  virtual int Stat(int fd, struct stat* out) = 0;
  virtual int DataSync(int fd) = 0;
  virtual int Sync(int fd) = 0;
  virtual int GetFlags(int fd) = 0;
  virtual int SetFlags(int fd, int flags) = 0;

  // ---- Names, by path.
  // Gives the file behind `fd`, opened with O_TMPFILE, a name that does not exist yet.
  int Link(int fd, const std::string& path) { return LinkAt(fd, AT_FDCWD, path); }
  int Rename(const std::string& from, const std::string& to) {
    return RenameAt(AT_FDCWD, from, to);
  }
  int Unlink(const std::string& path) { return UnlinkAt(AT_FDCWD, path); }
  int RemoveDirectory(const std::string& path) { return RemoveDirectoryAt(AT_FDCWD, path); }
  int MakeDirectory(const std::string& path, mode_t mode) {
    return MakeDirectoryAt(AT_FDCWD, path, mode);
  }
  // Does not follow a symlink at the end of `path`.
  int LinkStat(const std::string& path, struct stat* out) {
    return LinkStatAt(AT_FDCWD, path, out);
  }
  // Names in a folder, without "." and "..".
  int List(const std::string& path, std::vector<std::string>* names) {
    return ListAt(AT_FDCWD, path, names);
  }
  virtual int RealPath(const std::string& path, std::string* out) = 0;
  virtual int StatVfs(const std::string& path, struct statvfs* out) = 0;
  // The f_type of statfs, for example TMPFS_MAGIC.
  virtual int64_t Type(const std::string& path) = 0;

  // ---- Names in the folder behind the descriptor `dir`: they mean the same whatever becomes of
  // the folder's own path meanwhile. "." is the folder itself.
  virtual int OpenAt(int dir, const std::string& name, int flags, mode_t mode) = 0;
  // Opens a file that exists, by a path of one or more names that must not lead out of the folder,
  // be it by ".." or by a symlink: -EXDEV where it does; and not by what /proc holds: -ELOOP.
  virtual int OpenBeneath(int dir, const std::string& path, int flags) = 0;
  virtual int LinkAt(int fd, int dir, const std::string& name) = 0;
  // A symlink that leads to `to`. -EEXIST where there is anything of that name.
  virtual int SymlinkAt(const std::string& to, int dir, const std::string& name) = 0;
  // Where a symlink leads; -EINVAL of anything else.
  virtual int ReadLinkAt(int dir, const std::string& name, std::string* to) = 0;
  virtual int RenameAt(int dir, const std::string& from, const std::string& to) = 0;
  virtual int UnlinkAt(int dir, const std::string& name) = 0;
  virtual int RemoveDirectoryAt(int dir, const std::string& name) = 0;
  virtual int MakeDirectoryAt(int dir, const std::string& name, mode_t mode) = 0;
  virtual int LinkStatAt(int dir, const std::string& name, struct stat* out) = 0;
  virtual int AccessAt(int dir, const std::string& name, int mode) = 0;
  virtual int ListAt(int dir, const std::string& name, std::vector<std::string>* names) = 0;

  // ---- Memory of a file, mapped shared and writable.
  virtual int Map(int fd, size_t length, uint8_t** out) = 0;
  virtual int Unmap(uint8_t* data, size_t length) = 0;
  // Changes a mapping's length; it may move. Pages that stay need not be faulted in again.
  virtual int Remap(uint8_t* data, size_t old_length, size_t new_length, uint8_t** out) = 0;
  // Faults pages in, for writing: huge ones where there are none yet and the kernel has some at
  // hand: `huge` says whether all are that can be. Pages that are there stay where they are.
  // -EFAULT where the file system has no room.
  virtual int Populate(uint8_t* data, size_t length, bool* huge) = 0;
  // Moves pages of a file in tmpfs, all of which must be there, into huge ones, as far as the
  // kernel has any: what is contiguous is read and written in fewer requests. `offset` and `length`
  // are multiples of kHugePage. Takes one to four times as long as to fault them in. -EINVAL where
  // the kernel does not do that.
  virtual int Gather(int fd, off_t offset, size_t length) = 0;
  // See NewRegisteredMemory.
  virtual int Register(uint8_t* data, size_t length, std::unique_ptr<RegisteredMemory>* out) = 0;
};

// The kernel's own.
std::unique_ptr<FileSystem> NewPosixFileSystem();

// A descriptor that closes itself; -1 when empty. Keep a FileSystem longer than its descriptors.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  FileDescriptor(FileSystem* fs, int fd) : fs_(fs), fd_(fd) {}
  ~FileDescriptor() { Close(); }
  FileDescriptor(FileDescriptor&& other) noexcept;
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

  // 0, or -errno of the close. Nothing happens the second time.
  int Close();

 private:
  FileSystem* fs_ = nullptr;
  int fd_ = -1;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_FILE_SYSTEM_H_
