// Loads, removals and Flush: what takes its place in the order of the saves.

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

absl::Status Stopping(absl::string_view what) {
  return MakeError(absl::StatusCode::kUnavailable, "DRAINING",
                   absl::StrCat(what, ": the daemon is ending; try again when it is back"));
}

// Below that to read the file costs less than to map memory and give it back.
constexpr uint64_t kLeastLentBytes = uint64_t{1} << 20;

// A part of an image, as far as it has one there.
std::string Cut(const Image& image, int64_t offset, size_t length) {
  const uint64_t from = std::min(static_cast<uint64_t>(std::max<int64_t>(offset, 0)), image.size());
  return {reinterpret_cast<const char*>(image.data()) + from,
          std::min<uint64_t>(length, image.size() - from)};
}

bool IsAtOrBelow(const std::string& key, const std::string& path) {
  return key == path || absl::StartsWith(key, path + "/");
}

}  // namespace

// ---- Loads -----------------------------------------------------------------------------------

absl::StatusOr<v1::BeginLoadResponse> SaveQueue::BeginLoad(const v1::BeginLoadRequest& request,
                                                           absl::Time deadline) {
  if (!request.backend().empty()) {
    CKPTD_ASSIGN_OR_RETURN(const Backend* backend, backends_->Find(request.backend()));
    if (backend->hosted()) return BeginHostedLoad(*backend, request, deadline);
  }
  auto record = std::make_shared<LoadRecord>();
  CKPTD_ASSIGN_OR_RETURN(const Target target,
                         ResolveTarget(fs_, options_.allow_roots, request.path()));
  record->keys = {target.path};
  // Through a symlink, the load also touches the file that it leads to.
  std::string real;
  if (fs_->RealPath(target.path, &real) == 0 && real != target.path) record->keys.push_back(real);
  CKPTD_RETURN_IF_ERROR(TakeTurn(record, request.session_id(), deadline));
  v1::BeginLoadResponse response;
  absl::Status status = OpenLoad(request, record, &response);
  if (status.ok()) return response;
  absl::MutexLock lock(&mu_);
  DropLoad(record);
  if (!absl::IsNotFound(status)) return status;
  return MakeError(
      absl::StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND",
      absl::StrCat("Checkpoint file not found: ", request.path(), LastFailure(target.path)),
      {{"path", request.path()}});
}

// Gives a load its place in the order, and waits for its turn.
absl::Status SaveQueue::TakeTurn(const LoadPtr& record, const std::string& session_id,
                                 absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  CKPTD_ASSIGN_OR_RETURN(const SessionPtr session, FindSession(session_id));
  record->session = session;
  order_.Add(record.get(), {});
  record->id = absl::StrCat(session->id, "-", record->seq);
  loads_[record->id] = record;
  session->loads[record->id] = record;
  absl::Status status = WaitForTurn(record, session, deadline);
  if (!status.ok()) DropLoad(record);
  return status;
}

absl::Status SaveQueue::WaitForTurn(const LoadPtr& record, const SessionPtr& session,
                                    absl::Time deadline) {
  auto my_turn = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return record->blockers == 0 || session->ended || stopping_;
  };
  const bool in_time = mu_.AwaitWithDeadline(absl::Condition(&my_turn), deadline);
  if (stopping_ || session->ended) return Stopping("load");
  if (in_time) return absl::OkStatus();
  return MakeError(
      absl::StatusCode::kDeadlineExceeded, "PATH_BUSY",
      absl::StrCat("load of ", record->keys.front(), ": waited in vain for ", record->blockers,
                   " saves or removals that are before it; give it more time"));
}

absl::Status SaveQueue::OpenLoad(const v1::BeginLoadRequest& request, const LoadPtr& record,
                                 v1::BeginLoadResponse* response) {
  const std::string& path = request.path();
  const std::string object = absl::StrCat("checkpoint ", path);
  FileDescriptor file = options_.allow_roots.OpenFile(fs_, path);
  if (file.get() == -ENOENT || file.get() == -ENOTDIR) {
    return absl::NotFoundError("");
  }
  if (!file) return options_.allow_roots.Error(object, "open it", file.get());
  struct stat info = {};
  if (int error = fs_->Stat(file.get(), &info); error < 0) {
    return OsError(object, "look at it", -error);
  }
  if (!S_ISREG(info.st_mode)) return OsError(object, "read it as a file", EISDIR);
  response->set_load_id(record->id);
  response->set_size_bytes(info.st_size);
  response->set_device(info.st_dev);
  response->set_inode(info.st_ino);
  if (request.lend()) LendImage(record, FileId::Of(info), response);
  absl::MutexLock lock(&mu_);
  record->file = std::move(file);
  return absl::OkStatus();
}

// Takes no longer than a copy in memory, and does without where it cannot be had at once.
void SaveQueue::LendImage(const LoadPtr& record, const FileId& file,
                          v1::BeginLoadResponse* response) {
  const auto size = static_cast<uint64_t>(file.size);
  if (size < kLeastLentBytes) return;
  std::unique_ptr<Image> image = pool_->TakeHolding(file);
  const bool filled = image != nullptr;
  // Where there are others, who may load the same, they find it: this one gets a copy.
  if (std::unique_ptr<Image> copy =
          !filled || SessionCount() > 1 ? pool_->TakeForReading(size) : nullptr;
      copy != nullptr) {
    if (filled) {
      std::memcpy(copy->data(), image->data(), size);
      const bool whole = image->IsUncut();
      pool_->Release(std::move(image), whole ? absl::make_optional(file) : absl::nullopt);
      if (!whole) return pool_->Release(std::move(copy));
    }
    image = std::move(copy);
  }
  if (image == nullptr) return;
  Describe(*image, response->mutable_image());
  response->set_image_filled(filled);
  absl::MutexLock lock(&mu_);
  if (loads_.count(record->id) == 0) return pool_->Release(std::move(image));  // its client is gone
  record->image = std::move(image);
}

absl::StatusOr<std::string> SaveQueue::ReadLoad(const std::string& load_id, int64_t offset,
                                                size_t length) {
  LoadPtr record;
  {
    absl::MutexLock lock(&mu_);
    if (auto task = host_tasks_.find(load_id); task != host_tasks_.end()) {
      return Cut(*task->second->image, offset, length);
    }
    auto it = loads_.find(load_id);
    if (it != loads_.end() && it->second->image != nullptr && !it->second->file) {
      return Cut(*it->second->image, offset, length);
    }
    if (it == loads_.end() || !it->second->file) {
      return MakeError(absl::StatusCode::kNotFound, "LOAD_NOT_FOUND",
                       absl::StrCat("load '", load_id.substr(0, 64),
                                    "': is not open; begin one with BeginLoad"));
    }
    record = it->second;
  }
  if (offset < 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_OFFSET",
                     absl::StrCat("load: offset ", offset, " is negative"));
  }
  std::string data(length, '\0');
  const ssize_t n = fs_->Read(record->file.get(), data.data(), length, offset);
  if (n < 0)
    return OsError(absl::StrCat("checkpoint ", record->keys.front()), "read it",
                   static_cast<int>(-n));
  data.resize(static_cast<size_t>(n));
  return data;
}

void SaveQueue::EndLoad(const std::string& load_id) {
  LoadPtr record;  // let go of without the lock: to close its file may hang
  absl::MutexLock lock(&mu_);
  auto it = loads_.find(load_id);
  if (it == loads_.end()) return;
  record = it->second;
  if (record->image != nullptr) pool_->Lend(std::move(record->image));
  DropLoad(record);
}

// Calls of ReadLoad under way keep the record, and with it the file, to their end.
void SaveQueue::DropLoad(const LoadPtr& record) {
  if (loads_.erase(record->id) == 0) return;
  if (const SessionPtr session = record->session.lock(); session != nullptr) {
    session->loads.erase(record->id);
  }
  // Its client may be about to lock it: the memory is that process's, and never used again.
  if (record->image != nullptr) pool_->Discard(std::move(record->image));
  EndOperation(record.get());
}

std::string SaveQueue::LastFailure(const std::string& key) const {
  for (const auto& [number, record] : by_number_) {
    if (record->target.path != key || record->save.error().message().empty()) continue;
    return absl::StrCat(" (the last save to it, ", record->save.name(),
                        ", failed: ", record->save.error().message(), ")");
  }
  return "";
}

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
