// What people ask about checkpoints: the backend reads them, in a process of its own, so that
// whatever a file does to its reader is the error of the one call. The daemon keeps the order: such
// a call has its place among the saves and removals on the path, as a load has.

#include <memory>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

// The ABI has codes alone: what they mean where a checkpoint is checked.
absl::Status WithReason(const absl::Status& status) {
  const absl::string_view reason = absl::IsDataLoss(status)             ? "CORRUPT_CHECKPOINT"
                                   : absl::IsFailedPrecondition(status) ? "NOT_VERIFIABLE"
                                                                        : "";
  if (reason.empty() || ReasonOf(status) != "BACKEND_FAILED") return status;
  return MakeError(status.code(), reason, status.message());
}

absl::Status CheckCan(const Backend& backend, absl::string_view what, const BackendHosts* hosts) {
  if (backend.Can(what) && backend.host() != nullptr && hosts != nullptr) return absl::OkStatus();
  return MakeError(
      absl::StatusCode::kUnimplemented, "NOT_SUPPORTED",
      absl::StrCat("backend ", backend.name(), ": has no function `", what,
                   "`; load the checkpoint to see whether it can be read, or ask the author of the "
                   "backend for it (plugins/abi/plugin.h)"),
      {{"backend", backend.name()}});
}

}  // namespace

absl::Status SaveQueue::AskBackend(absl::string_view what, const std::string& path,
                                   const std::string& backend_name, v1::HostTask task,
                                   BackendHosts::Calls calls, absl::Time deadline,
                                   const Wanted& wanted) {
  CKPTD_ASSIGN_OR_RETURN(const Backend* backend, backends_->Find(backend_name));
  CKPTD_RETURN_IF_ERROR(CheckCan(*backend, what, options_.hosts));
  auto record = std::make_shared<LoadRecord>();
  CKPTD_ASSIGN_OR_RETURN(const Target target, ResolvePlace(path));
  record->keys = {target.path};
  std::string real;
  if (fs_->RealPath(target.path, &real) == 0 && real != target.path) record->keys.push_back(real);
  // Of its own, and what it holds ends with it.
  const std::string session_id = OpenSession(absl::StrCat(what, " ", path));
  const absl::Cleanup close = [&] { CloseSession(session_id); };
  SessionPtr session;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_RETURN_IF_ERROR(RefuseWhileEnding(what));
    CKPTD_ASSIGN_OR_RETURN(session, FindSession(session_id));
  }
  CKPTD_RETURN_IF_ERROR(TakeTurn(record, session_id, deadline));
  CKPTD_ASSIGN_OR_RETURN(const std::string host, OwnHostOf(*backend));
  calls.on_progress = [&](int64_t) {
    if (!wanted()) CloseSession(session_id);
  };
  task.set_task_id(absl::StrCat(what, "-", record->id));
  absl::Status status = options_.hosts->Run(host, std::move(task), session->ended, calls);
  if (!absl::IsNotFound(status)) return status;
  return MakeError(absl::StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND", status.message());
}

absl::StatusOr<std::vector<v1::TensorSpec>> SaveQueue::InspectCheckpoint(
    const v1::InspectCheckpointRequest& request, absl::Time deadline, const Wanted& wanted) {
  std::vector<v1::TensorSpec> tensors;
  bool too_many = false;
  BackendHosts::Calls calls;
  calls.found = [&](const v1::HostReport::Found& found) {
    too_many |= static_cast<int64_t>(tensors.size()) + found.tensors_size() > options_.max_tensors;
    if (!too_many) tensors.insert(tensors.end(), found.tensors().begin(), found.tensors().end());
  };
  v1::HostTask task;
  task.mutable_inspect()->set_path(request.path());
  CKPTD_RETURN_IF_ERROR(AskBackend("inspect", request.path(), request.backend(), std::move(task),
                                   std::move(calls), deadline, wanted));
  if (too_many) {
    return MakeError(absl::StatusCode::kInvalidArgument, "LIMIT_EXCEEDED",
                     absl::StrCat("checkpoint ", request.path(), ": has more than ",
                                  options_.max_tensors, " tensors"));
  }
  return tensors;
}

absl::Status SaveQueue::VerifyCheckpoint(const v1::VerifyCheckpointRequest& request,
                                         absl::Time deadline, const Wanted& wanted) {
  v1::HostTask task;
  task.mutable_verify()->set_path(request.path());
  return WithReason(AskBackend("verify", request.path(), request.backend(), std::move(task), {},
                               deadline, wanted));
}

}  // namespace ckptd
