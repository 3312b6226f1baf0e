#include "client/cpp/torch/sidecar_checkpoint_io.h"

#include "client/cpp/core/verify.h"
#include "client/cpp/torch/capture.h"
#include "client/cpp/torch/restore.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {

absl::StatusOr<std::unique_ptr<SidecarCheckpointIO>> SidecarCheckpointIO::Create(
    SidecarOptions options) {
  CKPTD_ASSIGN_OR_RETURN(std::unique_ptr<Connection> connection,
                         Connection::Open(options.connection));
  return std::unique_ptr<SidecarCheckpointIO>(
      new SidecarCheckpointIO(std::move(options), std::move(connection)));
}

absl::Status SidecarCheckpointIO::Save(const c10::IValue& checkpoint, const std::string& path) {
  CKPTD_ASSIGN_OR_RETURN(Capture capture, CaptureObject(checkpoint));
  SaveSpec spec;
  spec.path = path;
  spec.backend = options_.backend;
  spec.object = std::move(capture.object);
  spec.tensors = std::move(capture.tensors);
  CKPTD_ASSIGN_OR_RETURN(SaveHandle handle, connection_->Save(spec));
  if (options_.wait == SidecarOptions::Wait::kDurable) {
    CKPTD_RETURN_IF_ERROR(connection_->WaitDurable(handle.name));
  }
  return connection_->TakeFailure();
}

absl::StatusOr<c10::IValue> SidecarCheckpointIO::Load(const std::string& path) {
  CKPTD_ASSIGN_OR_RETURN(CheckpointFile file, connection_->Load(path));
  if (options_.verify) {
    // What has no checksums is loaded as it is.
    absl::Status status = VerifyCheckpoint(file).status();
    if (!status.ok() && ReasonOf(status) != "NOT_VERIFIABLE") return status;
  }
  return RestoreObject(file);
}

absl::Status SidecarCheckpointIO::Remove(const std::string& path) {
  return connection_->Remove(path, /*wait=*/false);
}

absl::Status SidecarCheckpointIO::Teardown() { return connection_->Flush(); }

}  // namespace ckptd
