#ifndef CKPTD_TESTS_SERVER_QUEUE_MODEL_RUN_H_
#define CKPTD_TESTS_SERVER_QUEUE_MODEL_RUN_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "tests/server/queue/model.h"
#include "tests/server/queue/work_gate.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {

// One step of a history.
struct Step {
  enum Kind {
    kSave,
    kBegin,
    kCommit,
    kAbort,
    kCancel,
    kExport,
    kCloseSession,
    kLoad,
    kEndLoad,
    kWaitingLoad,
    kRemove,
    kFlush,
    kGoOn,
    kEndDelays,
    kStop,
    kKill,
  };
  Kind kind;
  // What it is about: one of those that there are when its turn comes. Where there is none, the
  // step does nothing: any row of steps is a history.
  uint32_t which;
  uint32_t path;
  uint32_t how;
};

// Does histories on a queue and on the model. Workers stop at one call of their work each, and go
// on, or find that the call has failed, when the history says so. After each step the queue must be
// all that the model says, and nothing else: the state of each save, what is at work, each file.
class ModelRun : public QueueTest {
 protected:
  // What was done, a line each, and what was wrong then; nothing if all was right.
  struct Outcome {
    std::vector<std::string> history;
    std::string failure;
  };

  ModelRun() : QueueTest(TempDir::Place::kMemory) {}

  // `patience`: how long the queue may take for a step.
  Outcome Run(const std::vector<Step>& steps, absl::Duration patience);

 private:
  static constexpr size_t kMaxSaves = 1000;
  using Op = QueueModel::Op;
  struct Held {
    std::string id;
    int session;
    Op* op;
  };

  void StartAnew();
  // After each start of the queue.
  void Attach();
  void Do(const Step& step);
  void DoWithSave(const Step& step);
  void Begin(const Step& step, bool commit);
  void Commit(const std::string& name);
  void Export(const std::string& name);
  void CloseSession(int session);
  void BeginLoad(const Step& step);
  void EndLoad(size_t which);
  void Remove(const Step& step);
  void FlushJob(const std::string& job);
  void GoOn(Op* op, uint32_t how);
  void EndDelays();
  // A daemon's end or death, and the next one's start.
  void Restart(bool killed);
  // Loads `files` while all work goes on to its end.
  void LoadAfterAllWork(const std::vector<std::string>& files);
  void Finish();

  WorkGate::Answer Before(const FsCall& call);
  // Saves that have not ended: all, or those that are STAGING.
  std::vector<std::string> SavesIn(bool staging) const;
  std::string ReadAll(const absl::StatusOr<v1::BeginLoadResponse>& load);
  std::set<std::string> SavesAtWork() const;
  // What is not as the model says; empty if nothing.
  std::string Difference();
  std::string SavesDifference() const;
  std::string FilesDifference() const;
  // Waits until there is no difference, and takes note of it otherwise.
  void Check();
  void Log(std::string line) { outcome_.history.push_back(std::move(line)); }
  void Expect(bool right, const std::string& what);
  bool failed() const { return !outcome_.failure.empty() || HasFatalFailure(); }

  const std::thread::id main_ = std::this_thread::get_id();
  TempDir exports_{TempDir::Place::kMemory};
  QueueModel model_{0};
  WorkGate work_;
  Outcome outcome_;
  absl::Duration patience_;
  // Of the saves so far, by size; never moved, as workers look into it.
  std::vector<std::string> names_;
  size_t begun_ = 0;
  std::vector<std::string> sessions_;
  std::vector<Held> held_;
  // Saves that a worker has, as the queue tells.
  mutable absl::Mutex told_mu_;
  std::set<std::string> at_work_ ABSL_GUARDED_BY(told_mu_);
  // Whether the clock goes on until what was delayed is at work again.
  bool time_passes_ = false;
  // Whether nothing that is done has an effect any more.
  std::atomic<bool> dead_{false};
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_QUEUE_MODEL_RUN_H_
