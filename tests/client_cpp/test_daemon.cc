#include "tests/client_cpp/test_daemon.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <utility>

#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "tests/server/testing/wait.h"

namespace ckptd {
namespace {

// $CKPTD_BUILD_DIR/bin/ckptd, else the one of this build, else that of build/.
std::string Binary() {
  // NOLINTNEXTLINE(concurrency-mt-unsafe): tests do not change the environment.
  const char* build = std::getenv("CKPTD_BUILD_DIR");
  return build != nullptr ? std::string(build) + "/bin/ckptd" : CKPTD_TEST_DAEMON;
}

[[noreturn]] void Exec(const std::string& binary, std::vector<std::string> arguments) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  execv(binary.c_str(), argv.data());
  _exit(127);
}

}  // namespace

TestDaemon::TestDaemon(std::vector<std::string> flags) : flags_(std::move(flags)) { Start(); }

TestDaemon::~TestDaemon() { Kill(); }

void TestDaemon::Start() {
  const std::string binary = Binary();
  ASSERT_EQ(access(binary.c_str(), X_OK), 0)
      << binary << " is missing: build it, or set CKPTD_BUILD_DIR to where bin/ckptd is";
  std::vector<std::string> arguments = {binary,         "--socket",        run_ / "ckptd.sock",
                                        "--pool-dir",   memory_ / "pool",  "--state-dir",
                                        run_ / "state", "--retry-timeout", "100ms"};
  arguments.insert(arguments.end(), flags_.begin(), flags_.end());
  pid_ = fork();
  if (pid_ == 0) Exec(binary, arguments);
  grpc::ChannelArguments hurry;
  hurry.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  hurry.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
  hurry.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 20);
  hurry.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  auto channel = grpc::CreateCustomChannel(address(), grpc::InsecureChannelCredentials(), hurry);
  ASSERT_TRUE(channel->WaitForConnected(absl::ToChronoTime(Soon())))
      << "ckptd did not come up at " << address();
}

void TestDaemon::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

ConnectionOptions TestDaemon::Options(Transport transport) const {
  ConnectionOptions options;
  options.address = address();
  options.job = "test";
  options.transport = transport;
  options.reconnect_timeout = kPatience;
  options.timeout = kPatience;
  return options;
}

}  // namespace ckptd
