#include "client/cli/daemon.h"

#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "proto/status/error_info.h"

namespace ckptd::cli {
namespace {

constexpr absl::string_view kNoDaemon = "NO_DAEMON";
constexpr int kMaxMessageBytes = 64 << 20;

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

Daemon::Daemon(std::string address)
    : address_(std::move(address)),
      channel_(NewChannel(address_)),
      stub_(v1::CheckpointService::NewStub(channel_)) {}

absl::Status Daemon::Explain(const grpc::Status& status, absl::Duration timeout) const {
  absl::Status error = FromGrpc(status);
  if (error.ok() || !ReasonOf(error).empty()) return error;
  const bool late = absl::IsDeadlineExceeded(error);
  const bool connected = channel_->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY;
  if (absl::IsUnavailable(error) || (late && !connected)) {
    return MakeError(absl::StatusCode::kUnavailable, kNoDaemon,
                     absl::StrCat("no daemon answers at ", address_,
                                  ": is ckptd running? Start it with `ckptd`, or set --address or "
                                  "CKPTD_ADDRESS to where it is (",
                                  error.message(), ")"));
  }
  if (late) {
    return absl::DeadlineExceededError(absl::StrCat("ckptd at ", address_, " had not answered in ",
                                                    absl::FormatDuration(timeout),
                                                    ": give it longer with --timeout"));
  }
  return error;
}

std::string PathForDaemon(const std::string& path) {
  if (absl::StrContains(path, "://")) return path;
  return std::filesystem::absolute(path).string();
}

bool IsNoDaemon(const absl::Status& status) { return ReasonOf(status) == kNoDaemon; }

}  // namespace ckptd::cli
