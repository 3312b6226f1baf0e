#include "server/os/give_way.h"

#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <cerrno>
#include <system_error>
#include <thread>

#include "server/os/crash_marker.h"

namespace ckptd {

void GiveWay(int niceness) {
  if (niceness == 0) return;
  // On Linux this is about the calling thread alone.
  if (setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + niceness) == 0) return;
  spdlog::warn("thread: cannot give way to other processes: {}",
               std::generic_category().message(errno));
}

absl::Status RunInThread(const std::function<absl::Status()>& work) {
  absl::Status status;
  std::thread thread([&, marked = CrashMarker::CurrentWork()] {
    const CrashMarker::Scope scope(marked);
    status = work();
  });
  thread.join();
  return status;
}

}  // namespace ckptd
