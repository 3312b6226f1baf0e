#include "server/api/grpc_server.h"

#include <unistd.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/health_check_service_interface.h"
#include "proto/status/error_info.h"
#include "server/api/error_interceptor.h"
#include "server/api/polling.h"

namespace ckptd {
namespace {

using ExternalType = grpc::ServerBuilder::experimental_type::ExternalConnectionType;

// Answers every call with PERMISSION_DENIED, so that a stranger reads a sentence and not just that
// the connection was closed.
class RefusingService : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    class Refusal : public grpc::ServerGenericBidiReactor {
     public:
      explicit Refusal(const grpc::Status& status) { Finish(status); }
      void OnDone() override { delete this; }
    };
    return new Refusal(ToGrpc(
        MakeError(absl::StatusCode::kPermissionDenied, "PEER_NOT_ALLOWED",
                  absl::StrCat("peer: this ckptd serves uid ", geteuid(),
                               " only; start one of your own, or set CKPTD_ADDRESS to yours"))));
  }
};

Acceptor::Handler HandOver(grpc::experimental::ExternalConnectionAcceptor* acceptor) {
  return [acceptor](int fd) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
    parameters.listener_fd = -1;
    parameters.fd = fd;
    acceptor->HandleNewConnection(&parameters);
  };
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(std::unique_ptr<Acceptor> acceptor,
                                                              CheckpointServiceImpl* service) {
  PollWithoutNaps();
  grpc::EnableDefaultHealthCheckService(true);
  std::unique_ptr<GrpcServer> result(new GrpcServer());
  result->service_ = service;

  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.RegisterService(service);
  builder.RegisterService(&result->reflection_);
  builder.experimental().SetInterceptorCreators(ErrorInterceptors());
  result->to_server_ = builder.experimental().AddExternalConnectionAcceptor(
      ExternalType::FROM_FD, grpc::InsecureServerCredentials());
  result->server_ = builder.BuildAndStart();

  grpc::ServerBuilder refuser;
  result->refusal_ = std::make_unique<RefusingService>();
  refuser.RegisterCallbackGenericService(result->refusal_.get());
  refuser.SetMaxReceiveMessageSize(0);
  result->to_refuser_ = refuser.experimental().AddExternalConnectionAcceptor(
      ExternalType::FROM_FD, grpc::InsecureServerCredentials());
  result->refuser_ = refuser.BuildAndStart();
  if (result->server_ == nullptr || result->refuser_ == nullptr) {
    return MakeError(absl::StatusCode::kInternal, "INTERNAL", "gRPC server: did not start");
  }
  result->SetServing(true);
  result->acceptor_ = std::move(acceptor);
  result->acceptor_->Start(
      {HandOver(result->to_server_.get()), HandOver(result->to_refuser_.get())});
  return result;
}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

void GrpcServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  health->SetServingStatus(serving);
  health->SetServingStatus(v1::CheckpointService::service_full_name(), serving);
}

void GrpcServer::Shutdown(absl::Duration grace) {
  if (acceptor_ == nullptr) return;
  acceptor_->Stop();
  service_->EndStreams();
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace);
  refuser_->Shutdown(deadline);
  server_->Shutdown(deadline);
  acceptor_.reset();
}

}  // namespace ckptd
