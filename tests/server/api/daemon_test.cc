// The daemon as a whole: all parts by its options.

#include "server/daemon.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/server/api/api_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class DaemonTest : public testing::Test {
 protected:
  Options MakeOptions() const {
    Options options;
    options.socket = disk_ / "run/ckptd.sock";
    options.pool_dir = shm_ / "pool";
    options.state_dir = disk_ / "state";
    options.staging_budget_bytes = 8 << 20;
    return options;
  }
  static std::unique_ptr<Stub> Connect(const Options& options) {
    return v1::CheckpointService::NewStub(
        grpc::CreateChannel("unix:" + options.socket, grpc::InsecureChannelCredentials()));
  }

  ScopedUmask umask_{0};
  TempDir disk_;
  TempDir shm_{TempDir::Place::kMemory};
};

TEST_F(DaemonTest, ServesAndDrains) {
  const Options options = MakeOptions();
  ASSERT_OK_AND_ASSIGN(auto daemon, Daemon::Start(options));
  const auto stub = Connect(options);
  ASSERT_OK_AND_ASSIGN(const auto status,
                       Call(stub.get(), &Stub::GetStatus, v1::GetStatusRequest()));
  EXPECT_EQ(status.version(), CKPTD_VERSION);
  EXPECT_THAT(status.backends(), ElementsAre("python", "safetensors", "torch", "xla", "xla-xser"));
  EXPECT_EQ(status.pool().budget_bytes(), 8 << 20);

  ClientSession session(stub.get());
  v1::BeginSaveRequest begin;
  begin.set_session_id(session.id());
  begin.set_name("jobs/j/saves/s");
  begin.set_path(disk_ / "a.ckpt");
  begin.set_backend("torch");
  begin.set_object_bytes(10);
  ASSERT_OK(Call(stub.get(), &Stub::BeginSave, begin));
  v1::CommitSaveRequest commit;
  commit.set_name(begin.name());
  ASSERT_OK(Call(stub.get(), &Stub::CommitSave, commit));

  daemon->Drain();
  EXPECT_THAT(session.WaitForEnd(), IsError(StatusCode::kUnavailable, "DRAINING"));
  EXPECT_THAT(ReadFile(disk_ / "a.ckpt"), HasSubstr("archive/data.pkl"));
  daemon.reset();
  EXPECT_THAT(ListDir(disk_ / "run"), ElementsAre("ckptd.sock.lock"));
  EXPECT_THAT(ListDir(shm_ / "pool"), IsEmpty());
}

TEST_F(DaemonTest, TwoDaemonsShareNeitherSocketNorPool) {
  const Options options = MakeOptions();
  ASSERT_OK_AND_ASSIGN(const auto first, Daemon::Start(options));
  EXPECT_THAT(Daemon::Start(options), IsError(StatusCode::kFailedPrecondition, "ALREADY_RUNNING"));
  Options other_socket = options;
  other_socket.socket = disk_ / "other/ckptd.sock";
  const auto second = Daemon::Start(other_socket);
  EXPECT_THAT(second, IsError(StatusCode::kFailedPrecondition, "ALREADY_RUNNING"));
  EXPECT_THAT(second, Says("--pool-dir"));
  EXPECT_OK(Call(Connect(options).get(), &Stub::GetStatus, v1::GetStatusRequest()));
  Options other = other_socket;
  other.pool_dir = shm_ / "other";
  EXPECT_OK(Daemon::Start(other)) << "each pool has a journal of its own";
}

TEST_F(DaemonTest, TheDefaultBudgetIsNotMoreThanAQuarterOfTheTmpfs) {
  Options options = MakeOptions();
  options.staging_budget_bytes = 0;
  ASSERT_OK_AND_ASSIGN(const auto daemon, Daemon::Start(options));
  ASSERT_OK_AND_ASSIGN(const auto status,
                       Call(Connect(options).get(), &Stub::GetStatus, v1::GetStatusRequest()));
  const auto space = std::filesystem::space(options.pool_dir);
  EXPECT_GT(status.pool().budget_bytes(), 0);
  EXPECT_LE(static_cast<uint64_t>(status.pool().budget_bytes()), space.capacity / 4);
}

TEST_F(DaemonTest, WorksOnlyBeneathAllowRoot) {
  std::filesystem::create_directory(disk_ / "root");
  std::filesystem::create_directory(disk_ / "outside");
  std::filesystem::create_symlink("../outside", disk_ / "root/link");
  WriteFile(disk_ / "outside/f", "kept");
  Options options = MakeOptions();
  options.allow_roots = {disk_ / "root"};
  ASSERT_OK_AND_ASSIGN(auto daemon, Daemon::Start(options));
  const auto stub = Connect(options);
  ClientSession session(stub.get());
  const auto not_allowed = IsError(StatusCode::kPermissionDenied, "PATH_NOT_ALLOWED");
  v1::BeginSaveRequest begin;
  begin.set_session_id(session.id());
  begin.set_name("jobs/j/saves/s");
  begin.set_backend("torch");
  begin.set_object_bytes(10);
  v1::BeginLoadRequest load;
  load.set_session_id(session.id());
  v1::RemoveCheckpointRequest remove;
  remove.set_parent("jobs/j");
  remove.set_wait(true);
  for (const char* path : {"outside/f", "root/../outside/f", "root/link/f"}) {
    SCOPED_TRACE(path);
    begin.set_path(disk_ / path);
    load.set_path(disk_ / path);
    remove.set_path(disk_ / path);
    EXPECT_THAT(Call(stub.get(), &Stub::BeginSave, begin), not_allowed);
    EXPECT_THAT(Call(stub.get(), &Stub::BeginLoad, load), not_allowed);
    EXPECT_THAT(Call(stub.get(), &Stub::RemoveCheckpoint, remove), not_allowed);
  }
  EXPECT_EQ(ReadFile(disk_ / "outside/f"), "kept");

  begin.set_path(disk_ / "root/new/a.ckpt");
  ASSERT_OK(Call(stub.get(), &Stub::BeginSave, begin));
  v1::CommitSaveRequest commit;
  commit.set_name(begin.name());
  ASSERT_OK(Call(stub.get(), &Stub::CommitSave, commit));
  load.set_path(begin.path());
  EXPECT_OK(Call(stub.get(), &Stub::BeginLoad, load));
  daemon->Drain();
  EXPECT_THAT(ReadFile(disk_ / "root/new/a.ckpt"), HasSubstr("archive/data.pkl"));
}

TEST_F(DaemonTest, IsIdleForTooLongOnlyWhereToldTo) {
  ASSERT_OK_AND_ASSIGN(auto never, Daemon::Start(MakeOptions()));
  EXPECT_FALSE(never->IdleForTooLong());
  never.reset();
  Options options = MakeOptions();
  options.idle_exit = absl::Nanoseconds(1);
  ASSERT_OK_AND_ASSIGN(const auto daemon, Daemon::Start(options));
  const auto stub = Connect(options);
  {
    ClientSession session(stub.get());
    EXPECT_FALSE(daemon->IdleForTooLong());
  }
  EXPECT_TRUE(Eventually([&] { return daemon->IdleForTooLong(); }));
}

TEST_F(DaemonTest, GivesFreeMemoryBackOnlyWithoutClients) {
  Options options = MakeOptions();
  options.idle_trim = absl::Nanoseconds(1);
  ASSERT_OK_AND_ASSIGN(const auto daemon, Daemon::Start(options));
  const auto stub = Connect(options);
  const auto used_bytes = [&] {
    return Call(stub.get(), &Stub::GetStatus, v1::GetStatusRequest())->pool().used_bytes();
  };
  {
    ClientSession session(stub.get());
    v1::ReserveRequest reserve;
    reserve.set_session_id(session.id());
    reserve.set_image_bytes(1 << 20);
    reserve.set_wait(true);
    ASSERT_OK(Call(stub.get(), &Stub::Reserve, reserve));
    daemon->LookAfterMemory();
    EXPECT_GE(used_bytes(), 1 << 20);
  }
  EXPECT_TRUE(Eventually([&] {
    daemon->LookAfterMemory();
    return used_bytes() == 0;
  }));
}

TEST_F(DaemonTest, SaysWhyItCannotStart) {
  Options options = MakeOptions();
  options.socket = "relative";
  EXPECT_THAT(Daemon::Start(options), IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
  options = MakeOptions();
  options.allow_roots = {disk_ / "none"};
  const auto no_root = Daemon::Start(options);
  EXPECT_THAT(no_root, Says("--allow-root " + (disk_ / "none")));
  options = MakeOptions();
  WriteFile(shm_ / "pool", "a file");
  EXPECT_THAT(Daemon::Start(options), IsError(StatusCode::kFailedPrecondition, "NOT_A_DIRECTORY"));
}

}  // namespace
}  // namespace ckptd
