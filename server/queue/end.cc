// The ends of saves and of the queue itself, and what is kept of them.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/queue/save_queue.h"

namespace ckptd {

void SaveQueue::LogIfError(const absl::Status& status) {
  if (!status.ok()) spdlog::warn("{}", std::string(status.message()));
}

void SaveQueue::PassFailpoint(absl::string_view name) const {
  if (options_.failpoints != nullptr) options_.failpoints->Pass(name);
}

// ---- The end of a save -----------------------------------------------------------------------

v1::Save SaveQueue::EndedSave(const SaveRecord& record, const absl::Status& result) const {
  v1::Save save = record.save;
  Stamp(save.mutable_end_time());
  save.clear_error();
  if (result.ok()) {
    save.set_state(v1::Save::SUCCEEDED);
    save.set_persisted_bytes(save.total_bytes());
  } else {
    *save.mutable_error() = ToRpc(result);
    save.set_state(absl::IsCancelled(result) ? v1::Save::CANCELLED : v1::Save::FAILED);
  }
  return save;
}

Journal::SaveEntry SaveQueue::ToEntry(const SaveRecord& record) const {
  Journal::SaveEntry entry;
  entry.save = record.save;
  entry.fingerprint = record.fingerprint;
  entry.number = record.number;
  entry.seq = record.seq;
  entry.end = record.end;
  entry.target = record.target.path;
  entry.device = record.device;
  if (record.image != nullptr) entry.image = record.image->name();
  entry.link = record.link;
  entry.crashes = record.crashes;
  return entry;
}

// Writes the end down, before it is told. On an error nothing has changed.
absl::Status SaveQueue::RecordEnd(const SavePtr& record, const v1::Save& ended) {
  Journal::SaveEntry entry = ToEntry(*record);
  entry.save = ended;
  entry.end = next_end_;
  if (!ended.image_kept()) entry.image.clear();
  PassFailpoint("end.before-journal");
  CKPTD_RETURN_IF_ERROR(journal_->PutSave(entry));
  PassFailpoint("end.journaled");
  record->end = next_end_++;
  return absl::OkStatus();
}

// Ends an accepted save as RecordEnd has written it down. Its image is already back in the pool, or
// the caller's.
void SaveQueue::EndSave(const SavePtr& record, const v1::Save& ended) {
  if (!ended.image_kept()) record->plan.reset();
  RemoveLeftoversLater(record.get(), record->target);
  record->save = ended;
  if (ended.state() == v1::Save::SUCCEEDED) {
    counters_.set_succeeded_count(counters_.succeeded_count() + 1);
    counters_.set_persisted_bytes(counters_.persisted_bytes() + ended.total_bytes());
  } else if (ended.state() == v1::Save::FAILED) {
    counters_.set_failed_count(counters_.failed_count() + 1);
  }
  SetState(record.get(), ended.state());
  jobs_[record->job].active.erase(record);
  if (const SessionPtr session = record->session.lock(); session != nullptr) {
    session->ended_saves.push_back(ended);
  }
  // One whose image is kept stays until somebody has decided about that.
  if (!ended.image_kept()) ended_.push_back(record->number);
  EndOperation(record.get());
  TrimHistory();
  TrimJob(record->job);
}

// Elsewhere, as the storage may hang. What is still there is found by whoever next adopts something
// in that folder.
void SaveQueue::RemoveLeftoversLater(Work* work, const Target& target) {
  if (!std::exchange(work->adopted, false)) return;
  bounded_calls_.Run([leftovers = leftovers_, dir = target.dir] { leftovers.RemoveFrom(dir); },
                     absl::ZeroDuration());
}

void SaveQueue::EndOperation(Operation* op) {
  for (Operation* next : order_.End(op)) {
    // A load that may run needs no worker: the call that waits for it sees that nothing blocks it.
    auto it = accepted_.find(next);
    if (it != accepted_.end()) work_.Add(it->second);
  }
  auto it = accepted_.find(op);
  if (it == accepted_.end()) return;
  work_.Remove(it->second.get());
  if (!it->second->host.empty()) LeaveHost(it->second->host);
  accepted_.erase(it);
  if (sessions_.empty() && accepted_.empty()) idle_since_ = clock_->Uptime();
}

void SaveQueue::TrimHistory() {
  const int64_t oldest = absl::ToUnixSeconds(clock_->Now() - options_.history_age);
  while (!ended_.empty()) {
    const SavePtr record = by_number_.at(ended_.front());
    if (ended_.size() <= options_.history && record->save.end_time().seconds() >= oldest) return;
    Forget(record);
    TrimJob(record->job);
  }
}

void SaveQueue::TrimJob(const std::string& name) {
  auto it = jobs_.find(name);
  if (it == jobs_.end()) return;
  const Job& job = it->second;
  if (!job.active.empty() || !job.removes.empty() || !job.failed_removals.empty()) return;
  const SavePtr newest = job.newest_save.lock();
  // One that is forgotten may still be held by whoever forgets it.
  if (newest == nullptr || by_number_.count(newest->number) == 0) jobs_.erase(it);
}

void SaveQueue::SetState(SaveRecord* record, v1::Save::State state) {
  record->save.set_state(state);
  if (state != v1::Save::STAGING) copy_turns_.End(record->number);
  Tell(*record, /*progress_only=*/false);
}

void SaveQueue::Tell(const SaveRecord& record, bool progress_only) {
  for (const auto& [id, subscription] : subscriptions_) {
    if (subscription.name.empty() || subscription.name == record.save.name()) {
      subscription.listener(record.save, progress_only);
    }
  }
}

void SaveQueue::Stamp(google::protobuf::Timestamp* time) const {
  const absl::Duration since_epoch = clock_->Now() - absl::UnixEpoch();
  absl::Duration rest;
  time->set_seconds(absl::IDivDuration(since_epoch, absl::Seconds(1), &rest));
  time->set_nanos(static_cast<int32_t>(rest / absl::Nanoseconds(1)));
}

// ---- The end of the queue --------------------------------------------------------------------

int SaveQueue::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  draining_ = true;
  auto drained = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return CountUnended() == 0; };
  mu_.AwaitWithDeadline(absl::Condition(&drained), deadline);
  return CountUnended();
}

bool SaveQueue::draining() const {
  absl::MutexLock lock(&mu_);
  return draining_;
}

void SaveQueue::Stop() {
  std::vector<std::thread> workers;
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    for (const auto& [id, session] : sessions_) session->ended = true;
    for (const auto& [op, work] : accepted_) {
      if (op->kind == Operation::Kind::kSave) {
        static_cast<SaveRecord*>(op)->control.cancelled = true;
      } else {
        static_cast<RemoveRecord*>(op)->cancelled = true;
      }
    }
    workers.swap(workers_);
    if (options_.hosts != nullptr) options_.hosts->Wake();
  }
  pool_->Wake();
  for (std::thread& worker : workers) worker.join();
  // Images of what is left go before the pool does, but not under somebody who is using one.
  absl::MutexLock lock(&mu_);
  auto unused = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return std::all_of(by_name_.begin(), by_name_.end(), [](const auto& entry) {
      return entry.second->writers == 0 && !entry.second->paused;
    });
  };
  mu_.Await(absl::Condition(&unused));
  for (const auto& [name, record] : by_name_) {
    if (record->image == nullptr) continue;
    // Accepted, be it that Restore failed before it had its place, or kept.
    if (record->save.state() != v1::Save::STAGING) {
      pool_->Leave(std::move(record->image));
    } else {
      pool_->Discard(std::move(record->image));
    }
  }
}

}  // namespace ckptd
