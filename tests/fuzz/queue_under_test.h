#ifndef CKPTD_TESTS_FUZZ_QUEUE_UNDER_TEST_H_
#define CKPTD_TESTS_FUZZ_QUEUE_UNDER_TEST_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/queue/save_queue.h"
#include "tests/server/testing/fake_clock.h"
#include "tests/server/testing/faulty_file_system.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {

// A queue with everything below it, over two temporary folders on a tmpfs: `disk` for checkpoints
// and `shm` for the pool. Whatever the calls say, nothing outside these folders can be changed: the
// file system aborts the process before a call that would.
class QueueUnderTest {
 public:
  QueueUnderTest();
  ~QueueUnderTest();
  QueueUnderTest(const QueueUnderTest&) = delete;
  QueueUnderTest& operator=(const QueueUnderTest&) = delete;

  SaveQueue* operator->() const { return queue_.get(); }
  std::string InDisk(const std::string& name) const { return disk_ / name; }
  void Advance() { clock_.Advance(absl::Seconds(1)); }

  // What must hold at any time.
  void CheckInvariants() const;
  // Waits for the end of all that is accepted, no session being open any more, and takes the queue
  // apart. Nothing may be left over: no image, and no file but checkpoints.
  void Finish();

 private:
  void Guard(const FsCall& call) const;
  // Told each change of each save, in order.
  void Follow(const v1::Save& save, bool progress_only);

  ScopedUmask umask_{0};
  TempDir disk_{TempDir::Place::kMemory};
  TempDir shm_{TempDir::Place::kMemory};
  TempDir state_{TempDir::Place::kMemory};
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
  FakeClock clock_;
  BackendRegistry backends_;
  absl::Mutex mu_;
  std::map<std::string, v1::Save::State> states_ ABSL_GUARDED_BY(mu_);
  // Lengths of the files that may be found on the disk.
  std::set<int64_t> lengths_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<SaveQueue> queue_;
  uint64_t subscription_ = 0;
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_FUZZ_QUEUE_UNDER_TEST_H_
