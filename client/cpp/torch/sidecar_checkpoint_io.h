#ifndef CKPTD_CLIENT_CPP_TORCH_SIDECAR_CHECKPOINT_IO_H_
#define CKPTD_CLIENT_CPP_TORCH_SIDECAR_CHECKPOINT_IO_H_

#include <memory>
#include <string>
#include <utility>

#include "client/cpp/core/connection.h"
#include "client/cpp/torch/checkpoint_io.h"

namespace ckptd {

struct SidecarOptions {
  // Where the daemon is and how to talk to it.
  ConnectionOptions connection;

  // The daemon's backend. "torch" writes what torch.save writes; Load reads that only.
  std::string backend = "torch";

  // When Save returns: once the snapshot is the daemon's, or once it is durable at its path.
  enum class Wait { kAccepted, kDurable };
  Wait wait = Wait::kAccepted;

  // Whether Load checks the file first, which LibTorch does not: see VerifyCheckpoint.
  bool verify = true;
};

// A CheckpointIO that hands its checkpoints to ckptd: Save returns as soon as the bytes are
// snapshotted, and the daemon makes them durable. Thread-safe. One per process; a forked child
// creates its own.
class SidecarCheckpointIO : public CheckpointIO {
 public:
  // Connects. UNAVAILABLE where no daemon answers.
  static absl::StatusOr<std::unique_ptr<SidecarCheckpointIO>> Create(SidecarOptions options = {});

  // Where this save is accepted but an earlier one has failed meanwhile, that failure is returned,
  // once.
  absl::Status Save(const c10::IValue& checkpoint, const std::string& path) override;

  // Waits for what is pending on `path`. DATA_LOSS where the file is corrupt.
  absl::StatusOr<c10::IValue> Load(const std::string& path) override;

  // Returns when the removal has its place in the order: after everything that this job has saved
  // before is durable. Teardown tells if it failed.
  absl::Status Remove(const std::string& path) override;

  // The object remains usable.
  absl::Status Teardown() override;

  // For what CheckpointIO does not have: handles, deadlines, Reserve.
  Connection& connection() { return *connection_; }

 private:
  SidecarCheckpointIO(SidecarOptions options, std::unique_ptr<Connection> connection)
      : options_(std::move(options)), connection_(std::move(connection)) {}

  const SidecarOptions options_;
  const std::unique_ptr<Connection> connection_;
};

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_TORCH_SIDECAR_CHECKPOINT_IO_H_
