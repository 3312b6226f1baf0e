#include "server/api/service.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "proto/status/error_info.h"
#include "proto/status/utf8.h"
#include "server/api/host_stream.h"
#include "server/api/write_stream.h"

namespace ckptd {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;
constexpr int kTensorsInPage = 1000;

// A little before the caller's deadline, so that our sentence reaches it before its own timer ends
// the call without one.
absl::Time Deadline(const grpc::ServerContext& context) {
  const absl::Time deadline = absl::FromChrono(context.deadline());
  const absl::Duration left = deadline - absl::Now();
  return deadline - std::clamp(left / 20, absl::Milliseconds(10), absl::Milliseconds(500));
}

// Moves a result into a response, or returns its error.
template <typename T>
grpc::Status Answer(absl::StatusOr<T> result, T* response) {
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace

CheckpointServiceImpl::CheckpointServiceImpl(SaveQueue* queue, const Pool* pool,
                                             BackendHosts* hosts, Identity identity)
    : queue_(queue), pool_(pool), hosts_(hosts), identity_(std::move(identity)) {}

grpc::ServerWriteReactor<v1::SessionEvent>* CheckpointServiceImpl::OpenSession(
    grpc::CallbackServerContext* context, const v1::OpenSessionRequest* request) {
  return NewSessionStream(&streams_, queue_, ToUtf8(request->client(), 256), identity_.version);
}

grpc::ServerWriteReactor<v1::Save>* CheckpointServiceImpl::WatchSaves(
    grpc::CallbackServerContext* context, const v1::WatchSavesRequest* request) {
  return NewWatchStream(&streams_, queue_, *request);
}

grpc::ServerReadReactor<grpc::ByteBuffer>* CheckpointServiceImpl::WriteSave(
    grpc::CallbackServerContext* context, grpc::ByteBuffer* response) {
  return NewWriteStream(queue_, response);
}

grpc::ServerBidiReactor<v1::HostReport, v1::HostTask>* CheckpointServiceImpl::AttachHost(
    grpc::CallbackServerContext* context) {
  return NewHostStream(&streams_, hosts_);
}

grpc::ServerUnaryReactor* CheckpointServiceImpl::ListSaves(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  grpc::ByteBuffer bytes = *request;  // shares them
  v1::ListSavesRequest parsed;
  grpc::Status status =
      grpc::SerializationTraits<v1::ListSavesRequest>::Deserialize(&bytes, &parsed);
  if (status.ok()) {
    const absl::StatusOr<std::string> page = queue_->ListSaves(parsed);
    status = ToGrpc(page.status());
    if (page.ok()) {
      const grpc::Slice slice(*page);
      *response = grpc::ByteBuffer(&slice, 1);
    }
  }
  reactor->Finish(status);
  return reactor;
}

grpc::Status CheckpointServiceImpl::RegisterHost(grpc::ServerContext* context,
                                                 const v1::RegisterHostRequest* request,
                                                 v1::RegisterHostResponse* response) {
  return Answer(queue_->RegisterHost(*request), response);
}

grpc::Status CheckpointServiceImpl::Reserve(grpc::ServerContext* context,
                                            const v1::ReserveRequest* request,
                                            v1::ReserveResponse* response) {
  return Answer(queue_->Reserve(*request, Deadline(*context)), response);
}

grpc::Status CheckpointServiceImpl::BeginSave(grpc::ServerContext* context,
                                              const v1::BeginSaveRequest* request,
                                              v1::BeginSaveResponse* response) {
  const grpc::Status status = Answer(queue_->BeginSave(*request, Deadline(*context)), response);
  // Nobody is there to hear of the image: it must not stay away until the session ends.
  if (status.ok() && context->IsCancelled()) queue_->AbortSave(request->name()).IgnoreError();
  return status;
}

grpc::Status CheckpointServiceImpl::CommitSave(grpc::ServerContext* context,
                                               const v1::CommitSaveRequest* request,
                                               v1::CommitSaveResponse* response) {
  return Answer(queue_->CommitSave(request->name()), response);
}

grpc::Status CheckpointServiceImpl::AbortSave(grpc::ServerContext* context,
                                              const v1::AbortSaveRequest* request,
                                              v1::Save* response) {
  return Answer(queue_->AbortSave(request->name()), response);
}

grpc::Status CheckpointServiceImpl::BeginLoad(grpc::ServerContext* context,
                                              const v1::BeginLoadRequest* request,
                                              v1::BeginLoadResponse* response) {
  const grpc::Status status = Answer(queue_->BeginLoad(*request, Deadline(*context)), response);
  if (status.ok() && context->IsCancelled()) queue_->EndLoad(response->load_id());
  return status;
}

grpc::Status CheckpointServiceImpl::ReadLoad(grpc::ServerContext* context,
                                             const v1::ReadLoadRequest* request,
                                             grpc::ServerWriter<v1::ReadLoadResponse>* writer) {
  v1::ReadLoadResponse response;
  for (int64_t offset = request->offset();;) {
    absl::StatusOr<std::string> data = queue_->ReadLoad(request->load_id(), offset, kReadBytes);
    if (!data.ok()) return ToGrpc(data.status());
    if (data->empty()) return grpc::Status::OK;
    offset += static_cast<int64_t>(data->size());
    response.set_data(*std::move(data));
    if (!writer->Write(response)) return grpc::Status::OK;  // the caller is gone
  }
}

grpc::Status CheckpointServiceImpl::EndLoad(grpc::ServerContext* context,
                                            const v1::EndLoadRequest* request,
                                            v1::EndLoadResponse* response) {
  queue_->EndLoad(request->load_id());
  return grpc::Status::OK;
}

grpc::Status CheckpointServiceImpl::RemoveCheckpoint(grpc::ServerContext* context,
                                                     const v1::RemoveCheckpointRequest* request,
                                                     v1::RemoveCheckpointResponse* response) {
  return ToGrpc(queue_->RemoveCheckpoint(*request, Deadline(*context)));
}

grpc::Status CheckpointServiceImpl::Flush(grpc::ServerContext* context,
                                          const v1::FlushRequest* request,
                                          v1::FlushResponse* response) {
  return Answer(queue_->Flush(*request, Deadline(*context)), response);
}

grpc::Status CheckpointServiceImpl::GetSave(grpc::ServerContext* context,
                                            const v1::GetSaveRequest* request, v1::Save* response) {
  return Answer(queue_->GetSave(request->name()), response);
}

grpc::Status CheckpointServiceImpl::CancelSave(grpc::ServerContext* context,
                                               const v1::CancelSaveRequest* request,
                                               v1::Save* response) {
  return Answer(queue_->CancelSave(request->name()), response);
}

grpc::Status CheckpointServiceImpl::ExportSave(grpc::ServerContext* context,
                                               const v1::ExportSaveRequest* request,
                                               v1::ExportSaveResponse* response) {
  absl::StatusOr<v1::Save> save = queue_->ExportSave(*request);
  if (!save.ok()) return ToGrpc(save.status());
  *response->mutable_save() = *std::move(save);
  return grpc::Status::OK;
}

grpc::Status CheckpointServiceImpl::InspectCheckpoint(
    grpc::ServerContext* context, const v1::InspectCheckpointRequest* request,
    grpc::ServerWriter<v1::InspectCheckpointResponse>* writer) {
  absl::StatusOr<std::vector<v1::TensorSpec>> tensors = queue_->InspectCheckpoint(
      *request, Deadline(*context), [context] { return !context->IsCancelled(); });
  if (!tensors.ok()) return ToGrpc(tensors.status());
  v1::InspectCheckpointResponse page;
  for (v1::TensorSpec& tensor : *tensors) {
    *page.add_tensors() = std::move(tensor);
    if (page.tensors_size() < kTensorsInPage) continue;
    if (!writer->Write(page)) return grpc::Status::OK;  // the caller is gone
    page.Clear();
  }
  if (page.tensors_size() > 0) writer->Write(page);
  return grpc::Status::OK;
}

grpc::Status CheckpointServiceImpl::VerifyCheckpoint(grpc::ServerContext* context,
                                                     const v1::VerifyCheckpointRequest* request,
                                                     v1::VerifyCheckpointResponse* response) {
  return ToGrpc(queue_->VerifyCheckpoint(*request, Deadline(*context),
                                         [context] { return !context->IsCancelled(); }));
}

grpc::Status CheckpointServiceImpl::GetStatus(grpc::ServerContext* context,
                                              const v1::GetStatusRequest* request,
                                              v1::GetStatusResponse* response) {
  response->set_version(identity_.version);
  response->set_pid(getpid());
  response->mutable_start_time()->set_seconds(absl::ToUnixSeconds(identity_.start_time));
  response->set_journal_file(identity_.journal_file);
  response->set_draining(queue_->draining());
  response->set_session_count(queue_->SessionCount());
  for (const std::string& backend : identity_.backends) response->add_backends(backend);
  for (const auto& backend : identity_.backend_details) *response->add_backend_details() = backend;
  for (const auto& plugin : identity_.refused_plugins) *response->add_refused_plugins() = plugin;
  const Pool::Usage usage = pool_->GetUsage();
  v1::PoolStatus* pool = response->mutable_pool();
  pool->set_dir(pool_->options().dir);
  pool->set_budget_bytes(static_cast<int64_t>(pool_->options().budget_bytes));
  pool->set_used_bytes(static_cast<int64_t>(usage.used_bytes));
  pool->set_free_bytes(static_cast<int64_t>(usage.free_bytes));
  pool->set_kept_bytes(static_cast<int64_t>(usage.kept_bytes));
  pool->set_lent_bytes(static_cast<int64_t>(usage.lent_bytes));
  pool->set_image_count(usage.image_count);
  *response->mutable_queue() = queue_->GetStatus();
  response->mutable_queue()->set_blocked_count(usage.waiting_count);
  return grpc::Status::OK;
}

}  // namespace ckptd
