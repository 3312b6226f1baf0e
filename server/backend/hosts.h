#ifndef CKPTD_SERVER_BACKEND_HOSTS_H_
#define CKPTD_SERVER_BACKEND_HOSTS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.pb.h"
#include "server/os/process.h"

namespace ckptd {

// The way to a host process that has attached itself. Its methods are called under the lock of
// BackendHosts: they must be quick, and must not call that.
class HostConnection {
 public:
  virtual ~HostConnection() = default;
  virtual void Send(v1::HostTask task) = 0;
  // Nothing is sent after it.
  virtual void End(const absl::Status& status) = 0;
};

// The processes in which backends run that are not the daemon's own code: what happens to one is
// the error of the task that it had, and of nothing else. Starts them when there is work for them,
// and again when they have died. Thread-safe.
class BackendHosts {
 public:
  struct Options {
    // What hosts reach the daemon by.
    std::string address;
    // How long a task waits until its host, or another one, has attached itself.
    absl::Duration attach_patience = absl::Seconds(60);
    // How long a task that is cancelled may take to end before its host is killed; the same for a
    // host that is not needed any more.
    absl::Duration end_patience = absl::Seconds(10);
  };

  // What a task calls back; both by other threads, and not after Run has returned.
  struct Calls {
    std::function<void(int64_t persisted_bytes)> on_progress;
    std::function<v1::HostTask::Allocated(const v1::HostReport::Allocate&)> allocate;
    std::function<void(const v1::HostReport::Found&)> found;
  };

  explicit BackendHosts(Options options) : options_(std::move(options)) {}
  // Calls Stop.
  ~BackendHosts();
  BackendHosts(const BackendHosts&) = delete;
  BackendHosts& operator=(const BackendHosts&) = delete;

  // ---- Hosts

  // The id of the host that `spec` describes; the same for the same one.
  // INVALID_ARGUMENT (INVALID_REQUEST) for one that cannot be.
  absl::StatusOr<std::string> Add(const v1::HostSpec& spec);
  // Adds one as an earlier daemon knew it.
  void Restore(const std::string& id, const v1::HostSpec& spec);
  // NOT_FOUND (HOST_NOT_FOUND).
  absl::Status Check(const std::string& id) const;
  // Whether it is started here.
  bool IsStartable(const std::string& id) const;
  // Forgets a host; its process ends.
  void Remove(const std::string& id);

  // Gives a task to a host, when it has done those before, and waits for its end. Its `task_id`
  // must be no other's. The host's own error (BACKEND_FAILED where it gives no reason), HOST_DIED,
  // HOST_UNAVAILABLE, or CANCELLED (CANCELLED_BY_REQUEST) soon after `cancelled` is set and Wake is
  // called.
  absl::Status Run(const std::string& id, v1::HostTask task, const std::atomic<bool>& cancelled,
                   const Calls& calls);
  // Has tasks look whether they are cancelled.
  void Wake();

  // Ends all hosts, and waits until those that were started here are gone. What still runs fails.
  // Idempotent.
  void Stop();

  // ---- The host processes' side

  // From then on, and until Detach, `connection` belongs to the host. Where the host has another
  // one, or is not needed any more, it is ended instead, and belongs to nobody.
  void Attach(const v1::HostReport::Attach& attach, HostConnection* connection);
  void Report(HostConnection* connection, const v1::HostReport& report);
  // Also of one that is not attached.
  void Detach(HostConnection* connection);

 private:
  // What a caller of Run waits for.
  struct Task {
    std::string id;
    const Calls* calls = nullptr;
    bool sent = false;
    bool lost = false;
    std::optional<absl::Status> result;
    // Calls of `calls` that are under way.
    int calling = 0;
  };
  struct Host {
    std::string id;
    v1::HostSpec spec;
    bool startable = false;
    HostConnection* connection = nullptr;
    Task* task = nullptr;
    // Of the process that was started last; null where none is running.
    std::shared_ptr<Process> process;
    // It has attached itself. Without a connection it is then on its way out: it never does so
    // twice.
    bool had_attached = false;
    std::string end;
    std::thread reaper;
  };
  using HostPtr = std::shared_ptr<Host>;

  absl::StatusOr<HostPtr> Find(const std::string& id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  HostPtr Put(const std::string& id, const v1::HostSpec& spec) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status StartProcess(const HostPtr& host) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Reap(const HostPtr& host, const std::shared_ptr<Process>& process);
  absl::Status AwaitAttached(const HostPtr& host, const std::atomic<bool>& cancelled)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status AwaitDone(const HostPtr& host, Task* task, const std::atomic<bool>& cancelled)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Died(const HostPtr& host) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndHost(const HostPtr& host, const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void JoinEnded() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReportDone(const Host& host, const v1::HostReport::Done& done)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  mutable absl::Mutex mu_;
  std::map<std::string, HostPtr> hosts_ ABSL_GUARDED_BY(mu_);
  // Removed, and their process may not have ended.
  std::vector<HostPtr> ending_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_BACKEND_HOSTS_H_
