#ifndef CKPTD_TESTS_SERVER_TESTING_FAULTY_FILE_SYSTEM_H_
#define CKPTD_TESTS_SERVER_TESTING_FAULTY_FILE_SYSTEM_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/os/file_system.h"

namespace ckptd {

// One method of FileSystem each.
enum class FsOp {
  kOpen,
  kClose,
  kWrite,
  kRead,
  kTruncate,
  kAllocate,
  kChmod,
  kStat,
  kDataSync,
  kSync,
  kGetFlags,
  kSetFlags,
  kLink,
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
};

// A call as it was made; what a method does not take has its default.
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

  int Open(const std::string& path, int flags, mode_t mode) override;
  int Close(int fd) override;
  ssize_t Write(int fd, const void* data, size_t length, off_t offset) override;
  ssize_t Read(int fd, void* data, size_t length, off_t offset) override;
  int Truncate(int fd, off_t length) override;
  int Allocate(int fd, off_t length) override;
  int Chmod(int fd, mode_t mode) override;
  int Stat(int fd, struct stat* out) override;
  int DataSync(int fd) override;
  int Sync(int fd) override;
  int GetFlags(int fd) override;
  int SetFlags(int fd, int flags) override;
  int Link(int fd, const std::string& path) override;
  int Rename(const std::string& from, const std::string& to) override;
  int Unlink(const std::string& path) override;
  int RemoveDirectory(const std::string& path) override;
  int MakeDirectory(const std::string& path, mode_t mode) override;
  int LinkStat(const std::string& path, struct stat* out) override;
  int Access(const std::string& path, int mode) override;
  int RealPath(const std::string& path, std::string* out) override;
  int List(const std::string& path, std::vector<std::string>* names) override;
  int StatVfs(const std::string& path, struct statvfs* out) override;
  int64_t Type(const std::string& path) override;
  int Map(int fd, size_t length, uint8_t** out) override;
  int Unmap(uint8_t* data, size_t length) override;
  int Remap(uint8_t* data, size_t old_length, size_t new_length, uint8_t** out) override;
  int Populate(uint8_t* data, size_t length) override;

 private:
  struct Fault {
    std::optional<FsOp> op;  // any if unset
    int countdown;           // fails the call that makes it 0; every call if -1
    int error;
  };

  // The result that `call` answers in place of the base's, if any.
  std::optional<int64_t> Decide(FsCall& call);
  template <typename Make>
  int64_t Do(FsCall call, Make make);

  FileSystem* const base_;
  mutable absl::Mutex mu_;
  std::vector<Fault> faults_ ABSL_GUARDED_BY(mu_);
  Before before_ ABSL_GUARDED_BY(mu_);
  After after_ ABSL_GUARDED_BY(mu_);
  std::vector<FsCall> calls_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_FAULTY_FILE_SYSTEM_H_
