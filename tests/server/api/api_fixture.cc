#include "tests/server/api/api_fixture.h"

#include <grpcpp/generic/generic_stub.h>

#include <algorithm>

#include "absl/synchronization/notification.h"

namespace ckptd {
namespace {

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return {&slice, 1};
}

std::string ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace

ClientSession::ClientSession(Stub* stub) {
  v1::OpenSessionRequest request;
  request.set_client("host:1 api_test");
  reader_ = stub->OpenSession(&context_, request);
  EXPECT_TRUE(reader_->Read(&event_));
}

void ClientSession::End() {
  if (reader_ == nullptr) return;
  context_.TryCancel();
  WaitForEnd().IgnoreError();
}

absl::Status ClientSession::WaitForEnd() {
  v1::SessionEvent event;
  while (reader_->Read(&event)) {
  }
  const grpc::Status status = reader_->Finish();
  reader_.reset();
  return FromGrpc(status);
}

void ApiTest::SetUp() {
  QueueTest::SetUp();
  StartServer();
}

void ApiTest::TearDown() {
  gate_.Open();
  stub_.reset();
  server_.reset();
  service_.reset();
}

void ApiTest::StartServer() {
  server_.reset();
  auto acceptor = Acceptor::Bind(&fs_, Socket());
  ASSERT_OK(acceptor);
  service_ = std::make_unique<CheckpointServiceImpl>(
      queue_.get(), pool_.get(), &hosts_,
      CheckpointServiceImpl::Identity{
          "1.2.3", backends_.Names(), clock_.Now(), "/journal.db", {}, {}});
  auto server = GrpcServer::Start(*std::move(acceptor), service_.get());
  ASSERT_OK(server);
  server_ = *std::move(server);
  stub_ = v1::CheckpointService::NewStub(NewChannel());
}

std::shared_ptr<grpc::Channel> ApiTest::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  return grpc::CreateCustomChannel("unix:" + Socket(), grpc::InsecureChannelCredentials(),
                                   arguments);
}

grpc::Status ApiTest::CallRaw(const std::shared_ptr<grpc::Channel>& channel,
                              const std::string& method, const std::string& request,
                              std::string* response) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  const grpc::ByteBuffer request_buffer = ToBuffer(request);
  grpc::ByteBuffer response_buffer;
  grpc::Status result;
  absl::Notification done;
  stub.UnaryCall(&context, method, grpc::StubOptions(), &request_buffer, &response_buffer,
                 [&](const grpc::Status& status) {
                   result = status;
                   done.Notify();
                 });
  done.WaitForNotification();
  if (response != nullptr) *response = ToString(response_buffer);
  return result;
}

void ApiTest::StageByStream(const std::string& session_id, const std::string& id,
                            const std::string& file, const std::string& content) {
  v1::BeginSaveRequest request = Request(id, disk_ / file, content.size());
  request.set_session_id(session_id);
  const auto begun = Call(stub_.get(), &Stub::BeginSave, request);
  ASSERT_OK(begun);
  grpc::ClientContext context;
  v1::WriteSaveResponse response;
  auto writer = stub_->WriteSave(&context, &response);
  constexpr size_t kPiece = 1 << 20;
  for (size_t at = 0; at < content.size(); at += kPiece) {
    v1::WriteSaveRequest piece;
    if (at == 0) piece.set_name(Name(id));
    piece.set_offset(begun->object_offset() + static_cast<int64_t>(at));
    piece.set_data(content.substr(at, kPiece));
    ASSERT_TRUE(writer->Write(piece));
  }
  writer->WritesDone();
  ASSERT_OK(FromGrpc(writer->Finish()));
  EXPECT_EQ(response.staged_bytes(), static_cast<int64_t>(content.size()));
}

bool ApiTest::Answers() {
  const auto stub = v1::CheckpointService::NewStub(NewChannel());
  return Call(stub.get(), &Stub::GetStatus, v1::GetStatusRequest()).ok();
}

}  // namespace ckptd
