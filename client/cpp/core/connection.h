#ifndef CKPTD_CLIENT_CPP_CORE_CONNECTION_H_
#define CKPTD_CLIENT_CPP_CORE_CONNECTION_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cpp/core/checkpoint_file.h"

namespace ckptd {

// How the bytes of a save reach the daemon, and those of a load come back.
enum class Transport {
  kAuto,          // Shared memory where it is shared, else gRPC.
  kSharedMemory,  // Shared memory, or an error that says why not.
  kGrpc,          // The gRPC stream.
};

struct ConnectionOptions {
  // "unix:PATH" or "HOST:PORT". Empty: $CKPTD_ADDRESS, else this user's own socket.
  std::string address;

  // Groups saves: a removal waits for what its job has saved before. What a job id may not hold
  // ([a-zA-Z0-9._-], 63 characters) becomes "-". Empty: $CKPTD_JOB, else the launcher's id
  // ($TORCHELASTIC_RUN_ID, $SLURM_JOB_ID), else one per process.
  std::string job;

  // How people see this process in ckptctl. Empty: "host:pid program".
  std::string client;

  Transport transport = Transport::kAuto;

  // How long to wait for a daemon that has gone away, or is ending, to come back, within the
  // deadline of the call. One that is not there to begin with is an error at once.
  absl::Duration reconnect_timeout = absl::Minutes(10);

  // Deadline of each call that is not given its own. Saves wait that long for staging memory and
  // loads for what is pending on their path.
  absl::Duration timeout = absl::Minutes(30);

  // Threads that copy into shared memory, the calling one included. 0: as many as there are
  // processors for this process, at most 4.
  int copy_threads = 0;
};

// A tensor to be saved: for the torch backend one storage, which several tensors may share.
struct TensorView {
  std::string name;            // Unique within the save; for the torch backend "0", "1", ...
  std::string dtype;           // As torch names it, "float32"; may be empty for "torch".
  std::vector<int64_t> shape;  // May be empty for "torch".
  // The caller's; read until Save returns. May be null where size_bytes is 0.
  const void* data = nullptr;
  size_t size_bytes = 0;
};

// What to save where.
struct SaveSpec {
  // Made absolute against this process's working directory.
  std::string path;
  std::string backend = "torch";
  // What refers to the tensors: for the torch backend data.pkl, whose bytes the daemon never
  // looks into.
  std::string object;
  // In the order in which `object` names them.
  std::vector<TensorView> tensors;
  // For the backend.
  std::map<std::string, std::string> options;
};

// A save that the daemon has accepted.
struct SaveHandle {
  // jobs/{job}/saves/{save}: for WaitDurable and ckptctl.
  std::string name;
  // Whether the bytes went through shared memory.
  bool shared_memory = false;
};

// A process's connection to its daemon: one gRPC channel and one session, which tells the daemon
// when this process has died. Knows names, sizes and raw memory; no LibTorch.
//
// Thread-safe. A session that is lost, as by a restart of the daemon, is opened again by the next
// call. Not for use in a forked child: every call there fails with FAILED_PRECONDITION, and the
// child opens a connection of its own.
//
// Errors of the daemon keep their reason: ReasonOf in proto/status/error_info.h.
class Connection {
 public:
  // How long a call may take; ConnectionOptions::timeout where there is none.
  using Timeout = std::optional<absl::Duration>;

  // UNAVAILABLE where no daemon answers.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(ConnectionOptions options);

  // Ends the session. Accepted saves go on.
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Hands a snapshot to the daemon. When it returns OK, the snapshot is complete and the caller
  // may change or free everything; the file becomes durable later. On an error nothing is saved.
  // Waits for staging memory for at most `timeout`.
  absl::StatusOr<SaveHandle> Save(const SaveSpec& spec, Timeout timeout = std::nullopt);

  // Waits until a save is durable. Otherwise the reason why it never will be, or
  // DEADLINE_EXCEEDED.
  absl::Status WaitDurable(const std::string& save_name, Timeout timeout = std::nullopt);

  // The first failure of saves accepted earlier that this connection has learned of since it was
  // last asked; its message counts the others. OK if none.
  absl::Status TakeFailure();

  // The checkpoint at `path`, after everything accepted there before has taken effect.
  // NOT_FOUND where there is none then.
  absl::StatusOr<CheckpointFile> Load(const std::string& path, Timeout timeout = std::nullopt);

  // Removes the file or folder at `path` once everything that this job has saved before is
  // durable. With `wait` it returns when it is gone, otherwise when its place in the order is
  // fixed. A missing path is no error.
  absl::Status Remove(const std::string& path, bool wait, Timeout timeout = std::nullopt);

  // Waits until what this job has accepted has ended, and returns TakeFailure(), with the
  // removals that have failed.
  absl::Status Flush(Timeout timeout = std::nullopt);

  // Has the daemon fault in staging memory for `image_count` checkpoints of `image_bytes`, so that
  // the first save finds it warm. With `wait` it returns when that is done. Returns how many such
  // images fit.
  absl::StatusOr<int> Reserve(int64_t image_bytes, int image_count, bool wait,
                              Timeout timeout = std::nullopt);

  const ConnectionOptions& options() const;

 private:
  class Impl;
  explicit Connection(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_CONNECTION_H_
