// Sessions, and saves as far as their acceptance. What happens to an accepted save is in work.cc.

#include "server/queue/save_queue.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/persist/names.h"
#include "server/queue/requests.h"

namespace ckptd {
namespace {

// Calls that may hang in a target's storage at the same time, while those who made them go on.
constexpr int kHangingCalls = 64;
// Folders whose state is remembered for when their storage does not answer.
constexpr size_t kMaxPrepared = 1000;

absl::Status NotStaging(const v1::Save& save, absl::string_view verb) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "SAVE_NOT_STAGING",
                   absl::StrCat(save.name(), ": cannot ", verb, " it: it is ",
                                v1::Save::State_Name(save.state()),
                                save.error().message().empty() ? "" : ", ", save.error().message()),
                   {{"name", save.name()}, {"state", v1::Save::State_Name(save.state())}});
}

}  // namespace

SaveQueue::SaveQueue(FileSystem* fs, const Clock* clock, Journal* journal, Pool* pool,
                     const BackendRegistry* backends, Options options)
    : fs_(fs),
      clock_(clock),
      journal_(journal),
      pool_(pool),
      backends_(backends),
      options_(std::move(options)),
      temp_prefix_(MakeOwnPrefix(journal->id())),
      persister_(fs, options_.allow_roots, temp_prefix_, options_.failpoints),
      bounded_calls_(kHangingCalls),
      work_(options_.workers_per_device),
      idle_since_(clock->Uptime()) {
  absl::MutexLock lock(&mu_);
  StartWorker();
}

SaveQueue::~SaveQueue() { Stop(); }

// ---- Sessions --------------------------------------------------------------------------------

std::string SaveQueue::OpenSession(const std::string& client) {
  std::random_device random;
  auto session = std::make_shared<Session>();
  session->id =
      absl::StrCat(absl::Hex(random(), absl::kZeroPad8), absl::Hex(random(), absl::kZeroPad8));
  session->client = client;
  absl::MutexLock lock(&mu_);
  session->ended = stopping_;
  sessions_[session->id] = session;
  spdlog::info("session {}: opened by {}", session->id, client);
  return session->id;
}

void SaveQueue::CloseSession(const std::string& session_id) {
  std::vector<std::unique_ptr<Image>> images;
  // Let go of elsewhere: to close a file may hang, and whoever calls this serves others, too.
  auto loads = std::make_shared<std::map<std::string, LoadPtr>>();
  SessionPtr session;
  {
    absl::MutexLock lock(&mu_);
    auto it = sessions_.find(session_id);
    if (it == sessions_.end()) return;
    session = it->second;
    sessions_.erase(it);
    session->ended = true;
    const auto staging = session->staging;
    for (const SavePtr& record : staging) {
      spdlog::warn("{}: its client {} is gone before it was complete; reclaiming {} bytes",
                   record->save.name(), session->client, record->save.total_bytes());
      const bool dropped = DropStaging(
          record, MakeError(absl::StatusCode::kCancelled, "CLIENT_DIED",
                            absl::StrCat(record->save.name(), ": its client ", session->client,
                                         " ended before the state was complete")));
      if (dropped && record->image != nullptr) images.push_back(std::move(record->image));
    }
    *loads = session->loads;
    for (const auto& [id, load] : *loads) DropLoad(load);
    if (sessions_.empty() && accepted_.empty()) idle_since_ = clock_->Uptime();
    spdlog::info("session {}: closed", session_id);
  }
  // A child that the client forked may still have the memory mapped: it is not used again.
  for (auto& image : images) pool_->Discard(std::move(image));
  pool_->Unreserve(session_id);
  pool_->Wake();
  bounded_calls_.Run([loads] { loads->clear(); }, absl::ZeroDuration());
}

absl::StatusOr<SaveQueue::SessionPtr> SaveQueue::FindSession(const std::string& id) const {
  auto it = sessions_.find(id);
  if (it != sessions_.end()) return it->second;
  return MakeError(absl::StatusCode::kNotFound, "SESSION_NOT_FOUND",
                   absl::StrCat("session '", id.substr(0, 64),
                                "': is not open; open one with OpenSession and keep its stream"));
}

absl::StatusOr<SaveQueue::SavePtr> SaveQueue::FindSave(const std::string& name) const {
  auto it = by_name_.find(name);
  if (it != by_name_.end()) return it->second;
  CKPTD_RETURN_IF_ERROR(JobOfSave(name).status());
  return MakeError(absl::StatusCode::kNotFound, "SAVE_NOT_FOUND",
                   absl::StrCat(name,
                                ": no such save; the daemon may have been restarted, or it "
                                "ended long ago. ckptctl list shows those it knows"),
                   {{"name", name}});
}

absl::Status SaveQueue::RefuseWhileEnding(absl::string_view what) const {
  if (!draining_ && !stopping_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kUnavailable, "DRAINING",
                   absl::StrCat(what,
                                ": the daemon is ending and finishes only what it has "
                                "accepted; try again when it is back"));
}

// ---- BeginSave -------------------------------------------------------------------------------

absl::StatusOr<int> SaveQueue::Reserve(const v1::ReserveRequest& request, absl::Time deadline) {
  SessionPtr session;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(session, FindSession(request.session_id()));
  }
  if (request.image_bytes() <= 0 || request.image_count() < 0 || request.image_count() > 1000) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
                     "reserve: image_bytes must be positive and image_count from 0 to 1000");
  }
  auto count =
      pool_->Reserve(session->id, static_cast<uint64_t>(request.image_bytes()),
                     std::max(1, request.image_count()), request.wait(), deadline, session->ended);
  if (session->ended) pool_->Unreserve(session->id);
  return count;
}

absl::StatusOr<v1::BeginSaveResponse> SaveQueue::BeginSave(const v1::BeginSaveRequest& request,
                                                           absl::Time deadline) {
  SessionPtr session;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_RETURN_IF_ERROR(RefuseWhileEnding("save"));
    CKPTD_ASSIGN_OR_RETURN(session, FindSession(request.session_id()));
  }
  auto made = std::make_shared<SaveRecord>();
  CKPTD_ASSIGN_OR_RETURN(made->job, JobOfSave(request.name()));
  CKPTD_RETURN_IF_ERROR(CheckTensors(request, options_.max_tensors));
  CKPTD_ASSIGN_OR_RETURN(const Backend* backend, backends_->Find(request.backend()));
  const CheckpointSpec spec = ToSpec(request);
  CKPTD_ASSIGN_OR_RETURN(made->plan, backend->MakePlan(spec));
  made->umask = request.umask() & 0777;
  CKPTD_ASSIGN_OR_RETURN(made->target,
                         PrepareWithin(request.path(), made->umask, &made->unprepared));
  made->device = made->target.device;
  made->keys = {made->target.path};
  const std::string canonical = Canonical(request);
  made->fingerprint = Fingerprint(canonical);
  made->session = session;
  made->payload_bytes = spec.object_bytes;
  for (const auto& tensor : spec.tensors) made->payload_bytes += tensor.size_bytes;
  made->save.set_name(request.name());
  made->save.set_path(request.path());
  made->save.set_backend(request.backend());
  made->save.set_client(session->client);
  made->save.set_total_bytes(static_cast<int64_t>(made->plan->file_bytes()));
  made->save.set_tensor_count(request.tensors_size());
  Stamp(made->save.mutable_create_time());

  CKPTD_ASSIGN_OR_RETURN(SavePtr record, AddStaging(request, made, deadline));
  if (record == made) {
    CKPTD_RETURN_IF_ERROR(AcquireImage(record, request, canonical, session, deadline));
  }
  absl::MutexLock lock(&mu_);
  return MakeResponse(*record);
}

// Adds `made` to the table, or returns the save that a repeated call is about, once it has its
// image.
absl::StatusOr<SaveQueue::SavePtr> SaveQueue::AddStaging(const v1::BeginSaveRequest& request,
                                                         const SavePtr& made, absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  for (;;) {
    CKPTD_RETURN_IF_ERROR(RefuseWhileEnding("save"));
    CKPTD_ASSIGN_OR_RETURN(const SessionPtr session, FindSession(request.session_id()));
    auto it = by_name_.find(request.name());
    if (it != by_name_.end() && it->second->rejected) {
      Forget(it->second);
      it = by_name_.end();
    }
    if (it == by_name_.end()) {
      made->number = next_number_++;
      by_name_[request.name()] = made;
      by_number_[made->number] = made;
      session->staging.insert(made);
      SetState(made.get(), v1::Save::STAGING);
      return made;
    }
    SavePtr record = it->second;
    if (record->fingerprint != made->fingerprint) {
      return MakeError(absl::StatusCode::kAlreadyExists, "SAVE_EXISTS",
                       absl::StrCat(request.name(), ": exists and is another save, to ",
                                    record->save.path(), "; choose another name"),
                       {{"name", request.name()}});
    }
    auto settled = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return record->save.state() != v1::Save::STAGING || record->image != nullptr;
    };
    if (!mu_.AwaitWithDeadline(absl::Condition(&settled), deadline)) {
      return MakeError(absl::StatusCode::kDeadlineExceeded, "STAGING_FULL",
                       absl::StrCat(request.name(), ": still waits for staging memory"));
    }
    // Where the first call got no memory it has left no save behind, and this one begins it.
    it = by_name_.find(request.name());
    if (it != by_name_.end() && it->second == record) return record;
  }
}

// Makes the folders of the target, unless its storage does not answer in time: the trainer is not
// to hang with it. Then the target is what it was the last time, or as the path stands, and its
// worker prepares it before it writes. While that call hangs, no other is made for its folder.
absl::StatusOr<Target> SaveQueue::PrepareWithin(const std::string& path, mode_t umask,
                                                bool* unprepared) {
  CKPTD_RETURN_IF_ERROR(CheckPath(path));
  const size_t slash = path.rfind('/');
  const std::string folder = path.substr(0, slash);
  auto call = std::make_shared<PrepareCall>();
  bool hangs = false;
  {
    absl::MutexLock lock(&mu_);
    std::erase_if(hanging_, [](const auto& item) { return item.second.expired(); });
    hangs = hanging_.count(folder) != 0;
  }
  const auto prepare = [call, fs = fs_, roots = options_.allow_roots, path, umask] {
    call->target = PrepareTarget(fs, roots, path, umask);
  };
  const bool answered = !hangs && bounded_calls_.Run(prepare, options_.target_patience);
  absl::MutexLock lock(&mu_);
  if (answered) {
    if (call->target.ok()) {
      if (prepared_.size() >= kMaxPrepared) prepared_.clear();
      prepared_[folder] = *call->target;
    }
    return call->target;
  }
  if (!hangs) hanging_[folder] = call;
  spdlog::warn("path {}: its file system does not answer; taking the save all the same", path);
  *unprepared = true;
  auto it = prepared_.find(folder);
  if (it == prepared_.end()) return Target{folder.empty() ? "/" : folder, path};
  Target target = it->second;
  target.path = target.dir + path.substr(slash);
  return target;
}

absl::Status SaveQueue::MeetFullPool(const SavePtr& record, v1::BeginSaveRequest::OnFull on_full) {
  const uint64_t bytes = record->plan->file_bytes();
  if (!pool_->IsFull(bytes)) return absl::OkStatus();
  if (on_full == v1::BeginSaveRequest::REJECT) {
    return MakeError(
        absl::StatusCode::kResourceExhausted, "STAGING_FULL",
        absl::StrCat("save: was rejected, as ", bytes,
                     " bytes of staging memory are not free and its policy is to reject; save "
                     "less often, or start ckptd with a larger --staging-budget"));
  }
  std::vector<SavePtr> older;
  if (on_full == v1::BeginSaveRequest::SUPERSEDE) {
    absl::MutexLock lock(&mu_);
    for (const auto& [op, work] : accepted_) {
      if (op->kind != Operation::Kind::kSave || work->paused) continue;
      auto save = std::static_pointer_cast<SaveRecord>(work);
      if (save->save.state() != v1::Save::QUEUED || save->target.path != record->target.path) {
        continue;
      }
      save->paused = true;  // no worker begins it
      older.push_back(std::move(save));
    }
  }
  for (const SavePtr& save : older) Supersede(save, record);
  absl::MutexLock lock(&mu_);
  *record->save.mutable_error() = ToRpc(MakeError(
      absl::StatusCode::kUnavailable, "STAGING_FULL",
      absl::StrCat(record->save.name(), ": waits for ", bytes,
                   " bytes of staging memory, which saves that are not durable yet hold")));
  Tell(*record, /*progress_only=*/false);
  return absl::OkStatus();
}

// `older` is paused.
void SaveQueue::Supersede(const SavePtr& older, const SavePtr& newer) {
  std::unique_ptr<Image> image;
  {
    absl::MutexLock lock(&mu_);
    older->paused = false;
    v1::Save ended = EndedSave(
        *older, MakeError(absl::StatusCode::kAborted, "SUPERSEDED",
                          absl::StrCat(older->save.name(), ": gave way to ", newer->save.name(),
                                       " to the same path, as staging memory was used up"),
                          {{"superseded_by", newer->save.name()}}));
    ended.set_state(v1::Save::SUPERSEDED);
    if (absl::Status status = RecordEnd(older, ended); !status.ok()) {
      spdlog::error("{}: cannot give way: {}", older->save.name(), std::string(status.message()));
      return;
    }
    older->superseded_by = newer;
    image = std::move(older->image);
    EndSave(older, ended);
  }
  pool_->Release(std::move(image));
}

absl::Status SaveQueue::AcquireImage(const SavePtr& record, const v1::BeginSaveRequest& request,
                                     const std::string& note, const SessionPtr& session,
                                     absl::Time deadline) {
  const absl::Status met = MeetFullPool(record, request.on_full());
  const bool rejected = !met.ok();
  absl::StatusOr<std::unique_ptr<Image>> image = nullptr;
  if (rejected) {
    image = met;
  } else {
    image = pool_->Acquire(record->plan->file_bytes(), deadline, session->ended);
  }
  PassFailpoint("begin.image");
  absl::Status status = image.status();
  if (image.ok()) status = (*image)->WriteNote(note);
  PassFailpoint("begin.noted");
  {
    absl::MutexLock lock(&mu_);
    if (record->save.state() != v1::Save::STAGING) {
      status = NotStaging(record->save, "begin");
    } else if (status.ok()) {
      record->image = *std::move(image);
      record->save.clear_error();
      return absl::OkStatus();
    } else {
      status = Annotate(status, record->save.name());
      DropStaging(record, status, rejected ? v1::Save::FAILED : v1::Save::CANCELLED);
      // A failure to start is the call's status. It leaves no save behind, but for one that was
      // rejected: whoever looks afterwards is to see what is missing.
      record->rejected = rejected;
      if (!rejected) Forget(record);
    }
  }
  if (image.ok()) pool_->Release(*std::move(image));
  return status;
}

// By value: the caller's may be one that goes here.
void SaveQueue::Forget(SavePtr record) {  // NOLINT(performance-unnecessary-value-param)
  ended_.remove(record->number);
  by_name_.erase(record->save.name());
  by_number_.erase(record->number);
  LogIfError(journal_->ForgetSave(record->save.name()));
}

v1::BeginSaveResponse SaveQueue::MakeResponse(const SaveRecord& record) const {
  v1::BeginSaveResponse response;
  *response.mutable_save() = record.save;
  if (record.save.state() != v1::Save::STAGING || record.image == nullptr) return response;
  const Image& image = *record.image;
  response.mutable_image()->set_path(image.path());
  response.mutable_image()->set_size_bytes(static_cast<int64_t>(image.size()));
  response.mutable_image()->set_inode(image.inode());
  response.mutable_image()->set_id(image.id());
  response.set_object_offset(static_cast<int64_t>(record.plan->object_offset()));
  response.mutable_tensor_offsets()->Reserve(
      static_cast<int>(record.plan->tensor_offsets().size()));
  for (uint64_t offset : record.plan->tensor_offsets()) {
    response.add_tensor_offsets(static_cast<int64_t>(offset));
  }
  return response;
}

// ---- From STAGING to QUEUED, or not ----------------------------------------------------------

absl::StatusOr<int64_t> SaveQueue::WriteSave(const std::string& name, int64_t offset,
                                             absl::string_view data) {
  SavePtr record;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(record, FindSave(name));
    if (stopping_) return RefuseWhileEnding("save");
    if (record->save.state() != v1::Save::STAGING || record->image == nullptr) {
      return NotStaging(record->save, "write to");
    }
    const uint64_t size = record->image->size();
    if (offset < 0 || static_cast<uint64_t>(offset) > size ||
        data.size() > size - static_cast<uint64_t>(offset)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_OFFSET",
                       absl::StrCat(name, ": ", data.size(), " bytes at offset ", offset,
                                    " lie outside its image of ", size, " bytes"));
    }
    ++record->writers;
  }
  std::memcpy(record->image->data() + offset, data.data(), data.size());
  absl::MutexLock lock(&mu_);
  --record->writers;
  record->save.set_staged_bytes(record->save.staged_bytes() + static_cast<int64_t>(data.size()));
  return record->save.staged_bytes();
}

absl::StatusOr<v1::CommitSaveResponse> SaveQueue::CommitSave(const std::string& name) {
  absl::MutexLock lock(&mu_);
  CKPTD_ASSIGN_OR_RETURN(const SavePtr record, FindSave(name));
  auto no_writers = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return record->writers == 0; };
  mu_.Await(absl::Condition(&no_writers));
  v1::CommitSaveResponse response;
  const SessionPtr session = record->session.lock();
  if (record->save.state() == v1::Save::STAGING) {
    const auto staged = static_cast<uint64_t>(record->save.staged_bytes());
    if (record->image == nullptr || (staged != 0 && staged != record->payload_bytes)) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "INCOMPLETE_SAVE",
                       absl::StrCat(name, ": has received ", staged, " bytes of ",
                                    record->payload_bytes, "; write the rest, or abort it"));
    }
    CKPTD_RETURN_IF_ERROR(stopping_ ? RefuseWhileEnding("save") : absl::OkStatus());
    CKPTD_RETURN_IF_ERROR(Accept(record));
    if (session != nullptr) session->staging.erase(record);
  } else if (record->save.commit_time().seconds() == 0) {
    return NotStaging(record->save, "commit");
  }
  *response.mutable_save() = record->save;
  if (session != nullptr) {
    for (v1::Save& save : session->ended_saves) *response.add_ended_saves() = std::move(save);
    session->ended_saves.clear();
  }
  return response;
}

// From here on the save is the daemon's, and this daemon's successor's.
absl::Status SaveQueue::Accept(const SavePtr& record) {
  order_.Add(record.get(), {});
  Journal::SaveEntry entry = ToEntry(*record);
  Stamp(entry.save.mutable_commit_time());
  entry.save.set_state(v1::Save::QUEUED);
  PassFailpoint("commit.before-journal");
  if (absl::Status status = journal_->PutSave(entry); !status.ok()) {
    order_.End(record.get());
    return Annotate(status, record->save.name());
  }
  PassFailpoint("commit.journaled");
  *record->save.mutable_commit_time() = entry.save.commit_time();
  SetState(record.get(), v1::Save::QUEUED);
  Job& job = jobs_[record->job];
  job.active.insert(record);
  job.newest_save = record;
  accepted_[record.get()] = record;
  if (record->blockers == 0) work_.Add(record);
  return absl::OkStatus();
}

// Ends a save that is STAGING; its image, if any, is then for the caller to give back. False where
// it was committed or dropped while this waited for calls of WriteSave to leave the image.
bool SaveQueue::DropStaging(const SavePtr& record, const absl::Status& why, v1::Save::State state) {
  auto no_writers = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return record->writers == 0; };
  mu_.Await(absl::Condition(&no_writers));
  if (record->save.state() != v1::Save::STAGING) return false;
  if (const SessionPtr session = record->session.lock(); session != nullptr) {
    session->staging.erase(record);
  }
  record->plan.reset();
  *record->save.mutable_error() = ToRpc(why);
  Stamp(record->save.mutable_end_time());
  record->end = next_end_++;
  ended_.push_back(record->number);
  SetState(record.get(), state);
  // For the history alone: nobody was promised anything.
  Journal::SaveEntry entry = ToEntry(*record);
  entry.image.clear();
  LogIfError(journal_->PutSave(entry));
  TrimHistory();
  return true;
}

absl::StatusOr<v1::Save> SaveQueue::AbortSave(const std::string& name) {
  std::unique_ptr<Image> image;
  v1::Save save;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(const SavePtr record, FindSave(name));
    if (record->save.state() == v1::Save::STAGING) {
      if (DropStaging(record, MakeError(absl::StatusCode::kCancelled, "ABORTED",
                                        absl::StrCat(name, ": its client gave it up")))) {
        image = std::move(record->image);
      }
    }
    save = record->save;
  }
  if (image != nullptr) pool_->Release(std::move(image));
  return save;
}

absl::StatusOr<v1::Save> SaveQueue::CancelSave(const std::string& name) {
  std::unique_ptr<Image> image;
  bool staging = false;
  v1::Save save;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(const SavePtr record, FindSave(name));
    const absl::Status why = MakeError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST",
                                       absl::StrCat(name, ": was cancelled by CancelSave"));
    staging = record->save.state() == v1::Save::STAGING && DropStaging(record, why);
    if (staging) {
      image = std::move(record->image);
    } else if (record->paused) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "SAVE_BUSY",
                       absl::StrCat(name, ": is being exported; try again when that is done"));
    } else if (record->save.image_kept()) {
      CKPTD_RETURN_IF_ERROR(DropKeptImage(record, &image));
    } else if (record->save.state() == v1::Save::QUEUED || work_.Contains(record.get())) {
      const v1::Save ended = EndedSave(*record, why);
      CKPTD_RETURN_IF_ERROR(RecordEnd(record, ended));
      image = std::move(record->image);
      EndSave(record, ended);
    } else if (record->save.state() == v1::Save::PERSISTING) {
      record->cancel_requested = true;
      record->control.cancelled = true;
    }
    save = record->save;
  }
  if (image == nullptr) return save;
  // The client of a save that was STAGING may still be copying.
  if (staging) {
    pool_->Discard(std::move(image));
  } else {
    pool_->Release(std::move(image));
  }
  return save;
}

}  // namespace ckptd
