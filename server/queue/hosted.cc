// Saves, removals and loads of backends that run in host processes (backend/hosts.h). They have
// their place in the one order like all others; what differs:
//
//  * A path may be a URL, which is its own key in the order, and nothing is made at a path before
//    the host makes it.
//  * One host does one thing at a time, in the order in which it was accepted.
//  * The image is sealed, and given to the host as it is. What the host says ends the save: there
//    is no other attempt, as nobody knows what was done.
//  * The host itself is kept, in the journal too, for as long as a session that has registered it
//    is open or accepted work names it.

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <climits>
#include <functional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/runnable.h"
#include "server/queue/requests.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

bool IsUrl(const std::string& path) {
  const size_t scheme = path.find("://");
  return scheme != std::string::npos && scheme > 0 && path.find('/') == scheme + 1;
}

// A host may have said already what it is about.
absl::Status About(absl::string_view what, const std::string& path, const absl::Status& status) {
  if (absl::StrContains(status.message(), path)) return status;
  return Annotate(status, absl::StrCat(what, " ", path));
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
    registered_hosts_.insert(id);
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
  // The next daemon needs it; or it is a plugin's, and stays.
  if (stopping_ || registered_hosts_.erase(id) == 0) return;
  options_.hosts->Remove(id);
  LogIfError(journal_->ForgetHost(id));
}

void SaveQueue::AddAccepted(const WorkPtr& work) {
  accepted_[work.get()] = work;
  was_crowded_ = RunnableThreads() >= options_.crowd;
  if (!work->host.empty()) UseHost(work->host);
  if (work->blockers == 0) work_.Add(work);
}

// Before the work that names them.
void SaveQueue::RestoreHosts(const Journal::Contents& contents) {
  if (options_.hosts == nullptr) return;
  for (const auto& [id, spec] : contents.hosts) {
    options_.hosts->Restore(id, spec);
    registered_hosts_.insert(id);
  }
}

void SaveQueue::ForgetUnusedHosts(const Journal::Contents& contents) {
  if (options_.hosts == nullptr) return;
  for (const auto& [id, spec] : contents.hosts) {
    if (host_users_.count(id) != 0) continue;
    registered_hosts_.erase(id);
    options_.hosts->Remove(id);
    LogIfError(journal_->ForgetHost(id));
  }
}

// ---- What comes in ---------------------------------------------------------------------------

// The host process that does what `backend` is asked to; empty where the daemon does it. `host`: as
// the request has it.
absl::StatusOr<std::string> SaveQueue::HostOf(const Backend& backend, const std::string& host) {
  const bool is_clients = backend.hosted() && backend.host() == nullptr;
  if (!is_clients && !host.empty()) {
    return InvalidRequest(
        absl::StrCat("backend ", backend.name(), ": has no host of a client's; leave it out"));
  }
  if (!backend.hosted()) return std::string();
  if (options_.hosts == nullptr || (is_clients && host.empty())) {
    return InvalidRequest(absl::StrCat("backend ", backend.name(),
                                       ": needs a host process; name one from RegisterHost"));
  }
  if (is_clients) {
    CKPTD_RETURN_IF_ERROR(options_.hosts->Check(host));
    return host;
  }
  return OwnHostOf(backend);
}

// The process that the daemon starts for `backend`, which has one.
absl::StatusOr<std::string> SaveQueue::OwnHostOf(const Backend& backend) {
  v1::HostSpec spec;
  spec.set_label(backend.name());
  *spec.mutable_argv() = {backend.host()->argv.begin(), backend.host()->argv.end()};
  spec.set_payload(backend.host()->payload);
  spec.set_umask(0077);
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::pair<std::string, std::string> variable =
        absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    (*spec.mutable_environment())[variable.first] = variable.second;
  }
  return options_.hosts->Add(spec);
}

// What a host process does counts as a device of its own.
uint64_t SaveQueue::HostDevice(const std::string& host) {
  return std::hash<std::string>{}(host) | (uint64_t{1} << 62);
}

void SaveQueue::SetHosted(SaveRecord* record, const std::string& host,
                          const v1::BeginSaveRequest& request) {
  record->host = host;
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
  if (!record->image->IsUncut()) return ImageChanged(record->save.name());
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
  if (!status.ok()) return About("checkpoint", record->save.path(), status);
  spdlog::info("{}: its host has written {} in {:.3f} s", record->save.name(), record->target.path,
               absl::ToDoubleSeconds(clock_->Uptime() - start));
  return absl::OkStatus();
}

absl::Status SaveQueue::RemoveHosted(const RemovePtr& record) {
  v1::HostTask task;
  task.set_task_id(absl::StrCat("remove-", record->seq));
  task.mutable_remove()->set_path(record->path);
  return About("remove of", record->path,
               options_.hosts->Run(record->host, std::move(task), record->cancelled, {}));
}

// Of a backend whose client reads by itself, only the place in the order is the daemon's.
absl::StatusOr<v1::BeginLoadResponse> SaveQueue::BeginHostedLoad(
    const Backend& backend, const v1::BeginLoadRequest& request, absl::Time deadline) {
  auto record = std::make_shared<LoadRecord>();
  CKPTD_ASSIGN_OR_RETURN(const Target target, ResolvePlace(request.path()));
  record->keys = {target.path};
  CKPTD_RETURN_IF_ERROR(TakeTurn(record, request.session_id(), deadline));
  v1::BeginLoadResponse response;
  response.set_load_id(record->id);
  if (!backend.loads()) return response;
  absl::Status status = LoadHosted(backend, request, record, deadline, &response);
  if (status.ok()) return response;
  absl::MutexLock lock(&mu_);
  DropLoad(record);
  return About("checkpoint", request.path(), status);
}

// Has the host read the tensors into an image of the backend's layout, which is a file as any
// client can read it.
absl::Status SaveQueue::LoadHosted(const Backend& backend, const v1::BeginLoadRequest& request,
                                   const LoadPtr& record, absl::Time deadline,
                                   v1::BeginLoadResponse* response) {
  const SessionPtr session = record->session.lock();
  if (session == nullptr) return absl::CancelledError("its client is gone");
  CKPTD_ASSIGN_OR_RETURN(const std::string host, HostOf(backend, ""));
  std::unique_ptr<Plan> plan;
  std::unique_ptr<Image> image;
  const auto allocate = [&](const v1::HostReport::Allocate& wanted) -> absl::Status {
    if (image != nullptr) return InvalidRequest("load: memory was allocated before");
    v1::BeginSaveRequest spec;
    *spec.mutable_tensors() = wanted.tensors();
    *spec.mutable_options() = wanted.options();
    CKPTD_RETURN_IF_ERROR(CheckTensors(spec, options_.max_tensors));
    CKPTD_ASSIGN_OR_RETURN(plan, backend.MakePlan(ToSpec(spec)));
    CKPTD_ASSIGN_OR_RETURN(
        image, pool_->Acquire(session->id, plan->file_bytes(), deadline, session->ended));
    return absl::OkStatus();
  };
  BackendHosts::Calls calls;
  calls.allocate = [&](const v1::HostReport::Allocate& wanted) {
    v1::HostTask::Allocated answer;
    if (absl::Status status = allocate(wanted); !status.ok()) {
      *answer.mutable_error() = ToRpc(status);
      return answer;
    }
    Describe(*image, answer.mutable_image());
    for (uint64_t offset : plan->tensor_offsets()) {
      answer.add_tensor_offsets(static_cast<int64_t>(offset));
    }
    return answer;
  };
  v1::HostTask task;
  task.set_task_id(absl::StrCat("load-", record->id));
  task.mutable_load()->set_path(request.path());
  task.mutable_load()->set_verify(true);
  absl::Status status = options_.hosts->Run(host, std::move(task), session->ended, calls);
  if (absl::IsNotFound(status)) {
    status = MakeError(absl::StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND", status.message());
  }
  if (status.ok() && image == nullptr) {
    status = MakeError(absl::StatusCode::kInternal, "BACKEND_FAILED",
                       absl::StrCat("backend ", backend.name(), ": has loaded nothing"));
  }
  if (status.ok()) status = backend.Seal(*plan, image->data(), [](uint64_t) { return true; });
  if (!status.ok()) {
    // A host that goes on all the same may still write to it.
    if (image != nullptr) pool_->Discard(std::move(image));
    return status;
  }
  response->set_size_bytes(static_cast<int64_t>(image->size()));
  if (request.lend()) Describe(*image, response->mutable_image());
  response->set_image_filled(request.lend());
  absl::MutexLock lock(&mu_);
  if (loads_.count(record->id) == 0) {
    pool_->Release(std::move(image));
    return absl::CancelledError("its client is gone");
  }
  record->image = std::move(image);
  return absl::OkStatus();
}

}  // namespace ckptd
