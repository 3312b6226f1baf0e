#ifndef CKPTD_SERVER_QUEUE_SAVE_QUEUE_H_
#define CKPTD_SERVER_QUEUE_SAVE_QUEUE_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <set>
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
#include "absl/types/span.h"
#include "ckptd/v1/checkpoint.pb.h"
#include "server/backend/hosts.h"
#include "server/journal/journal.h"
#include "server/os/clock.h"
#include "server/os/crash_marker.h"
#include "server/os/failpoints.h"
#include "server/persist/leftovers.h"
#include "server/queue/bounded_calls.h"
#include "server/queue/copy_turns.h"
#include "server/queue/records.h"

namespace ckptd {

// The life of every save: states, one order per path, loads and removals among them, sessions.
// Thread-safe. Methods that wait take a deadline; all of them return at once after Stop.
//
// What is accepted is in the journal before anyone is told, and so is its end: a later daemon takes
// over, by Restore, what this one leaves, by Stop or by its death.
//
// Requests are the wire's own messages; errors carry a reason from docs/errors.md.
class SaveQueue {
 public:
  struct Options {
    // Saves and removals that are worked on at the same time on one device, and in all. More than
    // one, so that a slow one does not hold up the others; three, so that the device has two to
    // write while one is synced.
    int workers_per_device = 3;
    int max_workers = 16;
    // How far a save gives way that is written alone (PersistControl::niceness), and with how many
    // threads of the machine that want to run none does.
    int persist_nice = 0;
    int crowd = 2 * std::max(1, static_cast<int>(std::thread::hardware_concurrency())) + 1;
    // How many trainers copy a state at the same time.
    CopyTurns::Options copy_turns;
    // Ended saves that are kept for GetSave and ListSaves, and how long; the oldest go first. Also
    // the most failed removals that are kept until somebody is told.
    size_t history = 10000;
    absl::Duration history_age = absl::Hours(24 * 7);
    // The most tensors that one save may announce.
    int64_t max_tensors = 1000000;
    // Where checkpoints may be.
    AllowedRoots allow_roots;
    // How long a save or removal is tried again after an error of the storage that may pass.
    absl::Duration retry_timeout = absl::Seconds(30);
    // Between the first two attempts, at most; doubled for each further one, up to the second.
    absl::Duration first_retry_delay = absl::Milliseconds(200);
    absl::Duration max_retry_delay = absl::Seconds(5);
    // How long BeginSave waits for the target's storage to answer before it goes on without.
    absl::Duration target_patience = absl::Seconds(2);
    // Crashes of the daemon over one save after which it is not tried again.
    int max_crashes = 3;
    // Told the number of the save that a thread persists; may be null.
    const CrashMarker* crash_marker = nullptr;
    // Where backends run that have host processes; null: there are none of those.
    BackendHosts* hosts = nullptr;
    // Where tests kill the daemon; may be null.
    Failpoints* failpoints = nullptr;
  };

  // Told each change of a save under the queue's lock: must be quick, and must not call the queue.
  // `progress_only`: the state is the one told before.
  using Listener = std::function<void(const v1::Save& save, bool progress_only)>;

  // All arguments must outlive the queue.
  SaveQueue(FileSystem* fs, const Clock* clock, Journal* journal, Pool* pool,
            const BackendRegistry* backends, Options options);
  // Calls Stop.
  ~SaveQueue();

  // Takes over what an earlier daemon has accepted: adopts the images, and goes on in the order of
  // old. Before anything else is called.
  // `adopted` is told the names of the images that saves have, before any of them is worked on: all
  // others may go. It must not call the queue. After an error nothing that was accepted is gone:
  // the next queue may take it over.
  absl::Status Restore(const Journal::Contents& contents,
                       const std::function<void(const std::set<std::string>& images)>& adopted);
  // The same for images of which no journal tells any more: they become FAILED saves with their
  // image kept. After an error it may be called again, or by the next queue, for all of them.
  absl::Status RestoreOrphans(const std::vector<std::string>& images);

  // ---- Sessions
  std::string OpenSession(const std::string& client);
  void CloseSession(const std::string& session_id);

  // ---- Hosts
  absl::StatusOr<v1::RegisterHostResponse> RegisterHost(const v1::RegisterHostRequest& request);

  // ---- Saves
  absl::StatusOr<v1::ReserveResponse> Reserve(const v1::ReserveRequest& request,
                                              absl::Time deadline);
  absl::StatusOr<v1::BeginSaveResponse> BeginSave(const v1::BeginSaveRequest& request,
                                                  absl::Time deadline);
  // Copies `pieces`, one after the other, into the image. Returns the bytes received so far.
  absl::StatusOr<int64_t> WriteSave(const std::string& name, int64_t offset,
                                    absl::Span<const absl::string_view> pieces);
  absl::StatusOr<int64_t> WriteSave(const std::string& name, int64_t offset,
                                    absl::string_view data) {
    return WriteSave(name, offset, absl::MakeConstSpan(&data, 1));
  }
  absl::StatusOr<v1::CommitSaveResponse> CommitSave(const std::string& name);
  absl::StatusOr<v1::Save> AbortSave(const std::string& name);
  absl::StatusOr<v1::Save> CancelSave(const std::string& name);
  absl::StatusOr<v1::Save> ExportSave(const v1::ExportSaveRequest& request);

  // ---- Loads and removals
  absl::StatusOr<v1::BeginLoadResponse> BeginLoad(const v1::BeginLoadRequest& request,
                                                  absl::Time deadline);
  // Reads up to `length` bytes; an empty string at the end of the file. With the id of a host's
  // task, that of a save, it reads the image.
  absl::StatusOr<std::string> ReadLoad(const std::string& load_id, int64_t offset, size_t length);
  void EndLoad(const std::string& load_id);
  absl::Status RemoveCheckpoint(const v1::RemoveCheckpointRequest& request, absl::Time deadline);
  absl::StatusOr<v1::FlushResponse> Flush(const v1::FlushRequest& request, absl::Time deadline);

  // ---- Looking into checkpoints
  // Whether the caller is still there; asked now and then.
  using Wanted = std::function<bool()>;
  // The tensors of a checkpoint, as its backend tells them. UNIMPLEMENTED (NOT_SUPPORTED) where it
  // cannot.
  absl::StatusOr<std::vector<v1::TensorSpec>> InspectCheckpoint(
      const v1::InspectCheckpointRequest& request, absl::Time deadline, const Wanted& wanted);
  absl::Status VerifyCheckpoint(const v1::VerifyCheckpointRequest& request, absl::Time deadline,
                                const Wanted& wanted);

  // ---- Reading
  absl::StatusOr<v1::Save> GetSave(const std::string& name) const;
  // A serialized ListSavesResponse: to copy the saves of a page would hold up everybody for longer
  // than to serialize them.
  absl::StatusOr<std::string> ListSaves(const v1::ListSavesRequest& request) const;
  v1::QueueStatus GetStatus() const;
  int SessionCount() const;
  // How long there has been neither client nor work; 0 while there is.
  absl::Duration IdleFor() const;

  // Tells `listener` the save `name` as it is now, or with an empty name all that have not ended;
  // then every change of those, until Unsubscribe has returned.
  absl::StatusOr<uint64_t> Subscribe(const std::string& name, Listener listener);
  void Unsubscribe(uint64_t id);

  // ---- The end
  // Refuses new saves and removals from now on, and waits until what is accepted or STAGING has
  // ended. Returns how many have not by `deadline`.
  int Drain(absl::Time deadline);
  bool draining() const;
  // Stops what is not finished, which stays accepted for a later daemon, wakes all waiting calls
  // and joins the workers. Idempotent.
  void Stop();

 private:
  using SavePtr = std::shared_ptr<SaveRecord>;
  using WorkPtr = std::shared_ptr<Work>;
  using RemovePtr = std::shared_ptr<RemoveRecord>;
  using LoadPtr = std::shared_ptr<LoadRecord>;
  using SessionPtr = std::shared_ptr<Session>;

  struct Subscription {
    std::string name;
    Listener listener;
  };

  // A call of PrepareTarget; there as long as it, or who waits for it.
  struct PrepareCall {
    absl::StatusOr<Target> target = absl::UnknownError("");
  };

  // save_queue.cc
  absl::StatusOr<SessionPtr> FindSession(const std::string& id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<SavePtr> FindSave(const std::string& name) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool DropStaging(const SavePtr& record, const absl::Status& why,
                   v1::Save::State state = v1::Save::CANCELLED) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Saves that are STAGING, and saves and removals that are accepted.
  int CountStaging() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  int CountUnended() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  static absl::Status CheckComplete(const SaveRecord& record);
  absl::Status RecordAccepted(const SavePtr& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Enqueue(const SavePtr& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static v1::CommitSaveResponse Committed(const SaveRecord& record);
  absl::Status Accept(const RemovePtr& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddInOrder(const RemovePtr& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status RefuseWhileEnding(absl::string_view what) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // begin.cc
  absl::StatusOr<SavePtr> AddStaging(const v1::BeginSaveRequest& request, const SavePtr& made,
                                     absl::Time deadline);
  // Of `bytes`.
  absl::Status AcquireImage(const SavePtr& record, uint64_t bytes,
                            const v1::BeginSaveRequest& request, const std::string& note,
                            const SessionPtr& session, absl::Time deadline);
  // What the policy of the caller makes of a full pool, before it waits.
  absl::Status MeetFullPool(const SavePtr& record, uint64_t bytes,
                            v1::BeginSaveRequest::OnFull on_full);
  void Supersede(const SavePtr& older, const SavePtr& newer);
  void Forget(SavePtr record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<Target> PrepareWithin(const std::string& path, mode_t umask, bool* unprepared);
  v1::BeginSaveResponse MakeResponse(const SaveRecord& record) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // hosted.cc
  absl::StatusOr<std::string> HostOf(const Backend& backend, const std::string& host);
  absl::StatusOr<std::string> OwnHostOf(const Backend& backend);
  static void SetHosted(SaveRecord* record, const std::string& host,
                        const v1::BeginSaveRequest& request);
  static uint64_t HostDevice(const std::string& host);
  absl::StatusOr<Target> ResolvePlace(const std::string& path) const;
  absl::Status PersistHosted(const SavePtr& record);
  absl::Status RemoveHosted(const RemovePtr& record);
  absl::StatusOr<v1::BeginLoadResponse> BeginHostedLoad(const Backend& backend,
                                                        const v1::BeginLoadRequest& request,
                                                        absl::Time deadline);
  absl::Status LoadHosted(const Backend& backend, const v1::BeginLoadRequest& request,
                          const LoadPtr& record, absl::Time deadline,
                          v1::BeginLoadResponse* response);
  // inspect.cc
  absl::Status AskBackend(absl::string_view what, const std::string& path,
                          const std::string& backend, v1::HostTask task, BackendHosts::Calls calls,
                          absl::Time deadline, const Wanted& wanted);
  void AddAccepted(const WorkPtr& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UseHost(const std::string& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LeaveHost(const std::string& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RestoreHosts(const Journal::Contents& contents) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetUnusedHosts(const Journal::Contents& contents) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // visible.cc; what has no lock may wait for the storage
  static bool WantsLink(const SaveRecord& record);
  absl::Status AcceptVisible(const SavePtr& record);
  absl::StatusOr<bool> SealForLink(const SaveRecord& record);
  // Whether the storage has answered.
  bool PutLinkWithin(SaveRecord* record);
  void TakeLinkAway(SaveRecord* record);
  void HideWaiting(const std::string& name);
  void RestoreLinks() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // work.cc
  void StartWorker() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WorkLoop();
  WorkPtr AwaitWork();
  bool MayTakeItsTime() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  void RunSave(const SavePtr& record);
  absl::Status Persist(const SavePtr& record);
  absl::Status RestoreFolder(const SaveRecord& record) const;
  absl::StatusOr<PersistSource> SourceOf(const SaveRecord& record) const;
  void FinishSave(const SavePtr& record, const absl::Status& result);
  void RunRemove(const RemovePtr& record);
  void FinishRemove(const RemovePtr& record, const absl::Status& result);
  bool TryAgainLater(const WorkPtr& work, const absl::Status& why, bool without_end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // end.cc
  // The save as it is to be after its end.
  v1::Save EndedSave(const SaveRecord& record, const absl::Status& result) const;
  absl::Status RecordEnd(const SavePtr& record, const v1::Save& ended)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Journal::SaveEntry ToEntry(const SaveRecord& record) const;
  void EndSave(const SavePtr& record, const v1::Save& ended) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndOperation(Operation* op) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // For work that ends without its turn.
  void RemoveLeftoversLater(Work* work, const Target& target);
  // export.cc
  absl::Status Export(SaveRecord& record, const std::string& path, mode_t umask);
  absl::Status DropKeptImage(const SavePtr& record, std::unique_ptr<Image>* image)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static void LogIfError(const absl::Status& status);
  void PassFailpoint(absl::string_view name) const;
  void SetState(SaveRecord* record, v1::Save::State state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Tell(const SaveRecord& record, bool progress_only) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TrimHistory() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Forgets a job of which nothing is known any more.
  void TrimJob(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Stamp(google::protobuf::Timestamp* time) const;

  // restore.cc
  absl::Status RestoreSave(const Journal::SaveEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RestoreSuperseded(const SavePtr& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status AdoptImage(const SavePtr& record, const std::string& image);
  absl::Status FailRestored(const SavePtr& record, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RestoreRemove(const Journal::RemoveEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // load.cc, remove.cc
  absl::Status TakeTurn(const LoadPtr& record, const std::string& session_id, absl::Time deadline);
  absl::Status WaitForTurn(const LoadPtr& record, const SessionPtr& session, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status OpenLoad(const v1::BeginLoadRequest& request, const LoadPtr& record,
                        v1::BeginLoadResponse* response);
  void LendImage(const LoadPtr& record, const FileId& file, v1::BeginLoadResponse* response);
  void DropLoad(const LoadPtr& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::string LastFailure(const std::string& key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CollectFailures(const v1::FlushRequest& request, const std::vector<SavePtr>& waited,
                       v1::FlushResponse* response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckDurable(const RemoveRecord& record) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool FollowSuperseded(const RemovePtr& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Keeps a failure for the next Flush of its job, and forgets the oldest of too many.
  void KeepFailedRemoval(uint64_t seq, const std::string& job, v1::FailedRemoval failed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetFailedRemoval(uint64_t seq) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Journal::RemoveEntry ToEntry(const RemoveRecord& record) const;

  FileSystem* const fs_;
  const Clock* const clock_;
  Journal* const journal_;
  Pool* const pool_;
  const BackendRegistry* const backends_;
  const Options options_;
  // Of the names of the files that this start of the daemon puts beside targets.
  const std::string temp_prefix_;
  const Leftovers leftovers_;
  const Persister persister_;
  BoundedCalls bounded_calls_;
  CopyTurns copy_turns_;

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
  // How many sessions and pieces of accepted work need a host process.
  std::map<std::string, int> host_users_ ABSL_GUARDED_BY(mu_);
  // Those that clients have registered: they go with the last that needs them.
  std::set<std::string> registered_hosts_ ABSL_GUARDED_BY(mu_);
  // Saves that host processes have, by the task's id.
  std::map<std::string, SavePtr> host_tasks_ ABSL_GUARDED_BY(mu_);
  uint64_t next_task_ ABSL_GUARDED_BY(mu_) = 1;
  // Jobs of the failed removals that nobody was told, by the removal's place in the order.
  std::map<uint64_t, std::string> failed_removals_ ABSL_GUARDED_BY(mu_);
  // Saves and removals that nothing blocks.
  WorkList work_ ABSL_GUARDED_BY(mu_);
  // Saves and removals that are accepted and have not ended.
  std::map<Operation*, WorkPtr> accepted_ ABSL_GUARDED_BY(mu_);
  // Folders as callers name them, and as they were found when they were last prepared.
  std::map<std::string, Target> prepared_ ABSL_GUARDED_BY(mu_);
  // By folder: calls that were not answered in time.
  std::map<std::string, std::weak_ptr<PrepareCall>> hanging_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, Subscription> subscriptions_ ABSL_GUARDED_BY(mu_);
  uint64_t next_number_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t next_end_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t next_subscription_ ABSL_GUARDED_BY(mu_) = 1;
  v1::QueueStatus counters_ ABSL_GUARDED_BY(mu_);
  absl::Duration idle_since_ ABSL_GUARDED_BY(mu_);
  std::minstd_rand jitter_ ABSL_GUARDED_BY(mu_){std::random_device()()};
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  int waiting_workers_ ABSL_GUARDED_BY(mu_) = 0;
  // When the last was accepted.
  bool was_crowded_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> workers_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_QUEUE_SAVE_QUEUE_H_
