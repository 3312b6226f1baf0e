#ifndef CKPTD_SERVER_QUEUE_SAVE_QUEUE_H_
#define CKPTD_SERVER_QUEUE_SAVE_QUEUE_H_

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.pb.h"
#include "server/os/clock.h"
#include "server/queue/records.h"

namespace ckptd {

// The life of every save: states, one order per path, loads and removals among them, sessions.
// Thread-safe. Methods that wait take a deadline; all of them return at once after Stop.
//
// Requests are the wire's own messages; errors carry a reason from docs/errors.md.
class SaveQueue {
 public:
  struct Options {
    // Saves and removals that are worked on at the same time. More than one, so that a slow one
    // does not hold up the others.
    int workers = 2;
    // Ended saves that are kept for GetSave and ListSaves; the oldest go first.
    size_t history = 10000;
    // The most tensors that one save may announce.
    int64_t max_tensors = 1000000;
  };

  // Told each change of a save under the queue's lock: must be quick, and must not call the queue.
  // `progress_only`: the state is the one told before.
  using Listener = std::function<void(const v1::Save& save, bool progress_only)>;

  // All arguments must outlive the queue.
  SaveQueue(FileSystem* fs, const Clock* clock, Pool* pool, const BackendRegistry* backends,
            Options options);
  // Calls Stop.
  ~SaveQueue();

  // ---- Sessions
  std::string OpenSession(const std::string& client);
  void CloseSession(const std::string& session_id);

  // ---- Saves
  absl::StatusOr<int> Reserve(const v1::ReserveRequest& request, absl::Time deadline);
  absl::StatusOr<v1::BeginSaveResponse> BeginSave(const v1::BeginSaveRequest& request,
                                                  absl::Time deadline);
  // Copies into the image. Returns the bytes received so far.
  absl::StatusOr<int64_t> WriteSave(const std::string& name, int64_t offset,
                                    absl::string_view data);
  absl::StatusOr<v1::CommitSaveResponse> CommitSave(const std::string& name);
  absl::StatusOr<v1::Save> AbortSave(const std::string& name);
  absl::StatusOr<v1::Save> CancelSave(const std::string& name);

  // ---- Loads and removals
  absl::StatusOr<v1::BeginLoadResponse> BeginLoad(const v1::BeginLoadRequest& request,
                                                  absl::Time deadline);
  // Reads up to `length` bytes; an empty string at the end of the file.
  absl::StatusOr<std::string> ReadLoad(const std::string& load_id, int64_t offset, size_t length);
  void EndLoad(const std::string& load_id);
  absl::Status RemoveCheckpoint(const v1::RemoveCheckpointRequest& request, absl::Time deadline);
  absl::StatusOr<v1::FlushResponse> Flush(const v1::FlushRequest& request, absl::Time deadline);

  // ---- Reading
  absl::StatusOr<v1::Save> GetSave(const std::string& name) const;
  absl::StatusOr<v1::ListSavesResponse> ListSaves(const v1::ListSavesRequest& request) const;
  v1::QueueStatus GetStatus() const;
  int SessionCount() const;
  // Since when there is neither client nor work; InfiniteFuture while there is.
  absl::Time IdleSince() const;

  // Tells `listener` the save `name` as it is now, or with an empty name all that have not ended;
  // then every change of those, until Unsubscribe has returned.
  absl::StatusOr<uint64_t> Subscribe(const std::string& name, Listener listener);
  void Unsubscribe(uint64_t id);

  // ---- The end
  // Refuses new saves and removals from now on, and waits until what is accepted or STAGING has
  // ended. Returns how many have not by `deadline`.
  int Drain(absl::Time deadline);
  bool draining() const;
  // Gives up what is not finished, wakes all waiting calls and joins the workers. Idempotent.
  void Stop();

 private:
  using SavePtr = std::shared_ptr<SaveRecord>;
  using RemovePtr = std::shared_ptr<RemoveRecord>;
  using LoadPtr = std::shared_ptr<LoadRecord>;
  using SessionPtr = std::shared_ptr<Session>;

  struct Subscription {
    std::string name;
    Listener listener;
  };

  // save_queue.cc
  absl::StatusOr<SessionPtr> FindSession(const std::string& id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<SavePtr> FindSave(const std::string& name) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<SavePtr> AddStaging(const v1::BeginSaveRequest& request, const SavePtr& made,
                                     absl::Time deadline);
  absl::Status AcquireImage(const SavePtr& record, const SessionPtr& session, absl::Time deadline);
  bool DropStaging(const SavePtr& record, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  v1::BeginSaveResponse MakeResponse(const SaveRecord& record) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status RefuseWhileEnding(absl::string_view what) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // work.cc
  void WorkLoop();
  void RunSave(const SavePtr& record);
  void RunRemove(const RemovePtr& record);
  void EndSave(const SavePtr& record, const absl::Status& result)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndOperation(Operation* op) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetState(SaveRecord* record, v1::Save::State state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Tell(const SaveRecord& record, bool progress_only) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TrimHistory() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Stamp(google::protobuf::Timestamp* time) const;

  // load_remove.cc
  absl::Status WaitForTurn(const LoadPtr& record, const SessionPtr& session, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status OpenLoad(const std::string& path, const LoadPtr& record,
                        v1::BeginLoadResponse* response);
  void DropLoad(const LoadPtr& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::string LastFailure(const std::string& key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CollectFailures(const v1::FlushRequest& request, const std::vector<SavePtr>& waited,
                       v1::FlushResponse* response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckDurable(const RemoveRecord& record) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  FileSystem* const fs_;
  const Clock* const clock_;
  Pool* const pool_;
  const BackendRegistry* const backends_;
  const Options options_;
  Persister persister_;

  mutable absl::Mutex mu_;
  PathOrder order_ ABSL_GUARDED_BY(mu_);
  // Every save known, by name and by number.
  std::map<std::string, SavePtr> by_name_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, SavePtr, std::greater<>> by_number_ ABSL_GUARDED_BY(mu_);
  // Numbers of ended saves, in the order in which they ended.
  std::list<uint64_t> ended_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, SessionPtr> sessions_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, LoadPtr> loads_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Job> jobs_ ABSL_GUARDED_BY(mu_);
  // Saves and removals that may run now, in the order in which they were accepted.
  std::map<uint64_t, std::shared_ptr<Operation>> ready_ ABSL_GUARDED_BY(mu_);
  // Saves and removals that are accepted and have not ended.
  std::map<Operation*, std::shared_ptr<Operation>> accepted_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, Subscription> subscriptions_ ABSL_GUARDED_BY(mu_);
  uint64_t next_number_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t next_subscription_ ABSL_GUARDED_BY(mu_) = 1;
  v1::QueueStatus counters_ ABSL_GUARDED_BY(mu_);
  absl::Time idle_since_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> workers_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_QUEUE_SAVE_QUEUE_H_
