// Saves, removals and loads of backends that run in host processes (backend/hosts.h). They have
// their place in the one order like all others; what differs:
//
//  * A path may be a URL, which is its own key in the order, and nothing is made at a path before
//    the host makes it.
//  * One host does one thing at a time, in the order in which it was accepted.
//  * The image is sealed, and given to the host as it is. What the host says ends the save: there
//  is
//    no other attempt, as nobody knows what was done.
//  * The host itself is kept, in the journal too, for as long as a session that has registered it
//  is
//    open or accepted work names it.

#include <spdlog/spdlog.h>

#include <climits>
#include <functional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/queue/requests.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

bool IsUrl(const std::string& path) {
  const size_t scheme = path.find("://");
  return scheme != std::string::npos && scheme > 0 && path.find('/') == scheme + 1;
}

absl::Status InvalidRequest(absl::string_view what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST", what);
}

}  // namespace

// ---- Hosts -----------------------------------------------------------------------------------

absl::StatusOr<v1::RegisterHostResponse> SaveQueue::RegisterHost(
    const v1::RegisterHostRequest& request) {
  if (options_.hosts == nullptr) {
    return MakeError(absl::StatusCode::kUnimplemented, "INTERNAL", "host: there are none here");
  }
  absl::MutexLock lock(&mu_);
  CKPTD_RETURN_IF_ERROR(RefuseWhileEnding("host"));
  CKPTD_ASSIGN_OR_RETURN(const SessionPtr session, FindSession(request.session_id()));
  CKPTD_ASSIGN_OR_RETURN(const std::string id, options_.hosts->Add(request.spec()));
  if (session->hosts.count(id) == 0) {
    if (host_users_.count(id) == 0) {
      if (absl::Status status = journal_->PutHost(id, request.spec()); !status.ok()) {
        options_.hosts->Remove(id);
        return status;
      }
    }
    session->hosts.insert(id);
    UseHost(id);
  }
  v1::RegisterHostResponse response;
  response.set_host(id);
  response.set_startable(options_.hosts->IsStartable(id));
  return response;
}

void SaveQueue::UseHost(const std::string& id) { ++host_users_[id]; }

void SaveQueue::LeaveHost(const std::string& id) {
  auto it = host_users_.find(id);
  if (it == host_users_.end() || --it->second > 0) return;
  host_users_.erase(it);
  if (stopping_) return;  // the next daemon needs it
  options_.hosts->Remove(id);
  LogIfError(journal_->ForgetHost(id));
}

void SaveQueue::AddAccepted(const WorkPtr& work) {
  accepted_[work.get()] = work;
  if (!work->host.empty()) UseHost(work->host);
  if (work->blockers == 0) work_.Add(work);
}

// Before the work that names them.
void SaveQueue::RestoreHosts(const Journal::Contents& contents) {
  if (options_.hosts == nullptr) return;
  for (const auto& [id, spec] : contents.hosts) options_.hosts->Restore(id, spec);
}

void SaveQueue::ForgetUnusedHosts(const Journal::Contents& contents) {
  if (options_.hosts == nullptr) return;
  for (const auto& [id, spec] : contents.hosts) {
    if (host_users_.count(id) != 0) continue;
    options_.hosts->Remove(id);
    LogIfError(journal_->ForgetHost(id));
  }
}

// ---- What comes in ---------------------------------------------------------------------------

absl::Status SaveQueue::CheckHost(const Backend& backend, const std::string& host) const {
  if (!backend.hosted()) {
    if (host.empty()) return absl::OkStatus();
    return InvalidRequest(absl::StrCat("backend ", backend.name(), ": has no host; leave it out"));
  }
  if (options_.hosts == nullptr || host.empty()) {
    return InvalidRequest(absl::StrCat("backend ", backend.name(),
                                       ": needs a host process; name one from RegisterHost"));
  }
  return options_.hosts->Check(host);
}

// What a host process does counts as a device of its own.
uint64_t SaveQueue::HostDevice(const std::string& host) {
  return std::hash<std::string>{}(host) | (uint64_t{1} << 62);
}

void SaveQueue::SetHosted(SaveRecord* record, const v1::BeginSaveRequest& request) {
  record->host = request.host();
  record->device = HostDevice(record->host);
  record->adopted = false;  // it puts nothing beside its target
  record->visible = v1::BeginSaveRequest::WHEN_DURABLE;
  record->hosted = request;
  if (request.backend() != kPythonBackend) return;
  record->hosted.clear_tensors();
  record->hosted.clear_tensor_sizes();
}

absl::StatusOr<Target> SaveQueue::ResolvePlace(const std::string& path) const {
  if (!IsUrl(path)) return ResolveTarget(fs_, options_.allow_roots, path);
  if (path.size() >= PATH_MAX || path.find('\0') != std::string::npos) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PATH",
                     absl::StrCat("path ", path.substr(0, 200),
                                  ": is longer than 4095 bytes, or has a zero byte in it"));
  }
  if (!options_.allow_roots.AllowsAll()) {
    return MakeError(absl::StatusCode::kPermissionDenied, "PATH_NOT_ALLOWED",
                     absl::StrCat("path ", path,
                                  ": is no local path, and this daemon keeps to its --allow-root"),
                     {{"path", path}});
  }
  Target target;
  target.path = path;
  return target;
}

// ---- Work ------------------------------------------------------------------------------------

absl::Status SaveQueue::PersistHosted(const SavePtr& record) {
  CKPTD_ASSIGN_OR_RETURN(const Backend* backend, backends_->Find(record->save.backend()));
  const auto go_on = [&record](uint64_t) { return !record->control.cancelled; };
  if (!record->sealed) {
    CKPTD_RETURN_IF_ERROR(
        Annotate(backend->Seal(*record->plan, record->image->data(), go_on), record->save.name()));
    record->sealed = true;
  }
  if (!record->image->IsUncut()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "IMAGE_CHANGED",
                     absl::StrCat(record->save.name(),
                                  ": its client cut the image while it was the daemon's; save "
                                  "again"));
  }
  v1::HostTask task;
  *task.mutable_save()->mutable_request() = record->hosted;
  Describe(*record->image, task.mutable_save()->mutable_image());
  BackendHosts::Calls calls;
  calls.on_progress = [&record](int64_t bytes) {
    record->control.written = static_cast<uint64_t>(std::max<int64_t>(bytes, 0));
    record->control.on_progress();
  };
  {
    absl::MutexLock lock(&mu_);
    task.set_task_id(absl::StrCat("task-", next_task_++));
    host_tasks_[task.task_id()] = record;
  }
  const std::string task_id = task.task_id();
  const absl::Duration start = clock_->Uptime();
  const absl::Status status =
      options_.hosts->Run(record->host, std::move(task), record->control.cancelled, calls);
  absl::MutexLock lock(&mu_);
  host_tasks_.erase(task_id);
  if (!status.ok()) return Annotate(status, absl::StrCat("checkpoint ", record->save.path()));
  spdlog::info("{}: its host has written {} in {:.3f} s", record->save.name(), record->target.path,
               absl::ToDoubleSeconds(clock_->Uptime() - start));
  return absl::OkStatus();
}

absl::Status SaveQueue::RemoveHosted(const RemovePtr& record) {
  v1::HostTask task;
  task.set_task_id(absl::StrCat("remove-", record->seq));
  task.mutable_remove()->set_path(record->path);
  return Annotate(options_.hosts->Run(record->host, std::move(task), record->cancelled, {}),
                  absl::StrCat("remove of ", record->path));
}

// The load of a client that reads by itself: only its place in the order is the daemon's.
absl::StatusOr<v1::BeginLoadResponse> SaveQueue::HoldPlace(const v1::BeginLoadRequest& request,
                                                           absl::Time deadline) {
  auto record = std::make_shared<LoadRecord>();
  CKPTD_ASSIGN_OR_RETURN(const Target target, ResolvePlace(request.path()));
  record->keys = {target.path};
  CKPTD_RETURN_IF_ERROR(TakeTurn(record, request.session_id(), deadline));
  v1::BeginLoadResponse response;
  response.set_load_id(record->id);
  return response;
}

}  // namespace ckptd
