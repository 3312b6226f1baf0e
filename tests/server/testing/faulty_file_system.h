#ifndef CKPTD_TESTS_SERVER_TESTING_FAULTY_FILE_SYSTEM_H_
#define CKPTD_TESTS_SERVER_TESTING_FAULTY_FILE_SYSTEM_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/os/file_system.h"

namespace ckptd {

// One method of FileSystem each, whether by path or in a folder.
enum class FsOp {
  kOpen,
  kOpenBeneath,
  kClose,
  kWrite,
  kRead,
  kTruncate,
  kAllocate,
  kStat,
  kDataSync,
  kSync,
  kGetFlags,
  kSetFlags,
  kLink,
  kSymlink,
  kReadLink,
  kRename,
  kUnlink,
  kRemoveDirectory,
  kMakeDirectory,
  kLinkStat,
  kAccess,
  kRealPath,
  kList,
  kStatVfs,
  kType,
  kMap,
  kUnmap,
  kRemap,
  kPopulate,
  kGather,
  kRegister,
};

// A call as it was made; what a method does not take has its default. Names in a folder are told as
// whole paths, by the one that the folder was opened with.
struct FsCall {
  FsOp op = FsOp::kOpen;
  int fd = -1;
  std::string path;    // of Link: the new name
  std::string target;  // of Rename: the new name
  int flags = 0;
  size_t length = 0;
  int64_t result = 0;  // what was answered
};

// Prints the calls one a line, for messages of failed tests.
std::string Describe(const std::vector<FsCall>& calls);

// Another file system with faults: calls that fail, or write less than they should, by order of the
// test; records all calls. Thread-safe.
class FaultyFileSystem : public FileSystem {
 public:
  // Sees a call before it is made. A result is answered in its place; of a kWrite the length may be
  // made smaller. May block.
  using Before = std::function<std::optional<int64_t>(FsCall& call)>;
  // Sees a call after it was made.
  using After = std::function<void(const FsCall& call)>;

  // `base` must outlive this.
  explicit FaultyFileSystem(FileSystem* base) : base_(base) {}

  // The `n`-th call from now on, the first being 1, answers -`error` and does nothing; a Close
  // closes all the same, as Linux does. The second form counts calls of one method only.
  void FailNth(int n, int error);
  void FailNth(FsOp op, int n, int error);
  // Every call of one method does.
  void FailAll(FsOp op, int error);
  void SetBefore(Before before);
  void SetAfter(After after);
  // Takes back all of the above and forgets the calls so far.
  void Reset();

  std::vector<FsCall> Calls() const;
  int Count(FsOp op) const;

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
  // A write of what this registers is a kWrite, too.
  int Register(uint8_t* data, size_t length, std::unique_ptr<RegisteredMemory>* out) override;

 private:
  class Registered;
  struct Fault {
    std::optional<FsOp> op;  // any if unset
    int countdown;           // fails the call that makes it 0; every call if -1
    int error;
  };

  // The result that `call` answers in place of the base's, if any.
  std::optional<int64_t> Decide(FsCall& call);
  // The path of a name in a folder.
  std::string PathOf(int dir, const std::string& name) const;
  // Keeps the path of what a call has opened.
  int Opened(int64_t fd, const std::string& path);
  template <typename Make>
  int64_t Do(FsCall call, Make make);

  FileSystem* const base_;
  mutable absl::Mutex mu_;
  std::vector<Fault> faults_ ABSL_GUARDED_BY(mu_);
  Before before_ ABSL_GUARDED_BY(mu_);
  After after_ ABSL_GUARDED_BY(mu_);
  std::vector<FsCall> calls_ ABSL_GUARDED_BY(mu_);
  std::map<int, std::string> open_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_FAULTY_FILE_SYSTEM_H_
