#ifndef CKPTD_SERVER_API_GRPC_SERVER_H_
#define CKPTD_SERVER_API_GRPC_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"
#include "server/api/acceptor.h"
#include "server/api/reflection.h"
#include "server/api/service.h"

namespace ckptd {

// The gRPC server on the daemon's socket: CheckpointService, health and reflection, and for callers
// of another uid one answer to everything, PERMISSION_DENIED.
class GrpcServer {
 public:
  // Largest message taken or sent.
  static constexpr int kMaxMessageBytes = 64 << 20;

  // Serves at once; `service` must outlive the server.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(std::unique_ptr<Acceptor> acceptor,
                                                           CheckpointServiceImpl* service);
  // Calls Shutdown.
  ~GrpcServer();
  GrpcServer(const GrpcServer&) = delete;
  GrpcServer& operator=(const GrpcServer&) = delete;

  // What the health service says: SERVING or not. It says SERVING from the start.
  void SetServing(bool serving);

  // Accepts no more connections, ends open streams, and gives calls until `grace` to end. The
  // socket is gone when it returns. Idempotent.
  void Shutdown(absl::Duration grace);

 private:
  GrpcServer() = default;

  CheckpointServiceImpl* service_ = nullptr;
  ReflectionService reflection_;
  std::unique_ptr<grpc::CallbackGenericService> refusal_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> to_server_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> to_refuser_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<grpc::Server> refuser_;
  // Last: its thread uses what is above.
  std::unique_ptr<Acceptor> acceptor_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_GRPC_SERVER_H_
