#ifndef CKPTD_SERVER_DAEMON_H_
#define CKPTD_SERVER_DAEMON_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/api/grpc_server.h"
#include "server/backend/backend.h"
#include "server/backend/plugin_loader.h"
#include "server/options.h"
#include "server/os/clock.h"
#include "server/os/crash_marker.h"
#include "server/os/failpoints.h"
#include "server/os/file_system.h"
#include "server/queue/save_queue.h"
#include "server/staging/pool.h"
#include "server/state_dir.h"

namespace ckptd {

// All parts of the daemon, put together. Serves from Start until Drain.
class Daemon {
 public:
  // Fails with one sentence for the user where something that `options` name cannot be had.
  // `failpoints` may be null, and must outlive the daemon.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const Options& options,
                                                       Failpoints* failpoints = nullptr);

  // Whether `options.idle_exit` has passed without client and work.
  bool IdleForTooLong() const;

  // Takes lent memory back that nobody holds any more, and gives free memory back to the system
  // once `options.idle_trim` has passed without client and work. To be called now and then.
  void LookAfterMemory();

  // Says NOT_SERVING, refuses new saves, waits for the pending ones for at most
  // `options.drain_timeout`, and shuts down. What is not durable then stays accepted for the next
  // daemon.
  void Drain();

 private:
  Daemon(const Options& options, Failpoints* failpoints)
      : options_(options), failpoints_(failpoints) {}
  absl::Status Build();
  absl::Status AddPlugins(const std::string& program);
  std::vector<v1::BackendStatus> DescribeBackends() const;
  std::vector<v1::RefusedPlugin> DescribeRefused() const;
  absl::Status TakeOver();
  absl::Status CountEarlierCrashes();
  void Pass(absl::string_view failpoint) const;

  const Options options_;
  Failpoints* const failpoints_;
  const SystemClock clock_;
  const std::unique_ptr<FileSystem> fs_ = NewPosixFileSystem();
  AllowedRoots allow_roots_;
  BackendRegistry backends_;
  std::unique_ptr<BackendHosts> hosts_;
  std::vector<RefusedPlugin> refused_plugins_;
  std::string journal_file_;
  OpenedJournal journal_;
  std::unique_ptr<CrashMarker> crash_marker_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<SaveQueue> queue_;
  std::unique_ptr<CheckpointServiceImpl> service_;
  std::unique_ptr<GrpcServer> server_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_DAEMON_H_
