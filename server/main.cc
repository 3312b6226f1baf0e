#include <malloc.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "server/daemon.h"
#include "server/options.h"
#include "server/os/crash_marker.h"
#include "server/os/memory_guard.h"
#include "server/plugin_host/plugin_host.h"
#include "server/plugin_host/probe.h"

namespace {

// For what is left to do once the pending saves are done or given up.
constexpr absl::Duration kEndPatience = absl::Seconds(10);

int Fail(const absl::Status& status) {
  spdlog::shutdown();
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}

// What hangs in a dead file system must not keep the process: nothing is lost by its end, as the
// next start takes over from the journal.
void EndInAnyCase(absl::Duration drain_timeout) {
  std::thread([after = drain_timeout + kEndPatience] {
    absl::SleepFor(after);
    spdlog::warn(
        "something does not end, as a call of a file system that hangs; ending without it");
    std::_Exit(0);
  }).detach();
}

// Connections and images take descriptors; nothing here uses select, for which the soft limit is
// kept low. Where it cannot be raised the daemon lives with what it has.
void RaiseFileLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

int main(int argc, char** argv) {
  // How the daemon starts itself where foreign code is to run; no part of the command line.
  if (argc == 3 && std::string(argv[1]) == "--plugin-probe") return ckptd::ProbePlugin(argv[2]);
  if (argc == 3 && std::string(argv[1]) == "--plugin-configure") {
    return ckptd::ConfigurePlugin(argv[2]);
  }
  if (argc == 3 && std::string(argv[1]) == "--plugin-host") return ckptd::RunPluginHost(argv[2]);
  const ckptd::CommandLine command_line = ckptd::ParseCommandLine(argc, argv);
  if (command_line.exit) return command_line.exit_code;

  // Modes are given explicitly wherever a file is made.
  umask(0);
  // gRPC allocates a fresh buffer for each message of a stream: without this glibc would map and
  // unmap it each time, and the kernel clear its pages.
  mallopt(M_MMAP_THRESHOLD, 256 << 20);  // NOLINT(concurrency-mt-unsafe): no thread yet
  mallopt(M_TRIM_THRESHOLD, 256 << 20);  // NOLINT(concurrency-mt-unsafe)
  // With an arena for each of gRPC's threads, what one has freed the others do not find: 10 000
  // saves of history took 80 MiB and grew, and take 32 MiB so.
  mallopt(M_ARENA_MAX, 1);  // NOLINT(concurrency-mt-unsafe)
  // In one thread, by sigtimedwait; blocked in all others, which inherit the mask.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  RaiseFileLimit();

  spdlog::set_default_logger(spdlog::stderr_color_mt("ckptd"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
  spdlog::set_level(spdlog::level::from_str(command_line.options.log_level));

  ckptd::Failpoints failpoints;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): no thread yet
  const char* failpoint = std::getenv("CKPTD_FAILPOINT");
  if (absl::Status status = failpoints.Set(failpoint == nullptr ? "" : failpoint); !status.ok()) {
    return Fail(status);
  }
  if (absl::Status status = ckptd::InstallMemoryGuard(); !status.ok()) return Fail(status);
  if (absl::Status status = ckptd::CrashMarker::InstallHandlers(); !status.ok()) {
    return Fail(status);
  }
  auto daemon = ckptd::Daemon::Start(command_line.options, &failpoints);
  if (!daemon.ok()) return Fail(daemon.status());
  const timespec second = {1, 0};
  while (sigtimedwait(&signals, nullptr, &second) < 0 && !(*daemon)->IdleForTooLong()) {
    (*daemon)->LookAfterMemory();
  }
  EndInAnyCase(command_line.options.drain_timeout);
  (*daemon)->Drain();
  daemon->reset();
  spdlog::shutdown();
  // gRPC takes up to 10 s to end its threads, and has nothing to give back.
  std::_Exit(0);
}
