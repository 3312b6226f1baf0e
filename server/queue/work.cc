// What workers do: the persisting of accepted saves, and removals.
//
// A save, from its turn to its end:
//
//  1. Persist the image (server/persist has that protocol). An error that may pass is tried again
//     later, with the image kept; `Save.error` says why meanwhile.
//  2. Where it has not become durable, remove the link that stands for it, if any (visible.cc).
//  3. Write its end to the journal. Until that is done the save has not ended, whatever was done.
//  4. Give the image back to the pool: who waits for the end finds warm memory for the next save.
//  5. Tell the end.
//
// A daemon that dies before 3 leaves image and row to the next one, which begins at 1.

#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/give_way.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

// Whether the same thing may work in a while.
bool MayPass(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  return reason == "STORAGE_FULL" || reason == "STORAGE_ERROR";
}

}  // namespace

// ---- Workers ---------------------------------------------------------------------------------

void SaveQueue::StartWorker() {
  if (static_cast<int>(workers_.size()) >= options_.max_workers) return;
  ++waiting_workers_;
  workers_.emplace_back([this] { WorkLoop(); });
}

// Whether what there is may be written by threads that give way to the trainer. Not with others
// beside it: then many trainers save at once, or saves come faster than they are written, or what
// the first has hangs. Nor where so many threads want to run that nothing would be left to it; to
// the trainer one more then makes no difference.
bool SaveQueue::MayTakeItsTime() const { return CountUnended() == 1 && !was_crowded_; }

// Null when the queue stops. One worker always waits, as long as there may be more: what hangs in
// the others holds up nothing else.
SaveQueue::WorkPtr SaveQueue::AwaitWork() {
  absl::MutexLock lock(&mu_);
  WorkPtr work;
  while (!stopping_ && (work = work_.Take(clock_->Uptime())) == nullptr) {
    const absl::Duration now = clock_->Uptime();
    const absl::Duration due = work_.NextDue(now);
    // Every worker that waits keeps the time of the next attempt: the one that saw it put in may
    // have other work by then.
    auto wake = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      const absl::Duration later = clock_->Uptime();
      return stopping_ || work_.HasRunnable(later) || work_.NextDue(later) < due;
    };
    mu_.AwaitWithTimeout(absl::Condition(&wake), due - now);
  }
  if (--waiting_workers_ == 0 && !stopping_) StartWorker();
  if (work != nullptr && work->kind == Operation::Kind::kSave) {
    auto* record = static_cast<SaveRecord*>(work.get());
    record->control.niceness = MayTakeItsTime() ? options_.persist_nice : 0;
    if (!record->outcome.has_value()) {
      record->save.set_attempts(record->save.attempts() + 1);
      Stamp(record->save.mutable_persist_time());
    }
    SetState(record, v1::Save::PERSISTING);
  }
  return work;
}

void SaveQueue::WorkLoop() {
  while (WorkPtr work = AwaitWork()) {
    if (work->kind == Operation::Kind::kSave) {
      RunSave(std::static_pointer_cast<SaveRecord>(work));
    } else {
      RunRemove(std::static_pointer_cast<RemoveRecord>(work));
    }
    absl::MutexLock lock(&mu_);
    work_.Done(work.get());
    ++waiting_workers_;
  }
}

// Puts work that has failed back, to be tried again after a while, unless that has gone on for too
// long: not so where it is `without_end`.
bool SaveQueue::TryAgainLater(const WorkPtr& work, const absl::Status& why, bool without_end) {
  const absl::Duration now = clock_->Uptime();
  if (work->failures++ == 0) work->first_failure = now;
  const absl::Duration delay =
      std::min(options_.max_retry_delay,
               options_.first_retry_delay * (1 << std::min(work->failures - 1, 20))) *
      std::uniform_real_distribution<double>(0.5, 1)(jitter_);
  if (!without_end && now + delay - work->first_failure > options_.retry_timeout) return false;
  spdlog::warn("attempt {} failed, the next is in {:.1f} s: {}", work->failures,
               absl::ToDoubleSeconds(delay), std::string(why.message()));
  work_.Add(work, now + delay);
  return true;
}

// ---- Saves -----------------------------------------------------------------------------------

void SaveQueue::RunSave(const SavePtr& record) {
  if (record->outcome.has_value()) return FinishSave(record, *record->outcome);
  const absl::Status status = Persist(record);
  {
    absl::MutexLock lock(&mu_);
    record->control.on_progress = nullptr;
    if (!status.ok() && !record->cancel_requested) {
      if (stopping_) return;  // the next daemon goes on with it
      if (MayPass(status)) {
        *record->save.mutable_error() = ToRpc(status);
        if (TryAgainLater(record, status, /*without_end=*/false)) {
          Tell(*record, /*progress_only=*/false);
          return;
        }
      }
    }
  }
  FinishSave(record, status);
}

// One attempt. The record is this worker's.
absl::Status SaveQueue::Persist(const SavePtr& record) {
  const CrashMarker::Scope blame(options_.crash_marker, record->number);
  PassFailpoint("persist.begin");
  record->control.on_progress = [&] {
    absl::MutexLock lock(&mu_);
    record->save.set_persisted_bytes(static_cast<int64_t>(record->control.written.load()));
    Tell(*record, /*progress_only=*/true);
  };
  if (!record->host.empty()) {
    if (record->control.niceness == 0) return PersistHosted(record);
    // The host, too, if it is to be started.
    return RunInThread([&] {
      GiveWay(record->control.niceness);
      return PersistHosted(record);
    });
  }
  if (record->unprepared) {
    CKPTD_ASSIGN_OR_RETURN(record->target, PrepareTarget(fs_, options_.allow_roots,
                                                         record->save.path(), record->umask));
    record->unprepared = false;
  }
  CKPTD_RETURN_IF_ERROR(RestoreFolder(*record));
  if (record->adopted) record->adopted = !leftovers_.RemoveFrom(record->target.dir);
  CKPTD_ASSIGN_OR_RETURN(PersistSource source, SourceOf(*record));
  source.registered = pool_->Register(record->image.get());
  const absl::Duration start = clock_->Uptime();
  CKPTD_RETURN_IF_ERROR(
      persister_.Persist(source, record->target, record->umask, &record->control));
  spdlog::info("{}: durable at {}: {} bytes in {:.3f} s", record->save.name(), record->target.path,
               source.size, absl::ToDoubleSeconds(clock_->Uptime() - start));
  return absl::OkStatus();
}

// A removal that had its turn before the save may have taken the folder that BeginSave had made.
absl::Status SaveQueue::RestoreFolder(const SaveRecord& record) const {
  struct stat info = {};
  if (fs_->LinkStat(record.target.dir, &info) != -ENOENT) return absl::OkStatus();
  return PrepareTarget(fs_, options_.allow_roots, record.target.path, record.umask).status();
}

// `record` must outlive the result.
absl::StatusOr<PersistSource> SaveQueue::SourceOf(const SaveRecord& record) const {
  CKPTD_ASSIGN_OR_RETURN(const Backend* backend, backends_->Find(record.save.backend()));
  PersistSource source;
  source.data = record.image->data();
  source.size = record.image->size();
  source.late_bytes = record.sealed ? 0 : record.plan->late_bytes();
  source.seal = [backend, &record](const Backend::Sealed& sealed) {
    if (record.sealed) {
      sealed(record.image->size());
      return absl::OkStatus();
    }
    return backend->Seal(*record.plan, record.image->data(), sealed);
  };
  source.intact = [&record] { return record.image->IsUncut(); };
  return source;
}

void SaveQueue::FinishSave(const SavePtr& record, const absl::Status& result) {
  if (!result.ok()) spdlog::error("{}: {}", record->save.name(), std::string(result.message()));
  if (result.ok()) {
    record->link.clear();  // the file has replaced it
  } else {
    TakeLinkAway(record.get());
  }
  v1::Save ended;
  {
    absl::MutexLock lock(&mu_);
    ended = EndedSave(*record, result);
    if (absl::Status status = RecordEnd(record, ended); !status.ok()) {
      record->outcome = result;
      *record->save.mutable_error() = ToRpc(status);
      if (!stopping_) TryAgainLater(record, status, /*without_end=*/true);
      Tell(*record, /*progress_only=*/false);
      return;
    }
  }
  pool_->Release(std::move(record->image), result.ok() ? record->control.file : absl::nullopt);
  PassFailpoint("end.released");
  absl::MutexLock lock(&mu_);
  EndSave(record, ended);
}

// ---- Removals --------------------------------------------------------------------------------

void SaveQueue::RunRemove(const RemovePtr& record) {
  if (record->outcome.has_value()) return FinishRemove(record, *record->outcome);
  PassFailpoint("remove.begin");
  absl::Status status;
  {
    absl::MutexLock lock(&mu_);
    if (FollowSuperseded(record)) return;
    status = CheckDurable(*record);
  }
  if (status.ok()) {
    if (record->adopted) record->adopted = !leftovers_.RemoveFrom(record->target.dir);
    status = record->host.empty()
                 ? RemovePath(fs_, options_.allow_roots, record->target, options_.failpoints)
                 : RemoveHosted(record);
    PassFailpoint("remove.removed");
    absl::MutexLock lock(&mu_);
    if (!status.ok() && stopping_) return;
    if (MayPass(status) && TryAgainLater(record, status, /*without_end=*/false)) return;
  }
  FinishRemove(record, status);
}

void SaveQueue::FinishRemove(const RemovePtr& record, const absl::Status& result) {
  absl::MutexLock lock(&mu_);
  Journal::RemoveEntry entry = ToEntry(*record);
  if (!result.ok()) entry.error = ToRpc(result);
  const absl::Status recorded =
      result.ok() ? journal_->ForgetRemove(record->seq) : journal_->PutRemove(entry);
  record->outcome = result;
  if (!recorded.ok()) {
    if (!stopping_) TryAgainLater(record, recorded, /*without_end=*/true);
    return;
  }
  PassFailpoint("remove.end-journaled");
  if (result.ok()) {
    spdlog::info("removed {}", record->target.path);
  } else {
    spdlog::error("{}", std::string(result.message()));
  }
  RemoveLeftoversLater(record.get(), record->target);
  record->ended = true;
  jobs_[record->job].removes.erase(record);
  if (!result.ok()) {
    v1::FailedRemoval failed;
    failed.set_path(record->path);
    *failed.mutable_error() = ToRpc(result);
    KeepFailedRemoval(record->seq, record->job, std::move(failed));
  }
  EndOperation(record.get());
  TrimJob(record->job);
}

}  // namespace ckptd
