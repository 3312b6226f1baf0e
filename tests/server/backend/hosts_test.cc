// Host processes that are started here: real ones, of the shell.

#include "server/backend/hosts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/server/testing/fake_host_process.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"
#include "tests/server/testing/wait.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class HostsTest : public testing::Test {
 protected:
  std::string AddShell(const std::string& script) {
    v1::HostSpec spec;
    spec.set_label("Shell");
    for (const char* word : {"/bin/sh", "-c", script.c_str()}) spec.add_argv(word);
    spec.set_directory(dir_.path());
    spec.set_umask(027);
    (*spec.mutable_environment())["MINE"] = "1";
    auto id = hosts_.Add(spec);
    EXPECT_OK(id);
    EXPECT_TRUE(hosts_.IsStartable(*id));
    return *id;
  }
  absl::Status Run(const std::string& id) {
    v1::HostTask task;
    task.set_task_id("t");
    task.mutable_remove();
    return hosts_.Run(id, std::move(task), cancelled_, {});
  }

  TempDir dir_;
  std::atomic<bool> cancelled_{false};
  BackendHosts hosts_{BackendHosts::Options{"unix:/sock", absl::Seconds(20), absl::Seconds(1)}};
};

TEST_F(HostsTest, ProcessEndsBeforeItAttaches) {
  const absl::Status status = Run(AddShell("exit 3"));
  EXPECT_THAT(status, IsError(StatusCode::kUnavailable, "HOST_UNAVAILABLE"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("exit code 3"));
}

TEST_F(HostsTest, ProcessHasItsFolderEnvironmentUmaskAndNothingElse) {
  Run(AddShell(
          "{ pwd; umask; env | grep -E '^(MINE|CKPTD_|HOME)' | sort; ls /proc/self/fd | wc -l; }"
          " > out; exit 1"))
      .IgnoreError();
  std::ifstream file(dir_.path() + "/out");
  const std::string out((std::istreambuf_iterator<char>(file)), {});
  EXPECT_THAT(out, testing::StartsWith(dir_.path() + "\n0027\nCKPTD_ADDRESS=unix:/sock\n"
                                                     "CKPTD_HOST_ID="));
  // Those of ls: three, the folder itself, and the shell's pipe is its standard output.
  EXPECT_THAT(out, testing::EndsWith("MINE=1\n4\n"));
}

TEST_F(HostsTest, ProgramThatIsNoneIsNotStartable) {
  v1::HostSpec spec;
  spec.add_argv("/bin/sh");
  spec.set_device(1);
  spec.set_inode(2);
  EXPECT_FALSE(hosts_.IsStartable(hosts_.Add(spec).value()));
  spec.set_argv(0, dir_.path());
  EXPECT_FALSE(hosts_.IsStartable(hosts_.Add(spec).value()));
}

TEST_F(HostsTest, ProcessThatDiesFailsItsTaskAndSaysHow) {
  const std::string id = AddShell("echo > started; read line; kill -9 $$");
  FakeHostProcess fake(&hosts_);
  absl::Status status;
  std::thread task([&] { status = Run(id); });
  EXPECT_TRUE(Eventually([&] { return access((dir_.path() + "/started").c_str(), F_OK) == 0; }));
  fake.Attach(id);
  EXPECT_TRUE(fake.Next().has_setup());
  EXPECT_TRUE(fake.Next().has_remove());
  fake.Detach();
  hosts_.Remove(id);  // ends its standard input
  task.join();
  EXPECT_THAT(status, IsError(StatusCode::kAborted, "HOST_DIED"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("signal 9"));
}

TEST_F(HostsTest, ProcessThatIsDyingIsNoHostForTheNextTask) {
  const std::string id = AddShell("echo >> started; read line");
  const auto starts = [&] {
    std::ifstream file(dir_.path() + "/started");
    return std::count(std::istreambuf_iterator<char>(file), {}, '\n');
  };
  const auto serve_one = [&](FakeHostProcess* fake) {
    fake->Attach(id);
    EXPECT_TRUE(fake->Next().has_setup());
    fake->Done(fake->Next());
  };
  FakeHostProcess first(&hosts_);
  std::thread first_task([&] { EXPECT_OK(Run(id)); });
  EXPECT_TRUE(Eventually([&] { return starts() == 1; }));
  serve_one(&first);
  first_task.join();
  // Its stream has ended; its end is seen later, and here not before it is killed.
  first.Detach();
  FakeHostProcess second(&hosts_);
  std::thread second_task([&] { EXPECT_OK(Run(id)); });
  EXPECT_TRUE(Eventually([&] { return starts() == 2; }));
  serve_one(&second);
  second_task.join();
}

TEST_F(HostsTest, CancelEndsTheWaitForAHost) {
  const std::string id = AddShell("echo > started; read line");
  absl::Status status;
  std::thread task([&] { status = Run(id); });
  EXPECT_TRUE(Eventually([&] { return access((dir_.path() + "/started").c_str(), F_OK) == 0; }));
  cancelled_ = true;
  hosts_.Wake();
  task.join();
  EXPECT_THAT(status, IsError(StatusCode::kCancelled, "CANCELLED_BY_REQUEST"));
}

TEST_F(HostsTest, SecondOfTheSameIsNotNeeded) {
  const std::string id = AddShell("exit 0");
  FakeHostProcess first(&hosts_);
  first.Attach(id);
  FakeHostProcess second(&hosts_);
  second.Attach(id);
  EXPECT_TRUE(second.WaitUntilEnded());
  EXPECT_OK(second.end());
  FakeHostProcess stranger(&hosts_);
  stranger.Attach("unknown");
  EXPECT_THAT(stranger.end(), IsError(StatusCode::kNotFound, "HOST_NOT_FOUND"));
}

}  // namespace
}  // namespace ckptd
