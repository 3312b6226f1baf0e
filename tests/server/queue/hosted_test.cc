// Saves, removals and loads of backends that run in host processes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/server/testing/fake_host_process.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class HostedTest : public QueueTest {
 protected:
  void SetUp() override {
    QueueTest::SetUp();
    host_ = Register(session_);
  }
  // A host that nobody can start: the test attaches it.
  std::string Register(const std::string& session) {
    v1::RegisterHostRequest request;
    request.set_session_id(session);
    request.mutable_spec()->set_label("Mine");
    request.mutable_spec()->add_argv("/no/such/program");
    request.mutable_spec()->set_payload("the base");
    auto response = queue_->RegisterHost(request);
    EXPECT_OK(response);
    EXPECT_FALSE(response->startable());
    return response->host();
  }
  v1::BeginSaveRequest HostedRequest(const std::string& id, const std::string& path) {
    v1::BeginSaveRequest request;
    request.set_session_id(session_);
    request.set_name(Name(id));
    request.set_path(path);
    request.set_backend("python");
    request.set_host(host_);
    request.set_arguments("options");
    request.set_object_bytes(5);
    return request;
  }
  void SaveTo(const std::string& id, const std::string& path) {
    auto begun = Begin(HostedRequest(id, path));
    ASSERT_OK(begun);
    ASSERT_OK(queue_->WriteSave(Name(id), begun->object_offset(), "hello"));
    ASSERT_OK(queue_->CommitSave(Name(id)));
  }
  absl::Status RemoveAt(const std::string& path, bool wait) {
    v1::RemoveCheckpointRequest request;
    request.set_parent("jobs/j");
    request.set_path(path);
    request.set_wait(wait);
    request.set_backend("python");
    request.set_host(host_);
    return queue_->RemoveCheckpoint(request, Soon());
  }

  std::string host_;
};

TEST_F(HostedTest, HostGetsTheSealedImageAndEndsTheSave) {
  FakeHostProcess fake(&hosts_);
  fake.Attach(host_);
  EXPECT_EQ(fake.Next().setup().payload(), "the base");
  SaveTo("a", "s3://bucket/a.ckpt");
  const v1::HostTask task = fake.Next();
  EXPECT_EQ(task.save().request().path(), "s3://bucket/a.ckpt");
  EXPECT_EQ(task.save().request().arguments(), "options");
  std::ifstream image(task.save().image().path());
  const std::string bytes((std::istreambuf_iterator<char>(image)), {});
  EXPECT_EQ(bytes.substr(0, 2), "PK");
  EXPECT_THAT(bytes, HasSubstr("hello"));
  EXPECT_EQ(queue_->ReadLoad(task.task_id(), 0, 1 << 20).value(), bytes);
  EXPECT_EQ(Get("a").state(), v1::Save::PERSISTING);
  fake.Done(task);
  EXPECT_EQ(WaitForEnd("a").state(), v1::Save::SUCCEEDED);
  EXPECT_THAT(queue_->ReadLoad(task.task_id(), 0, 1).status(),
              IsError(StatusCode::kNotFound, "LOAD_NOT_FOUND"));
}

TEST_F(HostedTest, ItsErrorIsTheSaves) {
  FakeHostProcess fake(&hosts_);
  fake.Attach(host_);
  fake.Next();
  SaveTo("a", "/base/a");
  const std::string traceback(5000, 'x');
  fake.Done(fake.Next(), 2, absl::StrCat("ValueError: no\n", traceback));
  const v1::Save save = WaitForEnd("a");
  EXPECT_EQ(save.state(), v1::Save::FAILED);
  EXPECT_THAT(save.error().message(), HasSubstr("/base/a: ValueError: no\n"));
  EXPECT_THAT(save.error().message(), HasSubstr(traceback));
  EXPECT_EQ(ReasonOf(FromRpc(save.error())), "BACKEND_FAILED");
}

TEST_F(HostedTest, DeathFailsTheTaskInHandAndNoOther) {
  auto first = std::make_unique<FakeHostProcess>(&hosts_);
  first->Attach(host_);
  first->Next();
  SaveTo("a", "/base/a");
  SaveTo("b", "/base/b");
  EXPECT_TRUE(first->Next().has_save());
  first.reset();
  const v1::Save save = WaitForEnd("a");
  EXPECT_EQ(ReasonOf(FromRpc(save.error())), "HOST_DIED");
  FakeHostProcess second(&hosts_);
  second.Attach(host_);
  EXPECT_TRUE(second.Next().has_setup());
  const v1::HostTask task = second.Next();
  EXPECT_EQ(task.save().request().path(), "/base/b");
  second.Done(task);
  EXPECT_EQ(WaitForEnd("b").state(), v1::Save::SUCCEEDED);
}

TEST_F(HostedTest, OneTaskAtATimeInTheOrderOfAcceptance) {
  FakeHostProcess fake(&hosts_);
  fake.Attach(host_);
  fake.Next();
  SaveTo("a", "/base/a");
  SaveTo("b", "/base/b");
  ASSERT_OK(RemoveAt("/base/a", /*wait=*/false));
  SaveTo("c", "/base/a");
  std::vector<std::string> seen;
  for (int i = 0; i < 4; ++i) {
    const v1::HostTask task = fake.Next();
    EXPECT_FALSE(fake.has_task());
    seen.push_back(task.has_save() ? "save " + task.save().request().path()
                                   : "remove " + task.remove().path());
    fake.Done(task);
  }
  EXPECT_THAT(
      seen, testing::ElementsAre("save /base/a", "save /base/b", "remove /base/a", "save /base/a"));
}

TEST_F(HostedTest, LoadHoldsItsPlaceInTheOrder) {
  FakeHostProcess fake(&hosts_);
  fake.Attach(host_);
  fake.Next();
  SaveTo("a", "mem://x/a");
  v1::BeginLoadRequest request;
  request.set_session_id(session_);
  request.set_path("mem://x/a");
  request.set_backend("python");
  EXPECT_THAT(queue_->BeginLoad(request, absl::Now()).status(),
              IsError(StatusCode::kDeadlineExceeded, "PATH_BUSY"));
  fake.Done(fake.Next());
  auto load = queue_->BeginLoad(request, Soon());
  ASSERT_OK(load);
  SaveTo("b", "mem://x/a");
  EXPECT_FALSE(fake.has_task());
  queue_->EndLoad(load->load_id());
  EXPECT_TRUE(fake.Next().has_save());
}

TEST_F(HostedTest, CancelReachesTheHost) {
  FakeHostProcess fake(&hosts_);
  fake.Attach(host_);
  fake.Next();
  SaveTo("a", "/base/a");
  const v1::HostTask task = fake.Next();
  ASSERT_OK(queue_->CancelSave(Name("a")));
  const v1::HostTask cancel = fake.Next();
  EXPECT_TRUE(cancel.has_cancel());
  EXPECT_EQ(cancel.task_id(), task.task_id());
  fake.Done(task, 1, "stopped");
  EXPECT_EQ(WaitForEnd("a").state(), v1::Save::CANCELLED);
}

TEST_F(HostedTest, EndsWithTheLastThatNeedsIt) {
  FakeHostProcess fake(&hosts_);
  fake.Attach(host_);
  fake.Next();
  SaveTo("a", "/base/a");
  queue_->CloseSession(session_);
  const v1::HostTask task = fake.Next();
  EXPECT_TRUE(task.has_save());
  fake.Done(task);
  EXPECT_TRUE(fake.WaitUntilEnded());
  EXPECT_OK(fake.end());
  EXPECT_THAT(hosts_.Check(host_), IsError(StatusCode::kNotFound, "HOST_NOT_FOUND"));
}

TEST_F(HostedTest, GoesOnInTheNextDaemon) {
  SaveTo("a", "s3://bucket/a");
  ASSERT_OK(RemoveAt("s3://bucket/b", /*wait=*/false));
  StopAll();
  hosts_.Remove(host_);
  Restart();
  ASSERT_OK(hosts_.Check(host_));
  FakeHostProcess fake(&hosts_);
  fake.Attach(host_);
  EXPECT_EQ(fake.Next().setup().payload(), "the base");
  const v1::HostTask save = fake.Next();
  EXPECT_EQ(save.save().request().path(), "s3://bucket/a");
  fake.Done(save);
  const v1::HostTask remove = fake.Next();
  EXPECT_EQ(remove.remove().path(), "s3://bucket/b");
  fake.Done(remove);
  EXPECT_TRUE(fake.WaitUntilEnded());
  Restart();
  EXPECT_THAT(hosts_.Check(host_), IsError(StatusCode::kNotFound, "HOST_NOT_FOUND"));
}

TEST_F(HostedTest, WrongRequestsAreRefused) {
  v1::BeginSaveRequest request = HostedRequest("a", "/base/a");
  request.clear_host();
  EXPECT_THAT(Begin(request).status(), IsError(StatusCode::kInvalidArgument, "INVALID_REQUEST"));
  request.set_host("other");
  EXPECT_THAT(Begin(request).status(), IsError(StatusCode::kNotFound, "HOST_NOT_FOUND"));
  request.set_backend("torch");
  EXPECT_THAT(Begin(request).status(), IsError(StatusCode::kInvalidArgument, "INVALID_REQUEST"));
  EXPECT_THAT(Begin(HostedRequest("a", "a/b")).status(),
              IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
  v1::RegisterHostRequest host;
  host.set_session_id(session_);
  host.mutable_spec()->add_argv("python");
  EXPECT_THAT(queue_->RegisterHost(host).status(),
              IsError(StatusCode::kInvalidArgument, "INVALID_REQUEST"));
}

TEST_F(HostedTest, SaysSoWhereABackendCannotTell) {
  v1::VerifyCheckpointRequest request;
  request.set_path("/f");
  for (const char* backend : {"python", "raw"}) {
    request.set_backend(backend);
    const absl::Status status = queue_->VerifyCheckpoint(request, Soon(), [] { return true; });
    EXPECT_EQ(status.code(), StatusCode::kUnimplemented) << status;
    EXPECT_EQ(ReasonOf(status), "NOT_SUPPORTED");
  }
  EXPECT_EQ(queue_->SessionCount(), 1) << "none is left open";
}

}  // namespace
}  // namespace ckptd
