#include "client/cpp/core/link.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
constexpr int kMaxRetries = 2;
constexpr absl::Duration kDrainPoll = absl::Milliseconds(100);

std::shared_ptr<grpc::ChannelInterface> NewChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A channel of its own, so that a forked child's link shares nothing with its parent's.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// A daemon that is not there, rather than one that says it cannot now. gRPC cancels calls that meet
// a server's shutdown.
bool IsGone(const absl::Status& status) {
  return (absl::IsUnavailable(status) || absl::IsCancelled(status)) && ReasonOf(status).empty();
}

// What a daemon says of something that the one before had begun: gRPC reconnects by itself, and
// that the session's stream has broken may be seen later.
bool IsNotKnown(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  return reason == "SESSION_NOT_FOUND" || reason == "SAVE_NOT_FOUND" || reason == "LOAD_NOT_FOUND";
}

}  // namespace

Link::Link(Options options)
    : options_(std::move(options)),
      channel_(NewChannel(options_.address)),
      stub_(v1::CheckpointService::NewStub(channel_)) {}

absl::Status Link::Open(absl::Time deadline) {
  return GetSession(deadline, /*wait_for_daemon=*/false).status();
}

absl::Status Link::WithSession(absl::Time deadline,
                               absl::FunctionRef<absl::Status(Session&)> call) {
  if (forked()) {
    return absl::FailedPreconditionError(
        "this connection belongs to the process before fork(): open one in the child");
  }
  const absl::Time return_deadline = absl::Now() + options_.reconnect_timeout;
  for (int attempt = 0;; ++attempt) {
    CKPTD_ASSIGN_OR_RETURN(std::shared_ptr<Session> session, GetSession(deadline, attempt > 0));
    absl::Status status = call(*session);
    if (ReasonOf(status) == "DRAINING" && absl::Now() < std::min(deadline, return_deadline)) {
      // It still answers, but takes nothing new: its successor will.
      session->End();
      absl::SleepFor(kDrainPoll);
      attempt = 0;
      continue;
    }
    if (absl::IsDeadlineExceeded(status) && ReasonOf(status).empty()) {
      return absl::DeadlineExceededError("the daemon had not answered when the timeout ran out");
    }
    if (status.ok() || attempt == kMaxRetries || absl::Now() >= deadline) return status;
    if (IsGone(status) || IsNotKnown(status)) session->End();
    if (session->alive()) return status;
  }
}

absl::StatusOr<std::shared_ptr<Session>> Link::GetSession(absl::Time deadline,
                                                          bool wait_for_daemon) {
  absl::MutexLock lock(&mu_);
  if (session_ != nullptr && session_->alive()) return session_;
  const bool again = session_ != nullptr;
  deadline = std::min(deadline, absl::Now() + options_.reconnect_timeout);
  absl::StatusOr<std::shared_ptr<Session>> opened =
      Session::Open(stub_, options_.client, deadline, wait_for_daemon || again);
  if (!opened.ok() && IsGone(opened.status())) {
    return absl::UnavailableError(
        absl::StrCat("no ckptd at ", options_.address, ": start it with `ckptd`, or set ",
                     "CKPTD_ADDRESS to where it is: ", opened.status().message()));
  }
  CKPTD_RETURN_IF_ERROR(opened.status());
  session_ = *std::move(opened);
  if (again && options_.on_reopened) options_.on_reopened(deadline);
  return session_;
}

}  // namespace ckptd
