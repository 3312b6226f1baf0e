// The calls of CheckpointService over a real socket.

#include "server/api/service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "tests/server/api/api_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

TEST_F(ApiTest, ASaveALoadAndARemoval) {
  ClientSession session(stub_.get());
  EXPECT_EQ(session.event().version(), "1.2.3");
  v1::ReserveRequest reserve;
  reserve.set_session_id(session.id());
  reserve.set_image_bytes(3 << 20);
  reserve.set_wait(true);
  ASSERT_OK_AND_ASSIGN(const auto reserved, Call(stub_.get(), &Stub::Reserve, reserve));
  EXPECT_EQ(reserved.image_count(), 1);

  std::string content((3 << 20) - 5, 'x');
  content.replace(1 << 20, 3, "abc");
  ASSERT_NO_FATAL_FAILURE(StageByStream(session.id(), "s", "f", content));
  v1::CommitSaveRequest commit;
  commit.set_name(Name("s"));
  ASSERT_OK_AND_ASSIGN(const auto committed, Call(stub_.get(), &Stub::CommitSave, commit));
  EXPECT_EQ(committed.save().client(), "host:1 api_test");
  v1::FlushRequest flush;
  flush.set_parent("jobs/j");
  ASSERT_OK_AND_ASSIGN(const auto flushed, Call(stub_.get(), &Stub::Flush, flush));
  EXPECT_EQ(flushed.failed_saves_size(), 0);
  v1::GetSaveRequest get;
  get.set_name(Name("s"));
  ASSERT_OK_AND_ASSIGN(const auto save, Call(stub_.get(), &Stub::GetSave, get));
  EXPECT_EQ(save.state(), v1::Save::SUCCEEDED);
  EXPECT_TRUE(ReadFile(disk_ / "f") == content);

  v1::BeginLoadRequest begin_load;
  begin_load.set_session_id(session.id());
  begin_load.set_path(disk_ / "f");
  ASSERT_OK_AND_ASSIGN(const auto load, Call(stub_.get(), &Stub::BeginLoad, begin_load));
  v1::ReadLoadRequest read;
  read.set_load_id(load.load_id());
  read.set_offset(100);
  grpc::ClientContext context;
  auto reader = stub_->ReadLoad(&context, read);
  std::string loaded = content.substr(0, 100);
  for (v1::ReadLoadResponse piece; reader->Read(&piece);) loaded += piece.data();
  EXPECT_OK(FromGrpc(reader->Finish()));
  EXPECT_TRUE(loaded == content);
  v1::EndLoadRequest end_load;
  end_load.set_load_id(load.load_id());
  EXPECT_OK(Call(stub_.get(), &Stub::EndLoad, end_load));

  v1::RemoveCheckpointRequest remove;
  remove.set_parent("jobs/j");
  remove.set_path(disk_ / "f");
  remove.set_wait(true);
  EXPECT_OK(Call(stub_.get(), &Stub::RemoveCheckpoint, remove));
  EXPECT_THAT(disk_.List(), IsEmpty());
}

// Cut in the middle of a character it would make each answer about its saves unreadable.
TEST_F(ApiTest, ALongNameOfAClientIsCutBetweenCharacters) {
  v1::OpenSessionRequest open;
  open.set_client(std::string(255, 'x') + "\xC3\xA9");
  grpc::ClientContext context;
  auto reader = stub_->OpenSession(&context, open);
  v1::SessionEvent event;
  ASSERT_TRUE(reader->Read(&event));
  session_ = event.session_id();
  ASSERT_OK_AND_ASSIGN(const auto begun,
                       Call(stub_.get(), &Stub::BeginSave, Request("s", disk_ / "f")));
  EXPECT_EQ(begun.save().client(), std::string(255, 'x'));
  context.TryCancel();
}

TEST_F(ApiTest, TellsHowItIs) {
  ClientSession session(stub_.get());
  ASSERT_NO_FATAL_FAILURE(StageByStream(session.id(), "s", "f", "0123456789"));
  ASSERT_OK_AND_ASSIGN(const auto status,
                       Call(stub_.get(), &Stub::GetStatus, v1::GetStatusRequest()));
  EXPECT_EQ(status.version(), "1.2.3");
  EXPECT_EQ(status.pid(), getpid());
  EXPECT_EQ(status.start_time().seconds(), absl::ToUnixSeconds(clock_.Now()));
  EXPECT_FALSE(status.draining());
  EXPECT_EQ(status.session_count(), 2) << "the fixture's and this one's";
  EXPECT_THAT(status.backends(), ElementsAre("python", "raw", "torch"));
  EXPECT_EQ(status.pool().dir(), shm_.path());
  EXPECT_EQ(status.pool().budget_bytes(), 64 << 20);
  EXPECT_EQ(status.pool().used_bytes(), 4096);
  EXPECT_EQ(status.pool().free_bytes(), 0);
  EXPECT_EQ(status.pool().image_count(), 1);
  EXPECT_EQ(status.queue().staging_count(), 1);
}

// Whatever goes wrong: a code, a reason of ours, and a sentence.
TEST_F(ApiTest, EveryErrorHasItsReason) {
  Stub* stub = stub_.get();
  ClientSession session(stub);
  const auto no_save = IsError(StatusCode::kNotFound, "SAVE_NOT_FOUND");
  const auto no_session = IsError(StatusCode::kNotFound, "SESSION_NOT_FOUND");
  v1::GetSaveRequest get;
  get.set_name(Name("none"));
  EXPECT_THAT(Call(stub, &Stub::GetSave, get), no_save);
  v1::CommitSaveRequest commit;
  commit.set_name(Name("none"));
  EXPECT_THAT(Call(stub, &Stub::CommitSave, commit), no_save);
  v1::AbortSaveRequest abort;
  abort.set_name(Name("none"));
  EXPECT_THAT(Call(stub, &Stub::AbortSave, abort), no_save);
  v1::CancelSaveRequest cancel;
  cancel.set_name(Name("none"));
  EXPECT_THAT(Call(stub, &Stub::CancelSave, cancel), no_save);
  EXPECT_THAT(Call(stub, &Stub::Reserve, v1::ReserveRequest()), no_session);
  EXPECT_THAT(Call(stub, &Stub::BeginSave, v1::BeginSaveRequest()), no_session);
  v1::BeginLoadRequest load;
  load.set_session_id(session.id());
  EXPECT_THAT(Call(stub, &Stub::BeginLoad, load),
              IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
  EXPECT_THAT(Call(stub, &Stub::RemoveCheckpoint, v1::RemoveCheckpointRequest()),
              IsError(StatusCode::kInvalidArgument, "INVALID_NAME"));
  v1::FlushRequest flush;
  flush.set_parent("x");
  EXPECT_THAT(Call(stub, &Stub::Flush, flush),
              IsError(StatusCode::kInvalidArgument, "INVALID_NAME"));
  v1::ListSavesRequest list;
  list.set_page_token("x");
  EXPECT_THAT(Call(stub, &Stub::ListSaves, list),
              IsError(StatusCode::kInvalidArgument, "INVALID_PAGE_TOKEN"));
  EXPECT_OK(Call(stub, &Stub::EndLoad, v1::EndLoadRequest()));
  {
    grpc::ClientContext context;
    auto reader = stub->ReadLoad(&context, v1::ReadLoadRequest());
    v1::ReadLoadResponse response;
    EXPECT_FALSE(reader->Read(&response));
    EXPECT_THAT(FromGrpc(reader->Finish()), IsError(StatusCode::kNotFound, "LOAD_NOT_FOUND"));
  }
  {
    grpc::ClientContext context;
    v1::WriteSaveResponse response;
    auto writer = stub->WriteSave(&context, &response);
    v1::WriteSaveRequest request;
    request.set_name(Name("none"));
    writer->Write(request);
    writer->WritesDone();
    EXPECT_THAT(FromGrpc(writer->Finish()), no_save);
  }
}

TEST_F(ApiTest, AnErrorIsInTheDomainOfCkptdWithItsDetails) {
  grpc::ClientContext context;
  v1::GetSaveRequest request;
  request.set_name(Name("none"));
  v1::Save response;
  const grpc::Status status = stub_->GetSave(&context, request, &response);
  google::rpc::Status rpc;
  ASSERT_TRUE(rpc.ParseFromString(status.error_details()));
  EXPECT_EQ(rpc.code(), static_cast<int>(status.error_code()));
  EXPECT_EQ(rpc.message(), status.error_message());
  ASSERT_EQ(rpc.details_size(), 1);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(rpc.details(0).UnpackTo(&info));
  EXPECT_EQ(info.domain(), "ckptd");
  EXPECT_EQ(info.reason(), "SAVE_NOT_FOUND");
  EXPECT_EQ(info.metadata().at("name"), Name("none"));
}

TEST_F(ApiTest, BlocksAtTheBudgetUntilTheCallersDeadline) {
  ClientSession session(stub_.get());
  v1::BeginSaveRequest request = Request("a", disk_ / "a", 40 << 20);
  request.set_session_id(session.id());
  ASSERT_OK(Call(stub_.get(), &Stub::BeginSave, request));
  request.set_name(Name("b"));
  request.set_path(disk_ / "b");
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(1)));
  v1::BeginSaveResponse response;
  EXPECT_EQ(stub_->BeginSave(&context, request, &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 0; }));
  EXPECT_THAT(queue_->GetSave(Name("b")), IsError(StatusCode::kNotFound, "SAVE_NOT_FOUND"));
}

// Where a caller is gone before it could hear of its image, nobody would ever give that back.
TEST_F(ApiTest, ACallersImageIsTakenBackWhenItHasHungUp) {
  ClientSession session(stub_.get());
  v1::BeginSaveRequest request = Request("a", disk_ / "a", 40 << 20);
  request.set_session_id(session.id());
  ASSERT_OK(Call(stub_.get(), &Stub::BeginSave, request));
  request.set_name(Name("b"));
  grpc::ClientContext context;
  std::thread caller([&] {
    v1::BeginSaveResponse response;
    EXPECT_EQ(stub_->BeginSave(&context, request, &response).error_code(),
              grpc::StatusCode::CANCELLED);
  });
  ASSERT_TRUE(Eventually([&] { return pool_->GetUsage().waiting_count == 1; }));
  context.TryCancel();
  caller.join();
  // Behind the cancellation on the same connection: when these are answered, that has arrived.
  for (int i = 0; i < 10; ++i) {
    ASSERT_OK(Call(stub_.get(), &Stub::GetStatus, v1::GetStatusRequest()));
  }
  ASSERT_OK(queue_->AbortSave(Name("a")));
  EXPECT_TRUE(Eventually(
      [&] { return LeasedImages().empty() && queue_->GetStatus().staging_count() == 0; }));
}

}  // namespace
}  // namespace ckptd
