// Who may connect, and what happens when who did is gone.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>

#include "server/api/acceptor.h"
#include "tests/server/api/api_fixture.h"
#include "tests/server/testing/child_process.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::IsEmpty;

class PeerTest : public ApiTest {};

mode_t ModeOf(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
  return info.st_mode & 07777;
}

TEST_F(PeerTest, TheSocketIsClosedToOthers) {
  EXPECT_EQ(ModeOf(Socket()), 0600u);
  EXPECT_EQ(ModeOf(run_ / "d"), 0700u);
  EXPECT_EQ(ModeOf(Socket() + ".lock"), 0600u);
}

TEST_F(PeerTest, AnotherUserIsToldThatThisIsNotForHim) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  // As an administrator might have opened it up by mistake.
  ASSERT_EQ(chmod(run_.path().c_str(), 0755), 0);
  ASSERT_EQ(chmod((run_ / "d").c_str(), 0755), 0);
  ASSERT_EQ(chmod(Socket().c_str(), 0666), 0);
  ChildProcess stranger({CKPTD_CLIENT_PROCESS, "call", Socket(), "65534"});
  EXPECT_EQ(stranger.ReadLine(), "7 PEER_NOT_ALLOWED");
  EXPECT_EQ(stranger.ReadLine(), "7 PEER_NOT_ALLOWED");
  EXPECT_EQ(stranger.Wait(), 0);

  ChildProcess friendly({CKPTD_CLIENT_PROCESS, "call", Socket(), std::to_string(geteuid())});
  EXPECT_EQ(friendly.ReadLine(), "0 ");
  EXPECT_EQ(friendly.ReadLine(), "5 SAVE_NOT_FOUND");
  EXPECT_EQ(friendly.Wait(), 0);
}

// The child that a trainer forked, for example a data loader, keeps the connection open.
TEST_F(PeerTest, AKilledClientLosesItsStagingSaveThoughItsChildLives) {
  ChildProcess client({CKPTD_CLIENT_PROCESS, "hold", Socket(), Name("s"), disk_ / "f"});
  const std::string line = client.ReadLine();
  ASSERT_NE(line, "");
  const auto child = static_cast<pid_t>(std::stoi(line));
  EXPECT_EQ(Get("s").state(), v1::Save::STAGING);
  EXPECT_EQ(queue_->SessionCount(), 2);

  client.Kill();
  const v1::Save save = WaitForEnd("s");
  EXPECT_EQ(save.state(), v1::Save::CANCELLED);
  EXPECT_THAT(ErrorOf(save), IsError(StatusCode::kCancelled, "CLIENT_DIED"));
  EXPECT_THAT(ErrorOf(save), Says("a client that is killed"));
  EXPECT_TRUE(Eventually([&] { return LeasedImages().empty(); }));
  EXPECT_TRUE(Eventually([&] { return queue_->SessionCount() == 1; }));
  EXPECT_THAT(disk_.List(), IsEmpty());
  EXPECT_EQ(kill(child, 0), 0) << "its child should have lived through this";
  kill(child, SIGKILL);
  EXPECT_TRUE(Answers());
}

TEST_F(PeerTest, ConnectionsThatComeAndGoLeaveNoDescriptors) {
  EXPECT_TRUE(Answers());
  const size_t before = CountOpenFiles();
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(Answers());
  EXPECT_TRUE(Eventually([&] { return CountOpenFiles() <= before; })) << CountOpenFiles();
}

// ---- Acceptor::Bind --------------------------------------------------------------------------

class AcceptorTest : public testing::Test {
 protected:
  std::string Socket() const { return dir_ / "run/ckptd.sock"; }

  TempDir dir_;
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
};

TEST_F(AcceptorTest, ASecondDaemonIsRefusedAndTheFirstKeepsItsSocket) {
  ASSERT_OK_AND_ASSIGN(auto first, Acceptor::Bind(&fs_, Socket()));
  struct stat before = {};
  ASSERT_EQ(lstat(Socket().c_str(), &before), 0);
  const auto second = Acceptor::Bind(&fs_, Socket());
  EXPECT_THAT(second, IsError(StatusCode::kFailedPrecondition, "ALREADY_RUNNING"));
  EXPECT_THAT(second, Says("--socket"));
  struct stat after = {};
  ASSERT_EQ(lstat(Socket().c_str(), &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
  first.reset();
  EXPECT_OK(Acceptor::Bind(&fs_, Socket()));
}

TEST_F(AcceptorTest, ReplacesTheSocketOfADaemonThatWasKilled) {
  std::filesystem::create_directory(dir_ / "run");
  ASSERT_EQ(chmod((dir_ / "run").c_str(), 0700), 0);
  WriteFile(Socket(), "left");
  WriteFile(Socket() + ".lock", "");
  ASSERT_OK_AND_ASSIGN(const auto acceptor, Acceptor::Bind(&fs_, Socket()));
  EXPECT_TRUE(std::filesystem::is_socket(Socket()));
}

TEST_F(AcceptorTest, RefusesPathsThatCannotBe) {
  for (const std::string& path : {std::string(), std::string("ckptd.sock"), std::string("./x"),
                                  "/" + std::string(107, 'x')}) {
    EXPECT_THAT(Acceptor::Bind(&fs_, path), IsError(StatusCode::kInvalidArgument, "INVALID_PATH"))
        << path;
  }
  EXPECT_THAT(Acceptor::Bind(&fs_, "/" + std::string(107, 'x')), Says("107 bytes"));
}

TEST_F(AcceptorTest, RefusesAFolderThatOthersMayWriteTo) {
  std::filesystem::create_directory(dir_ / "run");
  ASSERT_EQ(chmod((dir_ / "run").c_str(), 0777), 0);
  EXPECT_THAT(Acceptor::Bind(&fs_, Socket()),
              IsError(StatusCode::kPermissionDenied, "PERMISSION_DENIED"));
}

TEST_F(AcceptorTest, ASymlinkAsLockIsNotFollowed) {
  std::filesystem::create_directory(dir_ / "run");
  ASSERT_EQ(chmod((dir_ / "run").c_str(), 0700), 0);
  std::filesystem::create_symlink(dir_ / "elsewhere", Socket() + ".lock");
  EXPECT_FALSE(Acceptor::Bind(&fs_, Socket()).ok());
  EXPECT_FALSE(std::filesystem::exists(dir_ / "elsewhere"));
}

TEST_F(AcceptorTest, EveryFaultIsAnErrorAndLeavesTheLockFree) {
  for (int n = 1; n <= 20; ++n) {
    fs_.Reset();
    fs_.FailNth(n, EIO);
    const auto acceptor = Acceptor::Bind(&fs_, Socket());
    const bool reached = static_cast<int>(fs_.Calls().size()) >= n;
    EXPECT_EQ(acceptor.ok(), !reached) << n << Describe(fs_.Calls());
    if (!reached) return;
  }
  FAIL() << "more calls than thought";
}

}  // namespace
}  // namespace ckptd
