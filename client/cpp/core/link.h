#ifndef CKPTD_CLIENT_CPP_CORE_LINK_H_
#define CKPTD_CLIENT_CPP_CORE_LINK_H_

#include <sys/types.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "client/cpp/core/session.h"
#include "proto/status/error_info.h"

namespace ckptd {

// A gRPC channel to the daemon and the session on it, which is opened again when it is lost.
// Thread-safe.
class Link {
 public:
  using Stub = v1::CheckpointService::Stub;

  struct Options {
    std::string address;
    std::string client;
    // How long to wait for a daemon that has gone away.
    absl::Duration reconnect_timeout;
    // Called after a session was opened in place of a lost one, before anything else uses it; the
    // daemon may be another one. Must not call WithSession.
    std::function<void(absl::Time deadline)> on_reopened;
  };

  explicit Link(Options options);

  // Opens the session now. UNAVAILABLE at once where there is no daemon.
  absl::Status Open(absl::Time deadline);

  // Runs `call` with an open session; again, with another one, after the daemon has come back,
  // where it was gone during the call or does not know what the call has begun.
  absl::Status WithSession(absl::Time deadline, absl::FunctionRef<absl::Status(Session&)> call);

  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response, absl::Time deadline) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(deadline));
    return FromGrpc((stub_.get()->*method)(&context, request, response));
  }

  Stub& stub() { return *stub_; }
  const std::shared_ptr<grpc::ChannelInterface>& channel() const { return channel_; }

  // Whether this process is a forked child of the one that made this object.
  bool forked() const { return getpid() != pid_; }

 private:
  absl::StatusOr<std::shared_ptr<Session>> GetSession(absl::Time deadline, bool wait_for_daemon);

  const Options options_;
  const pid_t pid_ = getpid();
  const std::shared_ptr<grpc::ChannelInterface> channel_;
  const std::shared_ptr<Stub> stub_;

  absl::Mutex mu_;
  std::shared_ptr<Session> session_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_LINK_H_
