// The whole way from memory to disk and back, against the real daemon.

#include "client/cpp/core/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "client/cpp/core/session.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "tests/client_cpp/test_daemon.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"
#include "tests/server/testing/wait.h"

namespace ckptd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A save of two tensors; the bytes of `large` are found again by `mark`.
struct State {
  explicit State(const std::string& mark, size_t large_bytes = 3 << 20)
      : small(mark + "-small"), large(large_bytes, mark[0]) {}

  SaveSpec Spec(const std::string& path) const {
    SaveSpec spec;
    spec.path = path;
    spec.object = "not a pickle: the daemon does not look";
    spec.tensors = {{"0", "uint8", {}, small.data(), small.size()},
                    {"1", "uint8", {}, large.data(), large.size()},
                    {"2", "float32", {0}, nullptr, 0}};
    return spec;
  }

  // Whether `file` holds this state.
  bool In(const std::string& file) const {
    return file.find(small) != std::string::npos && file.find(large) != std::string::npos;
  }

  std::string small;
  std::string large;
};

// What a test needs and a Connection does not offer.
class RawClient {
 public:
  explicit RawClient(const std::string& address)
      : stub_(v1::CheckpointService::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {}

  v1::CheckpointService::Stub& stub() { return *stub_; }

  Session& session() {
    if (session_ == nullptr) {
      auto opened = Session::Open(stub_, "test", Soon(), true);
      EXPECT_OK(opened);
      session_ = *opened;
    }
    return *session_;
  }

  // Holds `path`, where a file must be: what is accepted on it from now on waits for Release.
  void Hold(const std::string& path) {
    v1::BeginLoadRequest request;
    request.set_session_id(session().id());
    request.set_path(path);
    grpc::ClientContext context;
    EXPECT_TRUE(stub_->BeginLoad(&context, request, &load_).ok());
  }

  void Release() {
    v1::EndLoadRequest request;
    request.set_load_id(load_.load_id());
    grpc::ClientContext context;
    v1::EndLoadResponse response;
    EXPECT_TRUE(stub_->EndLoad(&context, request, &response).ok());
  }

  v1::Save Get(const std::string& name) {
    v1::GetSaveRequest request;
    request.set_name(name);
    grpc::ClientContext context;
    v1::Save save;
    EXPECT_TRUE(stub_->GetSave(&context, request, &save).ok());
    return save;
  }

  // Images in the daemon's pool, in use or free.
  int ImageCount() {
    grpc::ClientContext context;
    v1::GetStatusResponse status;
    EXPECT_TRUE(stub_->GetStatus(&context, v1::GetStatusRequest(), &status).ok());
    return status.pool().image_count();
  }

  void Cancel(const std::string& name) {
    v1::CancelSaveRequest request;
    request.set_name(name);
    grpc::ClientContext context;
    v1::Save save;
    EXPECT_TRUE(stub_->CancelSave(&context, request, &save).ok());
  }

 private:
  std::shared_ptr<v1::CheckpointService::Stub> stub_;
  std::shared_ptr<Session> session_;
  v1::BeginLoadResponse load_;
};

std::unique_ptr<Connection> Connect(const TestDaemon& daemon,
                                    Transport transport = Transport::kAuto) {
  auto connection = Connection::Open(daemon.Options(transport));
  EXPECT_OK(connection);
  return connection.ok() ? *std::move(connection) : nullptr;
}

std::string Bytes(const CheckpointFile& file) {
  std::string bytes(file.size_bytes(), ' ');
  EXPECT_OK(file.Read(0, bytes.data(), bytes.size()));
  return bytes;
}

class TransportTest : public testing::TestWithParam<Transport> {
 protected:
  TestDaemon daemon_;
  std::unique_ptr<Connection> connection_ = Connect(daemon_, GetParam());
};

INSTANTIATE_TEST_SUITE_P(Each, TransportTest,
                         testing::Values(Transport::kSharedMemory, Transport::kGrpc),
                         [](const auto& each) {
                           return each.param == Transport::kGrpc ? "Grpc" : "SharedMemory";
                         });

TEST_P(TransportTest, KeepsTheSnapshotWhateverTheCallerDoesNext) {
  const State saved("A");
  State live = saved;
  ASSERT_OK_AND_ASSIGN(SaveHandle handle, connection_->Save(live.Spec(daemon_.Path("new/x.pt"))));
  live.large.assign(live.large.size(), 'Z');
  live.small.assign(live.small.size(), 'Z');
  EXPECT_EQ(handle.shared_memory, GetParam() == Transport::kSharedMemory);
  EXPECT_THAT(handle.name, HasSubstr("jobs/test/saves/"));
  ASSERT_OK(connection_->WaitDurable(handle.name));
  EXPECT_TRUE(saved.In(ReadFile(daemon_.Path("new/x.pt"))));
  EXPECT_THAT(ListDir(daemon_.Path("new")), ElementsAre("x.pt"));
}

TEST_P(TransportTest, LoadsWhatWasSavedBefore) {
  const std::string path = daemon_.Path("x.pt");
  for (const char* mark : {"A", "B", "C"}) {
    const State state(mark);
    ASSERT_OK(connection_->Save(state.Spec(path)));
    ASSERT_OK_AND_ASSIGN(CheckpointFile file, connection_->Load(path));
    EXPECT_TRUE(state.In(Bytes(file))) << mark;
    EXPECT_EQ(Bytes(file), ReadFile(path));
  }
  EXPECT_LE(RawClient(daemon_.address()).ImageCount(), 2) << "images are to be reused";
}

TEST_P(TransportTest, SavesStatesOfAnySizeInTurn) {
  for (size_t size : {1, 5 << 20, 100, 20 << 20, 0}) {
    const State state("A", size);
    const std::string path = daemon_.Path(std::to_string(size));
    ASSERT_OK_AND_ASSIGN(SaveHandle handle, connection_->Save(state.Spec(path)));
    ASSERT_OK(connection_->WaitDurable(handle.name));
    EXPECT_TRUE(state.In(ReadFile(path))) << size;
  }
}

TEST_P(TransportTest, RemovesInOrder) {
  const std::string path = daemon_.Path("x.pt");
  ASSERT_OK(connection_->Save(State("A").Spec(path)));
  ASSERT_OK(connection_->Remove(path, /*wait=*/true));
  EXPECT_THAT(daemon_.disk().List(), IsEmpty());
  EXPECT_OK(connection_->Remove(path, /*wait=*/true));
  EXPECT_THAT(connection_->Load(path),
              IsError(absl::StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND"));
  ASSERT_OK(connection_->Save(State("B").Spec(path)));
  ASSERT_OK(connection_->Flush());
  EXPECT_TRUE(State("B").In(ReadFile(path)));
}

TEST_P(TransportTest, SavesFromManyThreads) {
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this, i] {
      const State state(std::string(1, static_cast<char>('A' + i)));
      for (int round = 0; round < 5; ++round) {
        EXPECT_OK(connection_->Save(state.Spec(daemon_.Path(std::to_string(i)))));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_OK(connection_->Flush());
  for (int i = 0; i < 4; ++i) {
    const State state(std::string(1, static_cast<char>('A' + i)));
    EXPECT_TRUE(state.In(ReadFile(daemon_.Path(std::to_string(i))))) << i;
  }
}

TEST_P(TransportTest, SavesAgainAfterTheDaemonWasKilled) {
  ASSERT_OK(connection_->Save(State("A").Spec(daemon_.Path("x.pt"))));
  ASSERT_OK(connection_->Flush());
  daemon_.Kill();
  daemon_.Start();
  ASSERT_OK(connection_->Save(State("B").Spec(daemon_.Path("x.pt"))));
  ASSERT_OK(connection_->Flush());
  EXPECT_TRUE(State("B").In(ReadFile(daemon_.Path("x.pt"))));
}

class ConnectionTest : public testing::Test {
 protected:
  TestDaemon daemon_{{"--staging-budget", "64MiB"}};
  std::unique_ptr<Connection> connection_ = Connect(daemon_);
  RawClient raw_{daemon_.address()};
};

TEST(ConnectionWithoutDaemon, SaysWhereItLookedAndWhatToDo) {
  const TempDir dir;
  ConnectionOptions options;
  options.address = "unix:" + (dir / "none.sock");
  const auto connection = Connection::Open(options);
  EXPECT_TRUE(absl::IsUnavailable(connection.status()));
  EXPECT_THAT(connection, Says(options.address));
  EXPECT_THAT(connection, Says("start it with `ckptd`"));
}

TEST_F(ConnectionTest, TellsFailureOfAnAcceptedSaveOnce) {
  const std::string path = daemon_.Path("x.pt");
  ASSERT_OK(connection_->Save(State("A").Spec(path)));
  raw_.Hold(path);
  ASSERT_OK_AND_ASSIGN(SaveHandle stuck, connection_->Save(State("B").Spec(path)));
  raw_.Cancel(stuck.name);
  raw_.Release();
  ASSERT_TRUE(Eventually([&] { return raw_.Get(stuck.name).state() == v1::Save::CANCELLED; }));
  ASSERT_OK(connection_->Save(State("C").Spec(daemon_.Path("y.pt"))));
  EXPECT_THAT(connection_->TakeFailure(),
              IsError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST"));
  EXPECT_OK(connection_->TakeFailure());
  EXPECT_OK(connection_->Flush());
  EXPECT_TRUE(State("A").In(ReadFile(path)));
}

TEST_F(ConnectionTest, TellsByFlushAndByWaitDurable) {
  const std::string path = daemon_.Path("x.pt");
  ASSERT_OK(connection_->Save(State("A").Spec(path)));
  for (bool wait : {true, false}) {
    raw_.Hold(path);
    ASSERT_OK_AND_ASSIGN(SaveHandle stuck, connection_->Save(State("B").Spec(path)));
    raw_.Cancel(stuck.name);
    raw_.Release();
    const absl::Status told = wait ? connection_->WaitDurable(stuck.name) : connection_->Flush();
    EXPECT_THAT(told, IsError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST"));
    EXPECT_THAT(told, Says(stuck.name));
    EXPECT_OK(connection_->Flush());
  }
}

TEST_F(ConnectionTest, TellsWhatAKilledDaemonLost) {
  const std::string path = daemon_.Path("x.pt");
  ASSERT_OK(connection_->Save(State("A").Spec(path)));
  raw_.Hold(path);
  ASSERT_OK(connection_->Save(State("B").Spec(path)));
  daemon_.Kill();
  daemon_.Start();
  // The next daemon either has it or it is told: nothing is lost in silence.
  const absl::Status told = connection_->Flush();
  EXPECT_TRUE(State(told.ok() ? "B" : "A").In(ReadFile(path)));
  if (!told.ok()) EXPECT_THAT(told, IsError(absl::StatusCode::kNotFound, "SAVE_NOT_FOUND"));
}

TEST_F(ConnectionTest, WaitsForTheDaemonNoLongerThanToldTo) {
  ConnectionOptions options = daemon_.Options();
  options.reconnect_timeout = absl::Milliseconds(50);
  ASSERT_OK_AND_ASSIGN(auto connection, Connection::Open(options));
  daemon_.Kill();
  const auto save = connection->Save(State("A").Spec(daemon_.Path("x.pt")));
  EXPECT_TRUE(absl::IsUnavailable(save.status())) << save.status();
  EXPECT_THAT(save, Says(daemon_.address()));
}

TEST_F(ConnectionTest, GivesUpAtItsDeadline) {
  const std::string path = daemon_.Path("x.pt");
  ASSERT_OK(connection_->Save(State("A").Spec(path)));
  raw_.Hold(path);
  ASSERT_OK_AND_ASSIGN(SaveHandle stuck, connection_->Save(State("B").Spec(path)));
  const absl::Duration soon = absl::Milliseconds(50);
  EXPECT_TRUE(absl::IsDeadlineExceeded(connection_->WaitDurable(stuck.name, soon)));
  EXPECT_TRUE(absl::IsDeadlineExceeded(connection_->Flush(soon)));
  EXPECT_TRUE(absl::IsDeadlineExceeded(connection_->Load(path, soon).status()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(connection_->Remove(path, true, soon)));
  raw_.Release();
  EXPECT_OK(connection_->WaitDurable(stuck.name));
}

TEST_F(ConnectionTest, WaitsForStagingMemory) {
  const State large("A", 40 << 20);
  const std::string path = daemon_.Path("x.pt");
  ASSERT_OK(connection_->Save(State("0", 10).Spec(path)));
  raw_.Hold(path);
  ASSERT_OK(connection_->Save(large.Spec(path)));
  const auto refused = connection_->Save(large.Spec(path), absl::Milliseconds(100));
  EXPECT_TRUE(absl::IsDeadlineExceeded(refused.status())) << refused.status();
  EXPECT_THAT(refused, Says(path));
  std::thread release([this] { raw_.Release(); });
  EXPECT_OK(connection_->Save(State("B", 40 << 20).Spec(path)));
  release.join();
  ASSERT_OK(connection_->Flush());
  EXPECT_TRUE(State("B", 40 << 20).In(ReadFile(path)));
}

TEST_F(ConnectionTest, RefusesWhatCannotBeSaved) {
  const auto too_large = connection_->Save(State("A", 80 << 20).Spec(daemon_.Path("x.pt")));
  EXPECT_THAT(too_large, IsError(absl::StatusCode::kResourceExhausted, "EXCEEDS_BUDGET"));
  EXPECT_THAT(too_large, Says(daemon_.Path("x.pt")));
  EXPECT_THAT(connection_->Save(State("A").Spec(daemon_.disk().path())),
              IsError(absl::StatusCode::kFailedPrecondition, "PATH_IS_DIRECTORY"));
  EXPECT_THAT(connection_->Save(State("A").Spec("")),
              IsError(absl::StatusCode::kInvalidArgument, "INVALID_PATH"));
  SaveSpec spec = State("A").Spec(daemon_.Path("x.pt"));
  spec.backend = "none";
  EXPECT_THAT(connection_->Save(spec), IsError(absl::StatusCode::kNotFound, "BACKEND_NOT_FOUND"));
  EXPECT_OK(connection_->Save(State("A").Spec(daemon_.Path("x.pt"))));
}

TEST_F(ConnectionTest, MakesRelativePathsAbsolute) {
  const std::string before = std::filesystem::current_path();
  std::filesystem::current_path(daemon_.disk().path());
  EXPECT_OK(connection_->Save(State("A").Spec("rel.pt")));
  EXPECT_OK(connection_->Load("rel.pt"));
  std::filesystem::current_path(before);
  EXPECT_THAT(daemon_.disk().List(), ElementsAre("rel.pt"));
}

TEST_F(ConnectionTest, FollowsTheUmask) {
  {
    const ScopedUmask umask(0037);
    ASSERT_OK(connection_->Save(State("A").Spec(daemon_.Path("dir/x.pt"))));
  }
  ASSERT_OK(connection_->Flush());
  struct stat info = {};
  ASSERT_EQ(stat(daemon_.Path("dir/x.pt").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
  ASSERT_EQ(stat(daemon_.Path("dir").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0740u);
}

TEST_F(ConnectionTest, ReservesStagingMemory) {
  ASSERT_OK_AND_ASSIGN(int images, connection_->Reserve(20 << 20, 2, /*wait=*/true));
  EXPECT_EQ(images, 2);
  EXPECT_EQ(raw_.ImageCount(), 2);
  EXPECT_THAT(connection_->Reserve(80 << 20, 1, false),
              IsError(absl::StatusCode::kResourceExhausted, "EXCEEDS_BUDGET"));
}

TEST_F(ConnectionTest, TellsAForkedChildToOpenItsOwn) {
  const pid_t child = fork();
  if (child == 0) {
    const absl::Status status = connection_->Remove("/x", false);
    connection_.reset();  // Must not wait for threads that only the parent has.
    _exit(absl::IsFailedPrecondition(status) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_OK(connection_->Save(State("A").Spec(daemon_.Path("x.pt"))));
}

}  // namespace
}  // namespace ckptd
