// Removals and Flush: what takes its place in the order of the saves.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/queue/requests.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

bool IsAtOrBelow(const std::string& key, const std::string& path) {
  return key == path || absl::StartsWith(key, path + "/");
}

}  // namespace

// ---- Removals --------------------------------------------------------------------------------

absl::Status SaveQueue::RemoveCheckpoint(const v1::RemoveCheckpointRequest& request,
                                         absl::Time deadline) {
  auto record = std::make_shared<RemoveRecord>();
  CKPTD_ASSIGN_OR_RETURN(record->job, JobOfParent(request.parent(), /*optional=*/false));
  if (record->job.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_NAME",
                     "remove: needs a job, jobs/{job}: the removal waits for its saves");
  }
  if (!request.backend().empty()) {
    CKPTD_ASSIGN_OR_RETURN(const Backend* backend, backends_->Find(request.backend()));
    CKPTD_ASSIGN_OR_RETURN(record->host, HostOf(*backend, request.host()));
  }
  if (!record->host.empty()) {
    CKPTD_ASSIGN_OR_RETURN(record->target, ResolvePlace(request.path()));
    record->backend = request.backend();
  } else {
    CKPTD_ASSIGN_OR_RETURN(record->target,
                           ResolveTarget(fs_, options_.allow_roots, request.path()));
  }
  record->path = request.path();
  record->device = record->host.empty() ? record->target.device : HostDevice(record->host);
  record->keys = {record->target.path};
  absl::MutexLock lock(&mu_);
  CKPTD_RETURN_IF_ERROR(RefuseWhileEnding("remove"));
  record->newest_save = jobs_[record->job].newest_save.lock();
  CKPTD_RETURN_IF_ERROR(Accept(record));
  if (!request.wait()) return absl::OkStatus();

  auto ended = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return record->ended || stopping_; };
  const bool in_time = mu_.AwaitWithDeadline(absl::Condition(&ended), deadline);
  if (!in_time) {
    return MakeError(absl::StatusCode::kDeadlineExceeded, "PATH_BUSY",
                     absl::StrCat("remove of ", record->path, ": waits for ", record->blockers,
                                  " operations before it, and will be done after them"));
  }
  if (!record->ended) return Stopping("remove");
  if (!record->outcome->ok()) {
    // Told here, so not again by Flush.
    ForgetFailedRemoval(record->seq);
  }
  return *record->outcome;
}

void SaveQueue::KeepFailedRemoval(uint64_t seq, const std::string& job, v1::FailedRemoval failed) {
  jobs_[job].failed_removals.emplace_back(seq, std::move(failed));
  failed_removals_[seq] = job;
  // A job that has ended asks no more.
  while (failed_removals_.size() > options_.history) {
    ForgetFailedRemoval(failed_removals_.begin()->first);
  }
}

void SaveQueue::ForgetFailedRemoval(uint64_t seq) {
  auto it = failed_removals_.find(seq);
  if (it == failed_removals_.end()) return;
  const std::string job = std::move(it->second);
  failed_removals_.erase(it);
  std::erase_if(jobs_[job].failed_removals, [seq](const auto& item) { return item.first == seq; });
  LogIfError(journal_->ForgetRemove(seq));
  TrimJob(job);
}

Journal::RemoveEntry SaveQueue::ToEntry(const RemoveRecord& record) const {
  Journal::RemoveEntry entry;
  entry.seq = record.seq;
  entry.job = record.job;
  entry.path = record.path;
  entry.target = record.target.path;
  entry.device = record.device;
  if (record.newest_save != nullptr) entry.newest_save = record.newest_save->save.name();
  entry.backend = record.backend;
  entry.host = record.host;
  return entry;
}

absl::Status SaveQueue::Accept(const RemovePtr& record) {
  AddInOrder(record);
  PassFailpoint("remove.before-journal");
  if (absl::Status status = journal_->PutRemove(ToEntry(*record)); !status.ok()) {
    order_.End(record.get());
    TrimJob(record->job);
    return Annotate(status, absl::StrCat("remove of ", record->path));
  }
  PassFailpoint("remove.journaled");
  jobs_[record->job].removes.insert(record);
  AddAccepted(record);
  return absl::OkStatus();
}

// A removal is behind all that its job has accepted.
void SaveQueue::AddInOrder(const RemovePtr& record) {
  const Job& job = jobs_[record->job];
  std::vector<Operation*> also;
  also.reserve(job.active.size());
  for (const SavePtr& save : job.active) also.push_back(save.get());
  order_.Add(record.get(), also);
}

// Where the newest save before a removal gave way to another one, that one has to be durable. True
// if the removal has to wait for it, and does: not for one that itself waits for the removal, as
// when it goes to what is removed.
bool SaveQueue::FollowSuperseded(const RemovePtr& record) {
  while (record->newest_save != nullptr &&
         record->newest_save->save.state() == v1::Save::SUPERSEDED) {
    SavePtr next = record->newest_save->superseded_by.lock();
    if (next == nullptr) return false;
    record->newest_save = std::move(next);
  }
  const SavePtr& save = record->newest_save;
  if (save == nullptr || accepted_.count(save.get()) == 0) return false;
  if (PathOrder::IsBehind(save.get(), record.get())) return false;
  PathOrder::Wait(record.get(), save.get());
  return true;
}

// Deletes never outrun saves: what a job removes it has replaced by what it saved before, so that
// must have become durable.
absl::Status SaveQueue::CheckDurable(const RemoveRecord& record) const {
  if (record.newest_save == nullptr) return absl::OkStatus();
  const v1::Save& save = record.newest_save->save;
  if (save.state() == v1::Save::SUCCEEDED ||
      IsAtOrBelow(record.newest_save->target.path, record.target.path)) {
    return absl::OkStatus();
  }
  return MakeError(
      absl::StatusCode::kFailedPrecondition, "SAVE_NOT_DURABLE",
      absl::StrCat("remove of ", record.path, ": kept it, because the save before, ", save.name(),
                   " to ", save.path(), ", is ", v1::Save::State_Name(save.state()),
                   save.has_error() ? ": " : "", save.error().message()),
      {{"path", record.path}, {"save", save.name()}});
}

// ---- Flush -----------------------------------------------------------------------------------

absl::StatusOr<v1::FlushResponse> SaveQueue::Flush(const v1::FlushRequest& request,
                                                   absl::Time deadline) {
  CKPTD_ASSIGN_OR_RETURN(const std::string job, JobOfParent(request.parent(), true));
  std::string path;
  if (!request.path().empty()) {
    CKPTD_ASSIGN_OR_RETURN(const Target target, ResolvePlace(request.path()));
    path = target.path;
  }
  std::vector<SavePtr> saves;
  std::vector<RemovePtr> removes;
  absl::MutexLock lock(&mu_);
  for (const auto& [name, entry] : jobs_) {
    if (!job.empty() && name != job) continue;
    for (const SavePtr& save : entry.active) {
      if (path.empty() || IsAtOrBelow(save->target.path, path)) saves.push_back(save);
    }
    for (const RemovePtr& remove : entry.removes) {
      if (path.empty() || IsAtOrBelow(remove->target.path, path)) removes.push_back(remove);
    }
  }
  auto pending = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return std::count_if(saves.begin(), saves.end(),
                         [](const SavePtr& s) { return s->save.end_time().seconds() == 0; }) +
           std::count_if(removes.begin(), removes.end(),
                         [](const RemovePtr& r) { return !r->ended; });
  };
  auto done = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || pending() == 0; };
  if (!mu_.AwaitWithDeadline(absl::Condition(&done), deadline)) {
    return MakeError(absl::StatusCode::kDeadlineExceeded, "FLUSH_TIMEOUT",
                     absl::StrCat("flush: ", pending(), " of ", saves.size() + removes.size(),
                                  " saves and removals are not done yet; they go on"));
  }
  if (pending() != 0) return Stopping("flush");
  v1::FlushResponse response;
  CollectFailures(request, saves, &response);
  return response;
}

void SaveQueue::CollectFailures(const v1::FlushRequest& request, const std::vector<SavePtr>& waited,
                                v1::FlushResponse* response) {
  constexpr int kRecent = 100;
  const std::string job = *JobOfParent(request.parent(), true);
  std::set<uint64_t> numbers;
  for (const SavePtr& save : waited) numbers.insert(save->number);
  int looked_at = 0;
  for (auto it = ended_.rbegin(); it != ended_.rend() && looked_at < kRecent; ++it, ++looked_at) {
    const SavePtr& record = by_number_.at(*it);
    if ((job.empty() || record->job == job) &&
        (request.path().empty() || record->save.path() == request.path())) {
      numbers.insert(record->number);
    }
  }
  for (uint64_t number : numbers) {
    auto it = by_number_.find(number);
    if (it == by_number_.end() || !it->second->save.has_error()) continue;
    *response->add_failed_saves() = it->second->save;
  }
  std::vector<uint64_t> told;
  for (const auto& [name, entry] : jobs_) {
    if (!job.empty() && name != job) continue;
    for (const auto& [seq, failed] : entry.failed_removals) {
      *response->add_failed_removals() = failed;
      told.push_back(seq);
    }
  }
  // A person's flush of all jobs must not keep the news from the job itself.
  if (job.empty()) return;
  for (uint64_t seq : told) ForgetFailedRemoval(seq);
}

}  // namespace ckptd
