// How a save begins: the folders of its target, its place in the table, its memory.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/backend/fingerprint.h"
#include "server/queue/requests.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

// Folders whose state is remembered for when their storage does not answer.
constexpr size_t kMaxPrepared = 1000;

}  // namespace

absl::StatusOr<v1::ReserveResponse> SaveQueue::Reserve(const v1::ReserveRequest& request,
                                                       absl::Time deadline) {
  SessionPtr session;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(session, FindSession(request.session_id()));
  }
  if (request.image_bytes() <= 0 || request.image_count() < 0 || request.image_count() > 1000) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
                     "reserve: image_bytes must be positive and image_count from 0 to 1000");
  }
  auto reserved =
      pool_->Reserve(session->id, static_cast<uint64_t>(request.image_bytes()),
                     std::max(1, request.image_count()), request.wait(), deadline, session->ended);
  if (session->ended) pool_->Unreserve(session->id);
  if (!reserved.ok()) return reserved.status();
  v1::ReserveResponse response;
  response.set_image_count(reserved->count);
  for (const Pool::FreeImage& image : reserved->images) {
    Describe(image, response.add_images());
  }
  return response;
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
  CKPTD_RETURN_IF_ERROR(CheckVisible(request));
  CKPTD_ASSIGN_OR_RETURN(const std::string host, HostOf(*backend, request.host()));
  const CheckpointSpec spec = ToSpec(request);
  CKPTD_ASSIGN_OR_RETURN(made->plan, backend->MakePlan(spec));
  made->umask = request.umask() & 0777;
  if (backend->hosted()) {
    CKPTD_ASSIGN_OR_RETURN(made->target, ResolvePlace(request.path()));
  } else {
    CKPTD_ASSIGN_OR_RETURN(made->target,
                           PrepareWithin(request.path(), made->umask, &made->unprepared));
  }
  made->visible = request.visible();
  made->device = made->target.device;
  if (backend->hosted()) SetHosted(made.get(), host, request);
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
  made->save.set_tensor_count(CountTensors(request));
  Stamp(made->save.mutable_create_time());

  // From when it is in the table on its session may end, and take its plan away.
  const uint64_t bytes = made->plan->file_bytes();
  CKPTD_ASSIGN_OR_RETURN(SavePtr record, AddStaging(request, made, deadline));
  if (record == made) {
    CKPTD_RETURN_IF_ERROR(AcquireImage(record, bytes, request, canonical, session, deadline));
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

absl::Status SaveQueue::MeetFullPool(const SavePtr& record, uint64_t bytes,
                                     v1::BeginSaveRequest::OnFull on_full) {
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
  TakeLinkAway(older.get());
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

absl::Status SaveQueue::AcquireImage(const SavePtr& record, uint64_t bytes,
                                     const v1::BeginSaveRequest& request, const std::string& note,
                                     const SessionPtr& session, absl::Time deadline) {
  const absl::Status met = MeetFullPool(record, bytes, request.on_full());
  const bool rejected = !met.ok();
  absl::StatusOr<std::unique_ptr<Image>> image = nullptr;
  if (rejected) {
    image = met;
  } else {
    image = pool_->Acquire(session->id, bytes, deadline, session->ended);
    if (image.ok() && !request.copied_aside()) {
      copy_turns_.Begin(record->number, bytes, deadline);
    }
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
  Describe(*record.image, response.mutable_image());
  response.set_object_offset(static_cast<int64_t>(record.plan->object_offset()));
  response.mutable_tensor_offsets()->Reserve(
      static_cast<int>(record.plan->tensor_offsets().size()));
  for (uint64_t offset : record.plan->tensor_offsets()) {
    response.add_tensor_offsets(static_cast<int64_t>(offset));
  }
  return response;
}

}  // namespace ckptd
