// The streams that clients hold open.

#include "server/api/streams.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <thread>

#include "tests/server/api/api_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;

// A WatchSaves stream.
class Watch {
 public:
  explicit Watch(Stub* stub, const std::string& name = "",
                 absl::Duration interval = absl::InfiniteDuration()) {
    v1::WatchSavesRequest request;
    request.set_name(name);
    if (interval != absl::InfiniteDuration()) {
      request.mutable_min_interval()->set_seconds(absl::ToInt64Seconds(interval));
    }
    reader_ = stub->WatchSaves(&context_, request);
  }

  // "s1 QUEUED"; "end" at the end.
  std::string Next() {
    v1::Save save;
    if (!reader_->Read(&save)) return "end";
    last_ = save;
    return save.name().substr(save.name().rfind('/') + 1) + " " +
           v1::Save::State_Name(save.state());
  }
  // All messages up to the first that equals `last`, without those of progress.
  std::vector<std::string> Until(const std::string& last) {
    std::vector<std::string> seen;
    do {
      const std::string next = Next();
      if (seen.empty() || seen.back() != next) seen.push_back(next);
    } while (seen.back() != last && seen.back() != "end");
    return seen;
  }
  const v1::Save& last() const { return last_; }
  void Cancel() { context_.TryCancel(); }
  absl::Status Finish() { return FromGrpc(reader_->Finish()); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::Save>> reader_;
  v1::Save last_;
};

class StreamsTest : public ApiTest {};

// ---- OpenSession -----------------------------------------------------------------------------

TEST_F(StreamsTest, TheEndOfASessionReclaimsItsStagingSave) {
  auto session = std::make_unique<ClientSession>(stub_.get());
  ClientSession other(stub_.get());
  EXPECT_NE(session->id(), other.id());
  ASSERT_NO_FATAL_FAILURE(StageByStream(session->id(), "mine", "f", "x"));
  ASSERT_NO_FATAL_FAILURE(StageByStream(other.id(), "others", "g", "x"));
  session.reset();
  const v1::Save save = WaitForEnd("mine");
  EXPECT_EQ(save.state(), v1::Save::CANCELLED);
  EXPECT_THAT(ErrorOf(save), IsError(StatusCode::kCancelled, "CLIENT_DIED"));
  EXPECT_EQ(Get("others").state(), v1::Save::STAGING);
  EXPECT_TRUE(Eventually([&] { return LeasedImages().size() == 1; }));
}

TEST_F(StreamsTest, AnAcceptedSaveOutlivesItsSession) {
  HoldSaves();
  {
    ClientSession session(stub_.get());
    ASSERT_NO_FATAL_FAILURE(StageByStream(session.id(), "s", "f", "x"));
    v1::CommitSaveRequest commit;
    commit.set_name(Name("s"));
    ASSERT_OK(Call(stub_.get(), &Stub::CommitSave, commit));
  }
  ASSERT_TRUE(Eventually([&] { return queue_->SessionCount() == 1; }));
  gate_.Open();
  EXPECT_EQ(WaitForEnd("s").state(), v1::Save::SUCCEEDED);
}

TEST_F(StreamsTest, ALongNameOfAClientIsCut) {
  grpc::ClientContext context;
  v1::OpenSessionRequest request;
  request.set_client(std::string(10000, 'c'));
  auto reader = stub_->OpenSession(&context, request);
  v1::SessionEvent event;
  ASSERT_TRUE(reader->Read(&event));
  ASSERT_NO_FATAL_FAILURE(StageByStream(event.session_id(), "s", "f", "x"));
  EXPECT_EQ(Get("s").client(), std::string(256, 'c'));
  context.TryCancel();
  reader->Finish();
}

TEST_F(StreamsTest, ShutdownEndsOpenSessions) {
  ClientSession session(stub_.get());
  ASSERT_NO_FATAL_FAILURE(StageByStream(session.id(), "s", "f", "x"));
  server_->Shutdown(absl::Hours(10));
  EXPECT_THAT(session.WaitForEnd(), IsError(StatusCode::kUnavailable, "DRAINING"));
  EXPECT_EQ(Get("s").state(), v1::Save::CANCELLED);
}

// ---- WatchSaves ------------------------------------------------------------------------------

TEST_F(StreamsTest, WatchOfOneEndsAfterItsEnd) {
  ClientSession session(stub_.get());
  HoldSaves();
  ASSERT_NO_FATAL_FAILURE(StageByStream(session.id(), "s", "f", "x"));
  Watch watch(stub_.get(), Name("s"));
  EXPECT_EQ(watch.Next(), "s STAGING");
  ASSERT_OK(queue_->CommitSave(Name("s")));
  EXPECT_EQ(watch.Next(), "s QUEUED");
  EXPECT_EQ(watch.Next(), "s PERSISTING");
  gate_.Open();
  EXPECT_THAT(watch.Until("end"), testing::Contains("s SUCCEEDED"));
  EXPECT_OK(watch.Finish());
  EXPECT_EQ(watch.last().state(), v1::Save::SUCCEEDED);
}

TEST_F(StreamsTest, WatchOfOneThatHasEndedTellsThatAndEnds) {
  fs_.FailNth(FsOp::kAllocate, 1, ENOSPC);
  ASSERT_NO_FATAL_FAILURE(Save("s", "f", "x"));
  WaitForEnd("s");
  Watch watch(stub_.get(), Name("s"));
  EXPECT_THAT(watch.Until("end"), ElementsAre("s FAILED", "end"));
  EXPECT_OK(watch.Finish());
  EXPECT_THAT(ErrorOf(watch.last()), IsError(StatusCode::kResourceExhausted, "STORAGE_FULL"));
}

TEST_F(StreamsTest, WatchOfNoSaveIsAnError) {
  Watch watch(stub_.get(), Name("none"));
  EXPECT_EQ(watch.Next(), "end");
  EXPECT_THAT(watch.Finish(), IsError(StatusCode::kNotFound, "SAVE_NOT_FOUND"));
}

TEST_F(StreamsTest, WatchOfAllGoesOn) {
  ASSERT_NO_FATAL_FAILURE(Save("ended", "f", "x"));
  WaitForEnd("ended");
  ASSERT_NO_FATAL_FAILURE(Stage("a", "f", "x"));
  Watch watch(stub_.get());
  EXPECT_EQ(watch.Next(), "a STAGING");
  ASSERT_OK(queue_->AbortSave(Name("a")));
  EXPECT_EQ(watch.Next(), "a CANCELLED");
  ASSERT_NO_FATAL_FAILURE(Save("b", "f", "x"));
  EXPECT_THAT(watch.Until("b SUCCEEDED"),
              ElementsAre("b STAGING", "b QUEUED", "b PERSISTING", "b SUCCEEDED"));
  watch.Cancel();
  EXPECT_EQ(watch.Next(), "end");
  EXPECT_EQ(watch.Finish().code(), StatusCode::kCancelled);
  // The queue tells nobody any more, and goes on.
  ASSERT_NO_FATAL_FAILURE(Save("c", "f", "x"));
  EXPECT_EQ(WaitForEnd("c").state(), v1::Save::SUCCEEDED);
}

// Nobody reads while 200 states are told; then all of them are there.
TEST_F(StreamsTest, AChangeOfStateIsNeverLeftOut) {
  ASSERT_NO_FATAL_FAILURE(Stage("first", "g", "x"));
  Watch watch(stub_.get());
  EXPECT_EQ(watch.Next(), "first STAGING");
  std::vector<std::string> expected;
  for (int i = 0; i < 50; ++i) {
    const std::string id = "s" + std::to_string(i);
    ASSERT_NO_FATAL_FAILURE(Save(id, "f", "x"));
    WaitForEnd(id);
    for (const char* state : {" STAGING", " QUEUED", " PERSISTING", " SUCCEEDED"}) {
      expected.push_back(id + state);
    }
  }
  EXPECT_EQ(watch.Until("s49 SUCCEEDED"), expected);
  watch.Cancel();
  watch.Until("end");
  watch.Finish().IgnoreError();
}

TEST_F(StreamsTest, ProgressKeepsItsDistance) {
  ASSERT_OK(Begin(Request("s", disk_ / "f", 40 << 20)));
  Watch rare(stub_.get(), Name("s"), absl::Hours(1));
  EXPECT_EQ(rare.Next(), "s STAGING");
  ASSERT_OK(queue_->CommitSave(Name("s")));
  std::vector<std::string> messages;
  while (messages.empty() || messages.back() != "end") messages.push_back(rare.Next());
  EXPECT_THAT(messages, ElementsAre("s QUEUED", "s PERSISTING", "s SUCCEEDED", "end"));
  EXPECT_OK(rare.Finish());
}

TEST_F(StreamsTest, ShutdownEndsWatches) {
  ASSERT_NO_FATAL_FAILURE(Stage("s", "f", "x"));
  Watch all(stub_.get());
  Watch one(stub_.get(), Name("s"));
  EXPECT_EQ(all.Next(), "s STAGING");
  EXPECT_EQ(one.Next(), "s STAGING");
  // Far more time than the test has: it ends at once, or not at all.
  server_->Shutdown(absl::Hours(10));
  for (Watch* watch : {&all, &one}) {
    EXPECT_EQ(watch->Next(), "end");
    EXPECT_THAT(watch->Finish(), IsError(StatusCode::kUnavailable, "DRAINING"));
  }
}

// Streams come and go on many threads while saves change their states, and the server ends.
TEST_F(StreamsTest, StreamsComeAndGoAllTheTime) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> clients;
  for (int t = 0; t < 3; ++t) {
    clients.emplace_back([&] {
      const auto stub = v1::CheckpointService::NewStub(NewChannel());
      while (!stop) {
        grpc::ClientContext context;
        auto reader = stub->OpenSession(&context, v1::OpenSessionRequest());
        v1::SessionEvent event;
        reader->Read(&event);
        Watch watch(stub.get());
        context.TryCancel();
        reader->Finish();
        watch.Cancel();
        watch.Until("end");
        watch.Finish().IgnoreError();
      }
    });
  }
  for (int i = 0; i < 30; ++i) {
    const std::string id = "s" + std::to_string(i);
    ASSERT_NO_FATAL_FAILURE(Save(id, "f", "x"));
    WaitForEnd(id);
  }
  server_->Shutdown(absl::ZeroDuration());
  stop = true;
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(queue_->SessionCount(), 1) << "the fixture's own";
}

}  // namespace
}  // namespace ckptd
