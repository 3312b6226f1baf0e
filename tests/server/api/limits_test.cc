// Clients that announce, name or open too much: each is told so, and nobody else notices.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ringbuffer_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/api/api_fixture.h"
#include "tests/server/testing/child_process.h"

namespace ckptd {
namespace {

using absl::StatusCode;

constexpr int kMaxTensors = 1000000;

// What the process logs while this lives, in place of its standard error. Not to be made or
// destroyed while other threads log.
class LogCapture {
 public:
  LogCapture() { spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink_)); }
  ~LogCapture() { spdlog::set_default_logger(before_); }
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;

  int64_t CountLines(const std::string& text) const {
    const std::vector<std::string> lines = sink_->last_formatted();
    return std::count_if(lines.begin(), lines.end(), [&](const std::string& line) {
      return line.find(text) != std::string::npos;
    });
  }

 private:
  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  const std::shared_ptr<spdlog::sinks::ringbuffer_sink_mt> sink_ =
      std::make_shared<spdlog::sinks::ringbuffer_sink_mt>(10000);
};

class LimitsTest : public ApiTest {
 protected:
  void SetUp() override {
    ApiTest::SetUp();
    Start(SaveQueue::Options(), uint64_t{512} << 20);
    StartServer();
    session_stub_ = v1::CheckpointService::NewStub(NewChannel());
    client_ = std::make_unique<ClientSession>(session_stub_.get());
    ASSERT_NO_FATAL_FAILURE(StageByStream(client_->id(), "bystander", "bystander", content_));
  }
  // Who began a save before can finish it, and the connection that it had still serves.
  void TearDown() override {
    v1::CommitSaveRequest commit;
    commit.set_name(Name("bystander"));
    EXPECT_OK(Call(session_stub_.get(), &Stub::CommitSave, commit));
    EXPECT_EQ(WaitForEnd("bystander").state(), v1::Save::SUCCEEDED);
    EXPECT_TRUE(ReadFile(disk_ / "bystander") == content_);
    client_.reset();
    session_stub_.reset();
    ApiTest::TearDown();
    queue_.reset();
    pool_.reset();
  }
  v1::BeginSaveRequest Announce(int tensors) {
    v1::BeginSaveRequest request = Request("s", disk_ / "f", 10);
    request.set_session_id(client_->id());
    request.set_backend("torch");
    for (int i = 0; i < tensors; ++i) AddTensor(&request, absl::StrCat(i));
    return request;
  }
  static void AddTensor(v1::BeginSaveRequest* request, const std::string& name) {
    v1::TensorSpec* tensor = request->add_tensors();
    tensor->set_name(name);
    tensor->set_dtype("float32");
    tensor->add_shape(1);
    tensor->set_size_bytes(4);
  }
  absl::Status BeginError(const v1::BeginSaveRequest& request) {
    return Call(stub_.get(), &Stub::BeginSave, request).status();
  }

  LogCapture log_;
  const std::string content_ = std::string((1 << 20) + 7, 'b');
  std::unique_ptr<Stub> session_stub_;
  std::unique_ptr<ClientSession> client_;
};

// ---- Announcements ---------------------------------------------------------------------------

TEST_F(LimitsTest, AMillionTensorsAreTaken) {
  ASSERT_OK_AND_ASSIGN(const auto begun,
                       Call(stub_.get(), &Stub::BeginSave, Announce(kMaxTensors)));
  EXPECT_EQ(begun.tensor_offsets_size(), kMaxTensors);
  EXPECT_EQ(begun.save().tensor_count(), kMaxTensors);
  v1::CommitSaveRequest commit;
  commit.set_name(Name("s"));
  ASSERT_OK(Call(stub_.get(), &Stub::CommitSave, commit));
  const v1::Save save = WaitForEnd("s");
  EXPECT_EQ(save.state(), v1::Save::SUCCEEDED) << ErrorOf(save);
  EXPECT_EQ(ReadFile(disk_ / "f").size(), static_cast<size_t>(begun.image().size_bytes()));
}

TEST_F(LimitsTest, OneMoreIsRefused) {
  const absl::Status status = BeginError(Announce(kMaxTensors + 1));
  EXPECT_THAT(status, IsError(StatusCode::kInvalidArgument, "LIMIT_EXCEEDED"));
  EXPECT_THAT(status, Says("1000001"));
  EXPECT_EQ(LeasedImages().size(), 1u) << "the bystander's alone";
}

TEST_F(LimitsTest, TwoTensorsOfOneNameAreRefused) {
  for (const std::string& name : {std::string("layer.weight"), std::string(1 << 20, 'n')}) {
    for (const char* backend : {"raw", "torch"}) {
      v1::BeginSaveRequest request = Announce(0);
      request.set_backend(backend);
      AddTensor(&request, name);
      AddTensor(&request, "another");
      AddTensor(&request, name);
      const absl::Status status = BeginError(request);
      EXPECT_THAT(status, IsError(StatusCode::kInvalidArgument, "INVALID_TENSOR")) << backend;
      EXPECT_THAT(status, Says(name.substr(0, 10)));
    }
  }
}

// ---- Names -----------------------------------------------------------------------------------

// gRPC takes only a few KiB of error: a name that is repeated in it must not hide it.
TEST_F(LimitsTest, AVeryLongNameIsRefusedWithAReason) {
  const std::string name(1 << 20, 'n');
  const auto begin = [&](const std::function<void(v1::BeginSaveRequest*)>& change) {
    v1::BeginSaveRequest request = Announce(1);
    change(&request);
    return BeginError(request);
  };
  const std::map<std::string, absl::Status> answers = {
      {"SAVE_NAME", begin([&](auto* request) { request->set_name(Name(name)); })},
      {"PATH", begin([&](auto* request) { request->set_path("/" + name); })},
      {"PATH_PARTS", begin([&](auto* request) {
         std::string path;
         while (path.size() < name.size()) path += "/part";
         request->set_path(path);
       })},
      {"TENSOR", begin([&](auto* request) { request->mutable_tensors(0)->set_name(name); })},
      {"BACKEND", begin([&](auto* request) { request->set_backend(name); })},
      {"SESSION", begin([&](auto* request) { request->set_session_id(name); })},
      {"OPTION", begin([&](auto* request) { (*request->mutable_options())[name] = name; })},
      {"GET",
       [&] {
         v1::GetSaveRequest request;
         request.set_name(name);
         return Call(stub_.get(), &Stub::GetSave, request).status();
       }()},
      {"LIST",
       [&] {
         v1::ListSavesRequest request;
         request.set_page_token(name);
         return Call(stub_.get(), &Stub::ListSaves, request).status();
       }()},
      {"LOAD",
       [&] {
         v1::BeginLoadRequest request;
         request.set_session_id(client_->id());
         request.set_path("/" + name);
         return Call(stub_.get(), &Stub::BeginLoad, request).status();
       }()},
      {"REMOVE",
       [&] {
         v1::RemoveCheckpointRequest request;
         request.set_parent("jobs/j");
         request.set_path("/" + name);
         return Call(stub_.get(), &Stub::RemoveCheckpoint, request).status();
       }()},
      {"FLUSH",
       [&] {
         v1::FlushRequest request;
         request.set_parent(name);
         return Call(stub_.get(), &Stub::Flush, request).status();
       }()},
  };
  for (const auto& [what, status] : answers) {
    EXPECT_FALSE(status.ok()) << what;
    EXPECT_NE(ReasonOf(status), "") << what << ": " << status;
    EXPECT_LT(status.message().size(), 2000u) << what;
  }
}

TEST_F(LimitsTest, ABackendMayTakeAVeryLongNameOfATensor) {
  v1::BeginSaveRequest request = Announce(0);
  request.set_backend("raw");
  AddTensor(&request, std::string(1 << 20, 'n'));
  EXPECT_OK(BeginError(request));
}

// ---- Connections -----------------------------------------------------------------------------

constexpr int kConnections = 10000;

TEST_F(LimitsTest, AProcessThatConnectsAllTheTimeKeepsNobodyOut) {
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const size_t before = CountOpenFiles();
  ChildProcess greedy({CKPTD_CLIENT_PROCESS, "connect", Socket(), absl::StrCat(kConnections)});
  const int connected = std::stoi("0" + greedy.ReadLine());
  EXPECT_GE(connected, std::min<int>(kConnections, static_cast<int>(limit.rlim_max) - 100));
  // As many as there were descriptors for it; the test holds some of its own, too.
  EXPECT_LE(CountOpenFiles(), before + limit.rlim_cur / 4 + 100);
  EXPECT_EQ(log_.CountLines("closes new connections"), 1);
  EXPECT_TRUE(Answers());
  Save("another", "another", "another");
  EXPECT_EQ(WaitForEnd("another").state(), v1::Save::SUCCEEDED);
  greedy.Kill();
  // But for the child's output, the image of the other save and what holds its pages, and the log
  // of the journal.
  EXPECT_TRUE(Eventually([&] { return CountOpenFiles() <= before + 4; })) << CountOpenFiles();
  EXPECT_TRUE(Answers());
}

// The limit on open files of this process, as it is while this lives.
class ScopedFileLimit {
 public:
  explicit ScopedFileLimit(size_t files) {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit lower = {files, before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &lower), 0);
  }
  ~ScopedFileLimit() { setrlimit(RLIMIT_NOFILE, &before_); }
  ScopedFileLimit(const ScopedFileLimit&) = delete;
  ScopedFileLimit& operator=(const ScopedFileLimit&) = delete;

 private:
  rlimit before_ = {};
};

// However they were used up: by images, by loads, or by the system as a whole.
TEST_F(LimitsTest, WithoutDescriptorsConnectionsWaitAndCallsAreAnswered) {
  const size_t before = CountOpenFiles();
  ChildProcess greedy({CKPTD_CLIENT_PROCESS, "wait-to-connect", Socket(), "20"});
  ASSERT_EQ(greedy.ReadLine(), "ready");
  {
    const ScopedFileLimit few(before + 8);
    greedy.Kill(SIGUSR1);
    // They are in the backlog, whoever accepts them.
    EXPECT_EQ(greedy.ReadLine(), "20");
    for (int i = 0; i < 100; ++i) {
      EXPECT_OK(Call(stub_.get(), &Stub::GetStatus, v1::GetStatusRequest()));
    }
    EXPECT_EQ(log_.CountLines("cannot accept a connection"), 1) << "tries again and again";
  }
  // Those that waited are served now.
  EXPECT_TRUE(Answers());
  EXPECT_TRUE(Eventually([&] { return CountOpenFiles() >= before + 20; })) << CountOpenFiles();
  greedy.Kill();
  EXPECT_TRUE(Eventually([&] { return CountOpenFiles() <= before + 1; })) << CountOpenFiles();
}

}  // namespace
}  // namespace ckptd
