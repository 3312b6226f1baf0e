#ifndef CKPTD_TESTS_SERVER_API_API_FIXTURE_H_
#define CKPTD_TESTS_SERVER_API_API_FIXTURE_H_

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "server/api/grpc_server.h"
#include "server/api/service.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {

using Stub = v1::CheckpointService::Stub;

// An OpenSession stream, held open until End or the end of this.
class ClientSession {
 public:
  explicit ClientSession(Stub* stub);
  ~ClientSession() { End(); }
  ClientSession(const ClientSession&) = delete;
  ClientSession& operator=(const ClientSession&) = delete;

  const std::string& id() const { return event_.session_id(); }
  const v1::SessionEvent& event() const { return event_; }
  // Ends it from the client's side.
  void End();
  // Waits until the daemon ends it, and says how.
  absl::Status WaitForEnd();

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::SessionEvent>> reader_;
  v1::SessionEvent event_;
};

// A real server on a real socket, over the parts of QueueTest.
class ApiTest : public QueueTest {
 protected:
  // Keeps gRPC until the end of the process: where its last object goes while one of its pollers is
  // at work, it waits 10 s for that.
  static void SetUpTestSuite() { grpc_init(); }
  void SetUp() override;
  void TearDown() override;

  void StartServer();
  // A connection of its own.
  std::shared_ptr<grpc::Channel> NewChannel() const;
  // Calls a method with any bytes; those of the answer go to `response`.
  static grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel,
                              const std::string& method, const std::string& request,
                              std::string* response = nullptr);
  // BeginSave and WriteSave in pieces, through the stub.
  void StageByStream(const std::string& session_id, const std::string& id, const std::string& file,
                     const std::string& content);
  // Whether the server still answers.
  bool Answers();

  std::string Socket() const { return run_ / "d/ckptd.sock"; }

  TempDir run_;
  std::unique_ptr<CheckpointServiceImpl> service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<Stub> stub_;
};

// Calls `method` of the stub and gives the answer, or the error as the daemon made it.
template <typename Request, typename Response>
absl::StatusOr<Response> Call(Stub* stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Response*),
                              const Request& request) {
  grpc::ClientContext context;
  Response response;
  const grpc::Status status = (stub->*method)(&context, request, &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_API_API_FIXTURE_H_
