#ifndef CKPTD_TESTS_SERVER_TESTING_MEMORY_FILE_SYSTEM_H_
#define CKPTD_TESTS_SERVER_TESTING_MEMORY_FILE_SYSTEM_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/os/file_system.h"

namespace ckptd {

// What a path leads to after a power cut.
struct Remnant {
  bool folder = false;
  mode_t mode = 0;
  std::string content;

  bool operator==(const Remnant& other) const {
    return folder == other.folder && mode == other.mode && content == other.content;
  }
};

// A whole file system after a power cut: by absolute path, without "/" itself.
using Remains = std::map<std::string, Remnant>;

// A file system in memory that knows what a power cut may take from it, as POSIX has it and no real
// one is as bad:
//
//  * Each name in a folder is what it was made since the folder was last synced, or before, or
//    anything in between; each by itself, so that what was done first may be lost and what was done
//    later be there. A rename is two such changes: the new name's, never without a file, and the
//    old name's.
//  * The bytes of a file that was not synced are the old ones, any that it had since, or those with
//    pages that are zero, cut short, or partly old. Its length is synced with its bytes.
//
// Files and folders only: no symlinks (-EPERM), no rights, and files cannot be mapped (-ENODEV).
// Writes with O_DIRECT must be aligned, as on a disk. Thread-safe.
class MemoryFileSystem : public FileSystem {
 public:
  struct Options {
    bool unnamed_files = true;  // O_TMPFILE
    bool direct_writes = true;  // O_DIRECT
  };

  MemoryFileSystem() : MemoryFileSystem(Options()) {}
  // Empty, or, all of it durable, what a power cut left.
  explicit MemoryFileSystem(const Options& options, const Remains& remains = {});

  // The states that a power cut now may leave, each once: all of them if they are at most
  // `at_most`; otherwise the oldest, the newest, and others by `seed`.
  std::vector<Remains> AfterPowerCut(size_t at_most, uint32_t seed) const;
  // As it is while the power is there.
  Remains Now() const;
  // Descriptors that were not closed.
  size_t OpenFiles() const;

  int Close(int fd) override;
  ssize_t Write(int fd, const void* data, size_t length, off_t offset) override;
  ssize_t Read(int fd, void* data, size_t length, off_t offset) override;
  int Truncate(int fd, off_t length) override;
  int Allocate(int fd, off_t length) override;
  int Stat(int fd, struct stat* out) override;
  int DataSync(int fd) override;
  int Sync(int fd) override;
  int GetFlags(int fd) override;
  int SetFlags(int fd, int flags) override;
  int RealPath(const std::string& path, std::string* out) override;
  int StatVfs(const std::string& path, struct statvfs* out) override;
  int64_t Type(const std::string& path) override;
  int OpenAt(int dir, const std::string& name, int flags, mode_t mode) override;
  int OpenBeneath(int dir, const std::string& path, int flags) override;
  int LinkAt(int fd, int dir, const std::string& name) override;
  int SymlinkAt(const std::string& to, int dir, const std::string& name) override;
  int ReadLinkAt(int dir, const std::string& name, std::string* to) override;
  int RenameAt(int dir, const std::string& from, const std::string& to) override;
  int UnlinkAt(int dir, const std::string& name) override;
  int RemoveDirectoryAt(int dir, const std::string& name) override;
  int MakeDirectoryAt(int dir, const std::string& name, mode_t mode) override;
  int LinkStatAt(int dir, const std::string& name, struct stat* out) override;
  int AccessAt(int dir, const std::string& name, int mode) override;
  int ListAt(int dir, const std::string& name, std::vector<std::string>* names) override;
  int Map(int fd, size_t length, uint8_t** out) override;
  int Unmap(uint8_t* data, size_t length) override;
  int Remap(uint8_t* data, size_t old_length, size_t new_length, uint8_t** out) override;
  int Populate(uint8_t* data, size_t length, bool* huge) override;
  int Gather(int fd, off_t offset, size_t length) override;
  int Register(uint8_t* data, size_t length, std::unique_ptr<RegisteredMemory>* out) override;

 private:
  struct Inode;
  using InodePtr = std::shared_ptr<Inode>;
  // Oldest first: front() is on the disk, back() is what a program sees.
  template <typename T>
  using History = std::vector<T>;

  struct Inode {
    uint64_t number = 0;
    bool folder = false;
    std::weak_ptr<Inode> parent;  // of a folder; none of "/"
    mode_t mode = 0;
    History<std::string> contents;
    std::map<std::string, History<InodePtr>> entries;  // a name without a file is nullptr

    InodePtr Find(const std::string& name) const;
    void Set(const std::string& name, InodePtr to);
  };
  struct OpenFile {
    InodePtr inode;
    int flags = 0;
  };
  // Where a path leads: the folder of its last name, and what that name is; nullptr if nothing.
  struct Place {
    InodePtr folder;
    std::string name;
    InodePtr inode;
  };

  // 0 or -errno: only the last name may be missing.
  int Find(int dir, const std::string& path, Place* out) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  InodePtr Make(bool folder, mode_t mode, const InodePtr& parent)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The open file, or nullptr.
  OpenFile* At(int fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static void FillStat(const Inode& inode, struct stat* out);
  static bool IsEmpty(const Inode& folder);
  int Remove(int dir, const std::string& name, bool folder) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // One way after another to choose what reached the disk.
  class Cut;

  const Options options_;
  mutable absl::Mutex mu_;
  InodePtr root_ ABSL_GUARDED_BY(mu_);
  uint64_t next_number_ ABSL_GUARDED_BY(mu_) = 1;
  std::map<int, OpenFile> open_ ABSL_GUARDED_BY(mu_);
  int next_fd_ ABSL_GUARDED_BY(mu_) = 1000;
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_MEMORY_FILE_SYSTEM_H_
