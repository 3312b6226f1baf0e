// What happens to a save after its acceptance: its turn, its persisting, its end; and removals.

#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/status/error_info.h"
#include "server/queue/save_queue.h"

namespace ckptd {

void SaveQueue::WorkLoop() {
  for (;;) {
    std::shared_ptr<Operation> op;
    {
      absl::MutexLock lock(&mu_);
      auto has_work = [this]()
                          ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !ready_.empty(); };
      mu_.Await(absl::Condition(&has_work));
      if (stopping_) return;
      op = std::move(ready_.begin()->second);
      ready_.erase(ready_.begin());
      if (op->kind == Operation::Kind::kSave) {
        auto* record = static_cast<SaveRecord*>(op.get());
        record->save.set_attempts(record->save.attempts() + 1);
        Stamp(record->save.mutable_persist_time());
        SetState(record, v1::Save::PERSISTING);
      }
    }
    if (op->kind == Operation::Kind::kSave) {
      RunSave(std::static_pointer_cast<SaveRecord>(op));
    } else {
      RunRemove(std::static_pointer_cast<RemoveRecord>(op));
    }
  }
}

void SaveQueue::RunSave(const SavePtr& record) {
  const Backend* backend = *backends_->Find(record->save.backend());
  PersistSource source;
  source.data = record->image->data();
  source.size = record->image->size();
  source.seal = [&](const Backend::Sealed& sealed) {
    return backend->Seal(*record->plan, record->image->data(), sealed);
  };
  record->control.on_progress = [&] {
    absl::MutexLock lock(&mu_);
    record->save.set_persisted_bytes(static_cast<int64_t>(record->control.written.load()));
    Tell(*record, /*progress_only=*/true);
  };
  const absl::Time start = absl::Now();
  const absl::Status status =
      persister_.Persist(source, record->target, record->umask, &record->control);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  if (status.ok()) {
    spdlog::info("{}: durable at {}: {} bytes in {:.3f} s", record->save.name(),
                 record->target.path, source.size, seconds);
  } else {
    spdlog::error("{}: {}", record->save.name(), std::string(status.message()));
  }
  // Before anybody hears of the end: who waits for it finds warm memory for the next save.
  pool_->Release(std::move(record->image));
  absl::MutexLock lock(&mu_);
  record->control.on_progress = nullptr;
  EndSave(record, status);
}

void SaveQueue::RunRemove(const RemovePtr& record) {
  absl::Status status;
  {
    absl::MutexLock lock(&mu_);
    status = CheckDurable(*record);
  }
  if (status.ok()) status = RemovePath(fs_, record->target);
  if (status.ok()) {
    spdlog::info("removed {}", record->target.path);
  } else {
    spdlog::error("{}", std::string(status.message()));
  }
  absl::MutexLock lock(&mu_);
  record->ended = true;
  record->result = status;
  Job& job = jobs_[record->job];
  job.removes.erase(record);
  if (!status.ok()) {
    v1::FailedRemoval& failed = job.failed_removals.emplace_back();
    failed.set_path(record->path);
    *failed.mutable_error() = ToRpc(status);
  }
  EndOperation(record.get());
}

// Ends an accepted save. Its image is already back in the pool, or the caller's.
void SaveQueue::EndSave(const SavePtr& record, const absl::Status& result) {
  record->plan.reset();
  v1::Save& save = record->save;
  Stamp(save.mutable_end_time());
  v1::Save::State state = v1::Save::SUCCEEDED;
  if (result.ok()) {
    save.clear_error();
    save.set_persisted_bytes(save.total_bytes());
    counters_.set_succeeded_count(counters_.succeeded_count() + 1);
    counters_.set_persisted_bytes(counters_.persisted_bytes() + save.total_bytes());
  } else {
    *save.mutable_error() = ToRpc(result);
    const bool cancelled = absl::IsCancelled(result);
    state = cancelled ? v1::Save::CANCELLED : v1::Save::FAILED;
    if (!cancelled) counters_.set_failed_count(counters_.failed_count() + 1);
  }
  SetState(record.get(), state);
  Job& job = jobs_[record->job];
  job.active.erase(record);
  if (const SessionPtr session = record->session.lock(); session != nullptr) {
    session->ended_saves.push_back(save);
  }
  ended_.push_back(record->number);
  EndOperation(record.get());
  TrimHistory();
}

void SaveQueue::EndOperation(Operation* op) {
  ready_.erase(op->seq);
  for (Operation* next : order_.End(op)) {
    // A load that may run needs no worker: the call that waits for it sees that nothing blocks it.
    auto it = accepted_.find(next);
    if (it != accepted_.end()) ready_[next->seq] = it->second;
  }
  accepted_.erase(op);
  if (sessions_.empty() && accepted_.empty()) idle_since_ = clock_->Now();
}

void SaveQueue::TrimHistory() {
  while (ended_.size() > options_.history) {
    auto it = by_number_.find(ended_.front());
    ended_.pop_front();
    const SavePtr record = it->second;
    by_number_.erase(it);
    by_name_.erase(record->save.name());
    auto job = jobs_.find(record->job);
    if (job != jobs_.end() && job->second.newest_save.lock() == record &&
        job->second.removes.empty() && job->second.failed_removals.empty()) {
      jobs_.erase(job);
    }
  }
}

void SaveQueue::SetState(SaveRecord* record, v1::Save::State state) {
  record->save.set_state(state);
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

// ---- The end ---------------------------------------------------------------------------------

int SaveQueue::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  draining_ = true;
  auto count = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    int pending = static_cast<int>(accepted_.size());
    for (const auto& [id, session] : sessions_)
      pending += static_cast<int>(session->staging.size());
    return pending;
  };
  auto drained = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return count() == 0; };
  mu_.AwaitWithDeadline(absl::Condition(&drained), deadline);
  return count();
}

bool SaveQueue::draining() const {
  absl::MutexLock lock(&mu_);
  return draining_;
}

void SaveQueue::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    for (const auto& [id, session] : sessions_) session->ended = true;
    for (const auto& [op, shared] : accepted_) {
      if (op->kind == Operation::Kind::kSave)
        static_cast<SaveRecord*>(op)->control.cancelled = true;
    }
  }
  pool_->Wake();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  // Images of what is left go before the pool does, but not under a call of WriteSave that is
  // copying into one.
  absl::MutexLock lock(&mu_);
  auto no_writers = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return std::all_of(by_name_.begin(), by_name_.end(),
                       [](const auto& entry) { return entry.second->writers == 0; });
  };
  mu_.Await(absl::Condition(&no_writers));
  for (const auto& [name, record] : by_name_) record->image.reset();
}

}  // namespace ckptd
