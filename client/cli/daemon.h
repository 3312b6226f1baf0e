#ifndef CKPTD_CLIENT_CLI_DAEMON_H_
#define CKPTD_CLIENT_CLI_DAEMON_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "grpcpp/channel.h"

namespace ckptd::cli {

// The daemon at one address.
class Daemon {
 public:
  using Stub = v1::CheckpointService::Stub;

  // Connects with the first call.
  explicit Daemon(std::string address);

  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response, absl::Duration timeout) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    return Explain((stub_.get()->*method)(&context, request, response), timeout);
  }

  // What a call that took at most `timeout` came to, in words for people.
  absl::Status Explain(const grpc::Status& status, absl::Duration timeout) const;

  Stub& stub() { return *stub_; }
  const std::string& address() const { return address_; }

 private:
  const std::string address_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<Stub> stub_;
};

// A path of the command line as the daemon is to have it: absolute, or a URL.
std::string PathForDaemon(const std::string& path);

// Whether `status`, from Explain, says that there is no daemon.
bool IsNoDaemon(const absl::Status& status);

}  // namespace ckptd::cli

#endif  // CKPTD_CLIENT_CLI_DAEMON_H_
