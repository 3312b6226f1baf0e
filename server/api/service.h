#ifndef CKPTD_SERVER_API_SERVICE_H_
#define CKPTD_SERVER_API_SERVICE_H_

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "server/api/streams.h"
#include "server/backend/hosts.h"
#include "server/queue/save_queue.h"
#include "server/staging/pool.h"

namespace ckptd {

// ckptd.v1.CheckpointService: turns calls into calls of the queue. Calls that may wait block a
// thread of gRPC's; ListSaves and the streams of OpenSession, WatchSaves, AttachHost and WriteSave
// do not.
class CheckpointServiceImpl final
    : public v1::CheckpointService::WithCallbackMethod_OpenSession<
          v1::CheckpointService::WithCallbackMethod_WatchSaves<
              v1::CheckpointService::WithCallbackMethod_AttachHost<
                  v1::CheckpointService::WithRawCallbackMethod_WriteSave<
                      v1::CheckpointService::WithRawCallbackMethod_ListSaves<
                          v1::CheckpointService::Service>>>>> {
 public:
  struct Identity {
    std::string version;
    std::vector<std::string> backends;
    absl::Time start_time;
    std::string journal_file;
    // What `backends` are, and what was found beside them.
    std::vector<v1::BackendStatus> backend_details;
    std::vector<v1::RefusedPlugin> refused_plugins;
  };

  // The arguments must outlive the service.
  CheckpointServiceImpl(SaveQueue* queue, const Pool* pool, BackendHosts* hosts, Identity identity);

  // Ends the streams that clients hold open: they would hold up the server's shutdown.
  void EndStreams() { streams_.End(); }

  grpc::ServerWriteReactor<v1::SessionEvent>* OpenSession(
      grpc::CallbackServerContext* context, const v1::OpenSessionRequest* request) override;
  grpc::ServerWriteReactor<v1::Save>* WatchSaves(grpc::CallbackServerContext* context,
                                                 const v1::WatchSavesRequest* request) override;
  grpc::ServerReadReactor<grpc::ByteBuffer>* WriteSave(grpc::CallbackServerContext* context,
                                                       grpc::ByteBuffer* response) override;

  grpc::ServerBidiReactor<v1::HostReport, v1::HostTask>* AttachHost(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* ListSaves(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* response) override;

  grpc::Status RegisterHost(grpc::ServerContext* context, const v1::RegisterHostRequest* request,
                            v1::RegisterHostResponse* response) override;
  grpc::Status Reserve(grpc::ServerContext* context, const v1::ReserveRequest* request,
                       v1::ReserveResponse* response) override;
  grpc::Status BeginSave(grpc::ServerContext* context, const v1::BeginSaveRequest* request,
                         v1::BeginSaveResponse* response) override;
  grpc::Status CommitSave(grpc::ServerContext* context, const v1::CommitSaveRequest* request,
                          v1::CommitSaveResponse* response) override;
  grpc::Status AbortSave(grpc::ServerContext* context, const v1::AbortSaveRequest* request,
                         v1::Save* response) override;
  grpc::Status BeginLoad(grpc::ServerContext* context, const v1::BeginLoadRequest* request,
                         v1::BeginLoadResponse* response) override;
  grpc::Status ReadLoad(grpc::ServerContext* context, const v1::ReadLoadRequest* request,
                        grpc::ServerWriter<v1::ReadLoadResponse>* writer) override;
  grpc::Status EndLoad(grpc::ServerContext* context, const v1::EndLoadRequest* request,
                       v1::EndLoadResponse* response) override;
  grpc::Status RemoveCheckpoint(grpc::ServerContext* context,
                                const v1::RemoveCheckpointRequest* request,
                                v1::RemoveCheckpointResponse* response) override;
  grpc::Status Flush(grpc::ServerContext* context, const v1::FlushRequest* request,
                     v1::FlushResponse* response) override;
  grpc::Status GetSave(grpc::ServerContext* context, const v1::GetSaveRequest* request,
                       v1::Save* response) override;
  grpc::Status CancelSave(grpc::ServerContext* context, const v1::CancelSaveRequest* request,
                          v1::Save* response) override;
  grpc::Status ExportSave(grpc::ServerContext* context, const v1::ExportSaveRequest* request,
                          v1::ExportSaveResponse* response) override;
  grpc::Status InspectCheckpoint(
      grpc::ServerContext* context, const v1::InspectCheckpointRequest* request,
      grpc::ServerWriter<v1::InspectCheckpointResponse>* writer) override;
  grpc::Status VerifyCheckpoint(grpc::ServerContext* context,
                                const v1::VerifyCheckpointRequest* request,
                                v1::VerifyCheckpointResponse* response) override;
  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest* request,
                         v1::GetStatusResponse* response) override;

 private:
  SaveQueue* const queue_;
  const Pool* const pool_;
  BackendHosts* const hosts_;
  const Identity identity_;
  OpenStreams streams_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_SERVICE_H_
