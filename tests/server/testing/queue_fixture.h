#ifndef CKPTD_TESTS_SERVER_TESTING_QUEUE_FIXTURE_H_
#define CKPTD_TESTS_SERVER_TESTING_QUEUE_FIXTURE_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/queue/save_queue.h"
#include "tests/server/testing/fake_clock.h"
#include "tests/server/testing/faulty_file_system.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"
#include "tests/server/testing/wait.h"

namespace ckptd {

// Follows saves: what a subscriber of the queue is told, in order. Thread-safe.
class Recorder {
 public:
  explicit Recorder(SaveQueue* queue, const std::string& name = "");
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // Waits until `done` holds for all that was told so far; false after kPatience.
  bool WaitUntil(const std::function<bool(const std::vector<v1::Save>&)>& done);
  // Changes of state, not progress.
  std::vector<v1::Save> Saves() const;
  // The same as "s1 QUEUED".
  std::vector<std::string> States() const;

 private:
  SaveQueue* const queue_;
  mutable absl::Mutex mu_;
  std::vector<v1::Save> saves_ ABSL_GUARDED_BY(mu_);
  uint64_t id_ = 0;
};

// A queue over a real disk and a real tmpfs, both through a file system that the test can break or
// hold. Its backend "raw" makes a file of nothing but the content; "torch" is there, too.
class QueueTest : public testing::Test {
 protected:
  // `place`: of the checkpoints and the journal.
  explicit QueueTest(TempDir::Place place = TempDir::Place::kDisk);
  ~QueueTest() override;

  // Makes the queue anew, with neither journal nor images of an earlier one. SetUp does with what
  // fails at once where its storage does.
  void Start(const SaveQueue::Options& options, uint64_t budget = uint64_t{64} << 20);
  void SetUp() override { Start(NoRetry()); }
  static SaveQueue::Options NoRetry();

  // Stops the queue, if that has not been done, and makes another one of what it has left.
  // `crashed`: numbers of saves over which it is to have crashed.
  void Restart(const SaveQueue::Options& options = NoRetry(),
               const std::vector<uint64_t>& crashed = {});
  // The same, but tells why the queue could not take over what there is.
  absl::Status TryRestart(const SaveQueue::Options& options = NoRetry(),
                          const std::vector<uint64_t>& crashed = {});
  void StopAll();

  // The save that the next calls are about: jobs/j/saves/{id}, or the whole name if it has a slash.
  v1::BeginSaveRequest Request(const std::string& id, const std::string& path, size_t size = 100);
  static std::string Name(const std::string& id);
  absl::StatusOr<v1::BeginSaveResponse> Begin(const v1::BeginSaveRequest& request) {
    return queue_->BeginSave(request, Soon());
  }
  // BeginSave and WriteSave. The path is one in disk_.
  void Stage(const std::string& id, const std::string& file, const std::string& content);
  // The same and CommitSave.
  void Save(const std::string& id, const std::string& file, const std::string& content);
  // As it is when it has ended.
  v1::Save WaitForEnd(const std::string& id);
  v1::Save Get(const std::string& id);
  absl::StatusOr<v1::ListSavesResponse> ListSaves(const v1::ListSavesRequest& request) const;

  absl::StatusOr<v1::BeginLoadResponse> Load(const std::string& file, absl::Time deadline = Soon());
  absl::Status Remove(const std::string& file, bool wait, const std::string& job = "jobs/j",
                      absl::Time deadline = Soon());
  absl::StatusOr<v1::FlushResponse> Flush(const std::string& parent = "jobs/-",
                                          const std::string& file = "",
                                          absl::Time deadline = Soon());

  // Stops every save at its fdatasync until gate_ lets it go on.
  void HoldSaves();
  // Leaves all that is accepted undone from now on: nothing gets past its opening; until this stops
  // the queue.
  void Jam();
  void StopJammed();
  // Names of images in the pool's folder that a client could open.
  std::vector<std::string> LeasedImages() const;

  ScopedUmask umask_{0};
  TempDir disk_;
  TempDir shm_{TempDir::Place::kMemory};
  TempDir state_;
  BackendHosts hosts_{BackendHosts::Options{}};
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
  FakeClock clock_;
  Gate gate_;
  BackendRegistry backends_;
  uint64_t budget_ = 0;
  // Whether Restart leaves images that no save has.
  bool keep_images_ = false;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<SaveQueue> queue_;
  std::string session_;
};

// What an ended save says why.
absl::Status ErrorOf(const v1::Save& save);

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_QUEUE_FIXTURE_H_
