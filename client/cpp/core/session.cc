#include "client/cpp/core/session.h"

#include <utility>

#include "proto/status/error_info.h"

namespace ckptd {

absl::StatusOr<std::shared_ptr<Session>> Session::Open(
    std::shared_ptr<v1::CheckpointService::Stub> stub, const std::string& client,
    absl::Time deadline, bool wait_for_daemon) {
  // No deadline on the context: it would end the stream, not the wait for its first message.
  std::shared_ptr<Session> session(new Session(std::move(stub)));
  session->context_.set_wait_for_ready(wait_for_daemon);
  v1::OpenSessionRequest request;
  request.set_client(client);
  session->thread_ = std::thread([s = session.get(), request] { s->Run(request); });

  absl::MutexLock lock(&session->mu_);
  auto answered = [s = session.get()]()
                      ABSL_EXCLUSIVE_LOCKS_REQUIRED(s->mu_) { return s->opened_ || s->ended_; };
  if (!session->mu_.AwaitWithDeadline(absl::Condition(&answered), deadline)) {
    return absl::UnavailableError("no answer to OpenSession");
  }
  if (!session->opened_) {
    return session->status_.ok() ? absl::UnavailableError("the daemon ended the session at once")
                                 : session->status_;
  }
  session->id_ = session->first_id_;
  return session;
}

Session::~Session() {
  context_.TryCancel();
  thread_.join();
}

void Session::End() {
  context_.TryCancel();
  absl::MutexLock lock(&mu_);
  ended_ = true;
}

bool Session::alive() const {
  absl::MutexLock lock(&mu_);
  return !ended_;
}

void Session::Run(const v1::OpenSessionRequest& request) {
  auto stream = stub_->OpenSession(&context_, request);
  v1::SessionEvent event;
  while (stream->Read(&event)) {
    absl::MutexLock lock(&mu_);
    first_id_ = event.session_id();
    opened_ = true;
  }
  absl::Status status = FromGrpc(stream->Finish());
  absl::MutexLock lock(&mu_);
  status_ = std::move(status);
  ended_ = true;
}

}  // namespace ckptd
